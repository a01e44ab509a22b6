"""A video file -> Clip: the frames a model looks at, and when each is shown.

Parsing what a stranger sent happens in a process of its own (`decoder.py`) that is shut in before it reads a byte.
This side starts it, holds it to its time, checks what it says as it would check a stranger, and ends it.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from uvos.errors import (
    InvalidParameters,
    NoFrames,
    TooSmall,
    UnreadableVideo,
)
from worker.video.clip import Clip, model_size
from worker.video.decoder import Order
from worker.video.decoder_process import DecoderLost, DecoderProcess, Progress, SaidAtTheEnd, SaidOfVideo
from worker.video.sources import PICTURE_HEADER

logger = logging.getLogger(__name__)

MAX_THREADS = 8  # of a decoder; each holds frames of its own
HASH_BLOCK = 2**20
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
PICTURE_RATE = 24.0  # frames a second of a folder of pictures, which has no times: DAVIS's


@dataclass(frozen=True)
class DecodeLimits:
    """How much of a video is decoded before it is refused; counted while decoding, since headers lie."""

    max_frames: int = 100_000
    max_pixels: int = 4096 * 2304
    """Of one frame, as stored."""
    max_duration_s: float = 3600.0
    """From the first to the last frame of the part."""
    max_bytes: int = 32 * 2**30
    """Of the frames written to the work folder."""
    timeout_s: float = 600.0
    """Spent waiting for the decoder."""
    memory_bytes: int = 2 * 2**30
    """The decoder's address space."""
    stall_s: float = 10.0
    """How long the decoder may say nothing and not compute either, before it is started once more."""


@dataclass(frozen=True)
class VideoInfo:
    """What the file is, as its manifest tells it."""

    width: int
    """Pixels, as shown: rotation applied."""
    height: int
    rotation: int
    """Degrees clockwise that were applied: 0, 90, 180 or 270."""
    sample_aspect_ratio: str
    """Width to height of a pixel as shown; "1:1" where pixels are square."""
    codec: str
    fps: float | None
    """Mean frames per second of the frames kept; None for a single one."""
    sha256: str
    frame_count: int
    start_s: float
    """The first frame of the video on the container's own clock: what to add to `Clip.pts_s` to find it there."""


@dataclass(frozen=True)
class Decoded:
    """A clip, where it came from, and what a person should know about it."""

    clip: Clip
    info: VideoInfo
    warnings: tuple[str, ...]
    sandbox: tuple[str, ...]
    """What the decoder was confined by."""


class Arrived:
    """The frames that a decoder has written so far, while it goes on with the next.

    A decoder that was lost and is started once more begins with one of its own.

    Attributes:
        count: How many there are.
        video_size: (H, W) in pixels of the video as shown.
    """

    def __init__(self, spool: IO[bytes], size: tuple[int, int], video_size: tuple[int, int]) -> None:
        self._spool, self._size = spool, size
        self.video_size = video_size
        self.count = 0

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The frames start to stop (exclusive), RGB, (stop - start, H, W, 3)."""
        # By plain reads: the decoder could still shorten the file under a map.
        frame_bytes = self._size[0] * self._size[1] * 3
        data = os.pread(self._spool.fileno(), (stop - start) * frame_bytes, start * frame_bytes)
        if not 0 <= start < stop <= self.count or len(data) != (stop - start) * frame_bytes:
            raise UnreadableVideo("the decoder wrote fewer frames than it announced")
        return np.frombuffer(data, np.uint8).reshape(stop - start, *self._size, 3)


OnFrames = Callable[[Arrived], None]
"""Called whenever the decoder has nothing to say yet; what it raises ends the decoder and passes through.

What it does delays the next word of the decoder, such as a refusal: so no more than a second's work at once.
"""


def read_clip(
    path: Path,
    *,
    work: Path,
    short_side: int,
    patch: int,
    resolution: str | None = None,
    native: bool = False,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    limits: DecodeLimits,
    on_progress: Progress | None = None,
    on_frames: OnFrames | None = None,
) -> Decoded:
    """Decode a video, or a part of it, at the size a model looks at.

    Args:
        path: A video file.
        work: An existing folder for the frames; they have no name in it and are gone when the clip is.
        short_side, patch, resolution: What `clip.model_size` makes the size of; frames are scaled to it by swscale,
            antialiased.
        native: Keep the frames at the video's own size instead.
        start, end: The part to decode, in seconds from the first frame of the video: start <= time < end.
        fps: Keep at most this many frames a second, evenly; None: all.
        limits: What is refused.
        on_progress: Told at least every `TICK_S`, and at the end; what it raises ends the decoder and passes through.
        on_frames: Given the frames that are there while the decoder works on the next.

    Returns:
        The clip as a read-only memory map, so that a long video is not held in anonymous memory.

    Raises:
        UnreadableVideo: it is no video, or decoding breaks off midway: nothing is silently cut.
        NoVideoStream, UnsupportedCodec, NoFrames, TooSmall: as named.
        TooManyFrames, TooManyPixels, TooLong, OutOfMemoryBudget, DeadlineExceeded: it is beyond `limits`.
        InvalidParameters: `resolution` does not suit the model.
        StorageFull: no room in `work`.
    """
    selection = _Selection(start, end, fps)
    target = _Target(short_side, patch, resolution, native)
    with path.open("rb") as video, _digest_of(path) as digest:
        return _decode(_Input(video), selection, target, work, limits, on_progress, on_frames, digest)


def read_folder(
    path: Path,
    *,
    work: Path,
    short_side: int,
    patch: int,
    resolution: str | None = None,
    native: bool = False,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    limits: DecodeLimits,
    on_progress: Progress | None = None,
    on_frames: OnFrames | None = None,
) -> Decoded:
    """Read a folder of JPEG or PNG frames, sorted by name: as `read_clip`, at `PICTURE_RATE` frames a second.

    Pictures are decoded by Pillow, as the released code of the paper does. The sha256 is that of the files' bytes,
    each after its length (8 bytes, little-endian).
    """
    selection = _Selection(start, end, fps)
    target = _Target(short_side, patch, resolution, native)
    with _packed(path, work) as (pack, sha256):
        return _decode(pack, selection, target, work, limits, on_progress, on_frames, lambda: sha256)


def stream_frames(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    limits: DecodeLimits,
    work: Path | None = None,
) -> Generator[NDArray[np.uint8], None, None]:
    """The frames of `read_clip` or, for a folder, `read_folder` once more, one at a time.

    At most two frames are held, whatever the length. Time spent between frames does not count towards the timeout.
    Take the frames in the thread that takes the first one; the decoder ends with that thread.

    Args:
        path: A video file or a folder of pictures.
        size: (H, W) to scale to; None: as shown.
        work: Where a folder's pictures are packed; None: the system's folder for temporary files.

    Yields:
        RGB, uint8, shape (H, W, 3).

    Raises:
        As `read_clip`.
    """
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            source, _ = stack.enter_context(_packed(path, work))
        else:
            source = _Input(stack.enter_context(path.open("rb")))
        selection, given = _Selection(start, end, fps), 0
        for threads in _attempts():
            try:
                for i, frame in enumerate(_frames(source, selection, size, limits, threads)):
                    if i == given:  # the second time, those that were given the first time are passed over
                        yield frame
                        given += 1
                return
            except DecoderLost as lost:
                error = lost.error
        raise error


def _frames(
    source: "_Input", selection: "_Selection", size: tuple[int, int] | None, limits: DecodeLimits, threads: int
) -> Generator[NDArray[np.uint8], None, None]:
    order = _order(source, None, selection, limits, threads)
    with DecoderProcess(order, timeout_s=limits.timeout_s, stall_s=limits.stall_s) as decoder:
        size = decoder.answer(lambda shown: size or shown)
        while decoder.next_frame() is not None:
            frame = np.empty((*size, 3), np.uint8)
            decoder.read_into(frame.data.cast("B"))
            yield frame


def _attempts() -> tuple[int, int]:
    """With how many threads to decode, and once more where the decoder is lost."""
    return min(len(os.sched_getaffinity(0)), MAX_THREADS), 1


@dataclass(frozen=True)
class _Selection:
    start: float | None
    end: float | None
    fps: float | None


@dataclass(frozen=True)
class _Target:
    """The size to decode to."""

    short_side: int
    patch: int
    resolution: str | None
    native: bool

    def of(self, shown: tuple[int, int]) -> tuple[int, int]:
        if min(shown) < 2 * self.patch:
            raise TooSmall(
                f"frames of {shown[0]}x{shown[1]} (height x width) are smaller than two patches of {self.patch} pixels",
                limit=2 * self.patch,
                actual=min(shown),
            )
        try:
            size = model_size(shown, short_side=self.short_side, patch=self.patch, resolution=self.resolution)
        except ValueError as error:
            raise InvalidParameters(f"{error}; choose another `resolution`", actual=self.resolution) from None
        return shown if self.native else size


@dataclass(frozen=True)
class _Input:
    file: IO[bytes]
    picture_count: int | None = None
    """None: a video."""


def _order(source: _Input, spool: IO[bytes] | None, selection: _Selection, limits: DecodeLimits, threads: int) -> Order:
    return Order(
        parent=os.getpid(),
        input=source.file.fileno(),
        picture_count=source.picture_count,
        picture_rate=PICTURE_RATE,
        spool=None if spool is None else spool.fileno(),
        start=selection.start,
        end=selection.end,
        fps=selection.fps,
        max_frames=limits.max_frames,
        max_pixels=limits.max_pixels,
        max_duration_s=limits.max_duration_s,
        max_bytes=limits.max_bytes,
        memory_bytes=limits.memory_bytes,
        cpu_s=int(limits.timeout_s * threads) + 1,
        threads=threads,
    )


def _decode(
    source: _Input,
    selection: _Selection,
    target: _Target,
    work: Path,
    limits: DecodeLimits,
    on_progress: Progress | None,
    on_frames: OnFrames | None,
    digest: Callable[[], str],
) -> Decoded:
    for threads in _attempts():
        try:
            return _decode_once(source, selection, target, work, limits, on_progress, on_frames, digest, threads)
        except DecoderLost as lost:
            error = lost.error
    raise error


def _decode_once(
    source: _Input,
    selection: _Selection,
    target: _Target,
    work: Path,
    limits: DecodeLimits,
    on_progress: Progress | None,
    on_frames: OnFrames | None,
    digest: Callable[[], str],
    threads: int,
) -> Decoded:
    with tempfile.TemporaryFile(dir=work, prefix="frames-") as spool:
        order = _order(source, spool, selection, limits, threads)
        with DecoderProcess(
            order, timeout_s=limits.timeout_s, stall_s=limits.stall_s, on_progress=on_progress
        ) as decoder:
            size = decoder.answer(target.of)
            assert decoder.video is not None
            arrived = Arrived(spool, size, decoder.video.size)
            times = []
            while True:
                if on_frames is not None and not decoder.has_spoken():
                    on_frames(arrived)
                if (seconds := decoder.next_frame()) is None:
                    break
                times.append(seconds)
                arrived.count += 1
        # The decoder has ended: from here on nobody can shorten the file under the map.
        if os.fstat(spool.fileno()).st_size != len(times) * size[0] * size[1] * 3:
            raise UnreadableVideo("the decoder wrote other frames than it announced")
        frames = np.memmap(spool, np.uint8, "r", shape=(len(times), *size, 3))
    video, done = decoder.video, decoder.done
    assert video is not None
    assert done is not None
    clip = Clip(frames, np.array(times), video.size)
    info = VideoInfo(
        width=video.size[1],
        height=video.size[0],
        rotation=video.rotation,
        sample_aspect_ratio="{}:{}".format(*video.sample_aspect_ratio),
        codec=video.codec,
        fps=round((len(times) - 1) / (times[-1] - times[0]), 6) if len(times) > 1 else None,
        sha256=digest(),
        frame_count=len(times),
        start_s=video.start_s,
    )
    return Decoded(clip, info, tuple(_warnings(video, done, target, size)), decoder.sandbox)


def _warnings(video: SaidOfVideo, done: SaidAtTheEnd, target: _Target, size: tuple[int, int]) -> Iterator[str]:
    taken = f"{size[0]}x{size[1]}"
    if target.resolution and not target.native and taken != target.resolution:
        yield f"the resolution {target.resolution} is no multiple of the patch of {target.patch} pixels; taken: {taken}"
    if video.mirrored:
        yield "the video is stored mirrored; it was brought upright as its header says"
    if done.damaged:
        yield f"damaged in the file and repaired by guesswork: {done.damaged} frames"
    if done.lost:
        yield f"damaged in the file so that they could not be decoded, and left out: {done.lost} frames"
    if done.guessed:
        yield f"without a time of their own, or not in order, so that their times are assumed: {done.guessed} frames"
    if done.no_end_mark:
        yield "the file has no end mark: it may have been cut off"
    if done.resized:
        yield f"of another size than the first frame, and scaled to it: {done.resized} frames"


# --- what goes in


@contextlib.contextmanager
def _digest_of(path: Path) -> Iterator[Callable[[], str]]:
    """The file's sha256, computed meanwhile; on a failure the computation stops."""
    stop = threading.Event()

    def compute() -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while not stop.is_set() and (block := file.read(HASH_BLOCK)):
                digest.update(block)
        return digest.hexdigest()

    with ThreadPoolExecutor(1, "sha256") as pool:
        result = pool.submit(compute)
        try:
            yield result.result
        finally:
            stop.set()


@contextlib.contextmanager
def _packed(folder: Path, work: Path | None) -> Iterator[tuple[_Input, str]]:
    """The pictures of a folder in one file without a name, and its sha256."""
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    if not pictures:
        raise NoFrames(f"there is no {' or '.join(PICTURE_SUFFIXES)} file in {folder.name}")
    digest = hashlib.sha256()
    with tempfile.TemporaryFile(dir=work, prefix="pictures-") as pack:
        for picture in pictures:
            data = picture.read_bytes()
            for part in (PICTURE_HEADER.pack(len(data)), data):
                pack.write(part)
                digest.update(part)
        pack.flush()
        yield _Input(pack, len(pictures)), digest.hexdigest()
