"""Mutated videos through the real decoder: each one decodes or is refused with a `UvosError`, in bounded time.

    python -m tests.worker.video.fuzz_decode [COUNT] [SEED]

prints the number of files by outcome; any other exception ends it with the seed and the file's path.
"""

import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.videos import make_scene, write_video
from uvos.errors import UvosError
from worker.video.decode import FrameSize, read_clip
from worker.video.request import DecodeLimits, DecodeRequest

LIMITS = DecodeLimits(
    max_frames=200, max_pixels=2**21, max_duration_s=600, max_bytes=2**28, timeout_s=10, stall_s=2, memory_bytes=2**30
)
SLOWEST_S = 30.0  # the decoder's own limit, with a margin for a busy machine

SEEDS: dict[str, dict[str, Any]] = {
    "a.mp4": {"audio": True},
    "b.mp4": {"rotation": 90, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "c.mkv": {"codec": "libx265"},
    "d.webm": {"codec": "libvpx-vp9"},
    "e.webm": {"codec": "libvpx", "audio": True},
    "f.avi": {"codec": "mpeg4"},
    "g.ts": {"container": "mpegts"},
    "h.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "i.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "j.flv": {"codec": "flv"},
    "k.mpg": {"codec": "mpeg2video"},
    "l.mkv": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "log-level=0"}},
    "m.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
}


def flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 4, 32))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def flip_header(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 2, 8))):
        data[draw.randrange(min(len(data), 600))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))


def flip_trailer(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 2, 8))):
        data[-1 - draw.randrange(min(len(data), 900))] = draw.randrange(256)


def set_number(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data) - 8)
    data[at : at + 4] = draw.choice(
        (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\0\0\xff\xff")
    )


def cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(1, len(data)) :]


def drop(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    del data[at : at + draw.choice((1, 16, 1000))]


def repeat(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    data[at:at] = data[at : at + draw.choice((16, 1000))]


def overwrite(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    data[at : at + 64] = draw.randbytes(64)


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    flip_bits,
    flip_header,
    flip_trailer,
    set_number,
    cut,
    drop,
    repeat,
    overwrite,
]


def fuzz(work: Path, *, count: int, seed: int) -> Counter[str]:
    """Decode `count` mutated files.

    Returns:
        The number of files by outcome: "Decoded", or the name of a `UvosError`.

    Raises:
        AssertionError: a file raised another exception, or took longer than `SLOWEST_S`; it stays in `work`.
    """
    frames = make_scene(frames=6, size=(48, 64)).frames
    seeds = [write_video(work / name, frames, **options).read_bytes() for name, options in SEEDS.items()]

    def decode(number: int) -> str:
        draw = random.Random(f"{seed} {number}")
        data = bytearray(seeds[number % len(seeds)])
        for mutate in draw.choices(MUTATIONS, k=draw.choice((1, 1, 2, 3))):
            if len(data) > 16:
                mutate(data, draw)
        path = work / f"mutated-{seed}-{number}"
        path.write_bytes(data)
        began = time.monotonic()
        try:
            decoded = read_clip(DecodeRequest(path, limits=LIMITS), FrameSize(48, 8), work=work)
            assert len(decoded.clip.frames) == decoded.info.frame_count
            outcome = "Decoded"
        except UvosError as error:
            error.problem()  # the client's message can be built
            outcome = type(error).__name__
        except Exception as error:
            raise AssertionError(f"{path} (seed {seed}, number {number})") from error
        assert time.monotonic() - began < SLOWEST_S, f"{path} took too long"
        path.unlink()
        return outcome

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return Counter(pool.map(decode, range(count)))


if __name__ == "__main__":
    count, seed = (int(argument) for argument in (*sys.argv[1:], "1000", "0")[:2])
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    started = time.monotonic()
    outcomes = fuzz(folder, count=count, seed=seed)
    print(f"{count} files in {time.monotonic() - started:.0f} s:", dict(outcomes.most_common()))
