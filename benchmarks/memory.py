"""Peak memory of `uvos-worker segment` at 200 and at 2,000 frames, with a fixed number of key frames.

The command segments a generated video of each length. The anonymous memory (RssAnon) of its process, and of its
process tree, is sampled from /proc every few milliseconds; the largest value counts. UVOS_MAX_KEY_TOKENS limits both
videos to the same number of key frames.

python -m benchmarks.memory [--frames 200 2000] [--size 96x128] [--resolution 96x128] [--key-frames 10]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from uvos.models import MODELS
from worker.video.clip import model_size

ROOT = Path(__file__).parents[1]
TARGET = 1.15  # times the memory for ten times the frames
SAMPLE_S = 0.01
FPS = 25
MODEL = MODELS["tiny"]


@dataclass(frozen=True)
class Peak:
    """The largest anonymous memory in a command's life, bytes, and its result."""

    process: int
    tree: int
    seconds: float
    frames: int
    key_frames: int
    clusters: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 2000], help="lengths; ratios are to the first")
    parser.add_argument("--size", default="96x128", help="HxW of the generated videos")
    parser.add_argument("--resolution", default="96x128", help="model input resolution HxW; small, to be fast")
    parser.add_argument("--key-frames", type=int, default=10, help="K of every video")
    parser.add_argument("--format", action="append", help="output format; may be repeated; default: png and rle")
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    input_size = model_size(
        (height, width), short_side=MODEL.short_side, patch=MODEL.patch, resolution=arguments.resolution
    )
    tokens = input_size[0] * input_size[1] // MODEL.patch**2
    print(
        f"{MODEL.name}, videos of {height}x{width}, resolution {input_size[0]}x{input_size[1]}, {tokens} patches, "
        f"{arguments.key_frames} key frames"
    )
    peaks: list[Peak] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.frames:
            video = write_video(Path(folder) / f"{count}.mp4", count, height, width)
            out = Path(folder) / str(count)
            options = ["--key-ratio", "1", "--model", MODEL.name, "--resolution", arguments.resolution]
            options += [word for name in arguments.format or [] for word in ("--format", name)]
            peak = run_and_sample(video, out, options, max_key_tokens=arguments.key_frames * tokens)
            peaks.append(peak)
            print(
                f"{peak.frames:6} frames, {peak.key_frames} key frames, {peak.clusters} clusters, "
                f"{peak.seconds:6.1f} s: RssAnon {peak.process / 2**20:7.1f} MiB, with children "
                f"{peak.tree / 2**20:7.1f} MiB",
                flush=True,
            )
    for peak in peaks[1:]:
        print(
            f"{peak.frames} frames against {peaks[0].frames}: {peak.process / peaks[0].process:.3f} times "
            f"the memory, with children {peak.tree / peaks[0].tree:.3f}; target: at most {TARGET}"
        )


def run_and_sample(video: Path, out: Path, options: Sequence[str], *, max_key_tokens: int) -> Peak:
    """Run `uvos-worker segment` and sample its memory until it ends."""
    command = [sys.executable, "-m", "worker.cli", "segment", str(video), "--out", str(out), *options]
    environment = {**os.environ, "UVOS_MAX_KEY_TOKENS": str(max_key_tokens)}
    start_s = time.perf_counter()
    process = tree = 0
    with (out.parent / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while running.poll() is None:
            own = anonymous(running.pid)
            process, tree = max(process, own), max(tree, own + sum(map(anonymous, descendants(running.pid))))
            time.sleep(SAMPLE_S)
    seconds = time.perf_counter() - start_s
    if running.returncode:
        raise SystemExit((out.parent / "log").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    return Peak(
        process,
        tree,
        seconds,
        manifest["video"]["frame_count"],
        len(manifest["key_frames"]),
        manifest["levels"][0]["clusters"],
    )


def anonymous(pid: int) -> int:
    """RssAnon of a process, bytes; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def descendants(pid: int) -> list[int]:
    """All descendants of a process."""
    pids: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
        except OSError:
            continue
        for child in children:
            pids += [child, *descendants(child)]
    return pids


def write_video(path: Path, count: int, height: int, width: int) -> Path:
    """Textured discs that swing over a textured ground: the content does not grow with the length."""
    random = np.random.default_rng(0)
    ground = _texture(random, height, width)
    discs = [_texture(random, height, width) for _ in range(4)]
    speed, phase = random.uniform(0.01, 0.04, (4, 2)), random.uniform(0, 2 * np.pi, (4, 2))
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "12"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in range(count):
            picture = ground.copy()
            for disc, pace, start in zip(discs, speed, phase, strict=True):
                down, right = 0.5 + 0.35 * np.sin(start + pace * frame)
                inside = (y - down * height) ** 2 + (x - right * width) ** 2 < (0.15 * height) ** 2
                picture[inside] = disc[inside]
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode())
    return path


def _texture(random: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    blocks = random.normal(0, 20, (-(-height // 4), -(-width // 4), 1)).repeat(4, 0).repeat(4, 1)[:height, :width]
    texture: NDArray[np.uint8] = np.clip(random.uniform(60, 200, 3) + blocks, 0, 255).astype(np.uint8)
    return texture


if __name__ == "__main__":
    main()
