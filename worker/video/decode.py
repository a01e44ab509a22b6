"""Video file or folder of pictures -> Clip: frames at the model input resolution and their presentation times.

Untrusted video is parsed in a separate process (`decoder.py`) that is sandboxed before it reads any input. This side
starts it, limits its time, validates its output (`decoder_process.py`), and ends it.
"""

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from uvos.errors import InvalidParameters, TooSmall, UnreadableVideo
from worker.threads import usable_cores
from worker.video.clip import Clip, model_size
from worker.video.decoder_process import DecoderLost, DecoderProcess, OnFrameProgress
from worker.video.inputs import DecoderInput, open_input
from worker.video.messages import DecoderOptions, DecodeSummary, VideoHeader
from worker.video.request import DecodeRequest

MAX_THREADS = 8  # of a decoder; each holds frames of its own


@dataclass(frozen=True)
class FrameSize:
    """Rule for the size of decoded frames.

    Attributes:
        short_side, patch, resolution: The model input resolution (`clip.model_size`); frames are scaled to it by
            swscale, antialiased.
        native: Keep frames at the size of the video instead.
    """

    short_side: int
    patch: int
    resolution: str | None = None
    native: bool = False

    def model_size(self, video_size: tuple[int, int]) -> tuple[int, int]:
        """The model input resolution (H, W) for a video.

        Raises:
            TooSmall: the video is smaller than two patches.
            InvalidParameters: `resolution` does not suit the model.
        """
        if min(video_size) < 2 * self.patch:
            raise TooSmall(
                f"frames of {video_size[0]}x{video_size[1]} (height x width) are smaller than two patches of "
                f"{self.patch} pixels",
                limit=2 * self.patch,
                actual=min(video_size),
            )
        try:
            return model_size(video_size, short_side=self.short_side, patch=self.patch, resolution=self.resolution)
        except ValueError as error:
            raise InvalidParameters(f"{error}; choose another `resolution`", actual=self.resolution) from None

    def decode_size(self, video_size: tuple[int, int]) -> tuple[int, int]:
        """The size (H, W) of decoded frames; raises as `model_size`."""
        size = self.model_size(video_size)
        return video_size if self.native else size


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video for the manifest."""

    width: int
    """Pixels, rotation applied."""
    height: int
    rotation: int
    """Degrees clockwise that were applied: 0, 90, 180 or 270."""
    sample_aspect_ratio: str
    """Width to height of a pixel, rotation applied; "1:1" for square pixels."""
    codec: str
    fps: float | None
    """Mean frames per second of the decoded frames; None for a single one."""
    sha256: str
    frame_count: int


@dataclass(frozen=True)
class DecodedVideo:
    """A clip with its origin and warnings for the user."""

    clip: Clip
    info: VideoInfo
    warnings: tuple[str, ...]
    sandbox: tuple[str, ...]
    """Restrictions of the decoder process."""


class PartialClip:
    """The frames decoded so far. A restarted decoder starts a new one.

    Attributes:
        count: Number of frames.
        video_size: (H, W) in pixels of the video, rotation applied.
    """

    def __init__(self, spool: IO[bytes], size: tuple[int, int], video_size: tuple[int, int]) -> None:
        self._spool, self._size = spool, size
        self.video_size = video_size
        self.count = 0

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The frames start to stop (exclusive), RGB, (stop - start, H, W, 3)."""
        # Read, not mapped: the decoder could still truncate the file under a map.
        frame_bytes = self._size[0] * self._size[1] * 3
        data = os.pread(self._spool.fileno(), (stop - start) * frame_bytes, start * frame_bytes)
        if not 0 <= start < stop <= self.count or len(data) != (stop - start) * frame_bytes:
            raise UnreadableVideo("the decoder wrote fewer frames than it announced")
        return np.frombuffer(data, np.uint8).reshape(stop - start, *self._size, 3)


OnPartialClip = Callable[[PartialClip], None]
"""Called whenever the decoder has no output; an exception it raises cancels the decoding.

Messages of the decoder, such as a refusal, wait for it, so one call should not take longer than a second.
"""


def read_clip(
    request: DecodeRequest,
    frame_size: FrameSize,
    *,
    work: Path,
    on_progress: OnFrameProgress | None = None,
    on_partial_clip: OnPartialClip | None = None,
) -> DecodedVideo:
    """Decode a video, or a part of it, at the model input resolution.

    Args:
        request: A video file, or a folder of JPEG or PNG pictures, which are ordered by name and decoded by Pillow as
            in the released code of the paper; with the part to decode and the limits.
        frame_size: The size of the frames.
        work: An existing folder for the frames; they have no name in it and are deleted with the clip.
        on_progress: Called at least every `decoder_process.PROGRESS_INTERVAL_S`, and at the end.
        on_partial_clip: Called with the frames decoded so far while the decoder works on the next one.

    Returns:
        The clip as a read-only memory map, so that a long video does not occupy anonymous memory.

    Raises:
        UnreadableVideo: the file is not a video, or decoding fails midway; a video is never truncated silently.
        NoVideoStream, UnsupportedCodec, NoFrames: see `uvos.errors`.
        TooManyFrames, TooManyPixels, TooLong, OutOfMemoryBudget, DeadlineExceeded: a limit of the request is exceeded.
        TooSmall, InvalidParameters: as `FrameSize.model_size`.
        StorageFull: no space left in `work`.
    """
    with open_input(request.source, work) as decoder_input:
        for threads in _thread_counts():
            try:
                with tempfile.TemporaryFile(dir=work, prefix="frames-") as spool:
                    options = _options(decoder_input, request, spool, threads)
                    with DecoderProcess(options, on_progress) as decoder:
                        return _read_clip(decoder, frame_size, spool, decoder_input.sha256, on_partial_clip)
            except DecoderLost as lost:
                error = lost.error
        raise error


def stream_frames(
    request: DecodeRequest, *, size: tuple[int, int] | None = None, work: Path | None = None
) -> Generator[NDArray[np.uint8], None, None]:
    """Decode the frames of `read_clip` once more, one at a time.

    At most two frames are in memory. Time between frames does not count towards the timeout. Iterate in the thread
    that takes the first frame; the decoder ends with that thread.

    Args:
        request: As for `read_clip`.
        size: (H, W) to scale to; None: the size of the video.
        work: Folder for packed pictures; None: the system's temporary folder.

    Yields:
        RGB, uint8, shape (H, W, 3).

    Raises:
        As `read_clip`.
    """
    with open_input(request.source, work) as decoder_input:
        yielded = 0
        for threads in _thread_counts():
            try:
                frames = _stream_frames(_options(decoder_input, request, None, threads), size)
                for index, frame in enumerate(frames):
                    if index == yielded:  # a restarted decoder skips the frames that were yielded before
                        yield frame
                        yielded += 1
                return
            except DecoderLost as lost:
                error = lost.error
        raise error


def _stream_frames(options: DecoderOptions, size: tuple[int, int] | None) -> Generator[NDArray[np.uint8], None, None]:
    with DecoderProcess(options) as decoder:
        header = decoder.read_header()
        size = size or header.size
        decoder.set_size(size)
        while decoder.next_frame() is not None:
            frame = np.empty((*size, 3), np.uint8)
            decoder.read_into(frame.data.cast("B"))
            yield frame


def _read_clip(
    decoder: DecoderProcess,
    frame_size: FrameSize,
    spool: IO[bytes],
    sha256: Callable[[], str],
    on_partial_clip: OnPartialClip | None,
) -> DecodedVideo:
    header = decoder.read_header()
    size = frame_size.decode_size(header.size)
    decoder.set_size(size)
    partial = PartialClip(spool, size, header.size)
    times, numbers = [], []
    while True:
        if on_partial_clip is not None and not decoder.has_output():
            on_partial_clip(partial)
        if (frame := decoder.next_frame()) is None:
            break
        times.append(frame.time_s)
        numbers.append(frame.source_frame)
        partial.count += 1
    summary = decoder.summary
    assert summary is not None
    decoder.end()  # from here on the spool cannot be truncated under the map
    if os.fstat(spool.fileno()).st_size != len(times) * size[0] * size[1] * 3:
        raise UnreadableVideo("the size of the decoded frames does not match their announced number")
    frames = np.memmap(spool, np.uint8, "r", shape=(len(times), *size, 3))
    info = VideoInfo(
        width=header.size[1],
        height=header.size[0],
        rotation=header.rotation,
        sample_aspect_ratio="{}:{}".format(*header.sample_aspect_ratio),
        codec=header.codec,
        fps=round((len(times) - 1) / (times[-1] - times[0]), 6) if len(times) > 1 else None,
        sha256=sha256(),
        frame_count=len(times),
    )
    warnings = tuple(_warnings(header, summary, frame_size, size))
    known = [number for number in numbers if number is not None]
    clip = Clip(frames, np.array(times), header.size, tuple(known) if len(known) == len(times) else None)
    return DecodedVideo(clip, info, warnings, decoder.sandbox)


def _options(
    decoder_input: DecoderInput, request: DecodeRequest, spool: IO[bytes] | None, threads: int
) -> DecoderOptions:
    return DecoderOptions(
        parent_pid=os.getpid(),
        input_fd=decoder_input.file.fileno(),
        picture_count=decoder_input.picture_count,
        is_archive=decoder_input.is_archive,
        spool_fd=None if spool is None else spool.fileno(),
        threads=threads,
        part=request.part,
        limits=request.limits,
    )


def _thread_counts() -> tuple[int, int]:
    """Decoder threads of the first attempt, and of the retry after `DecoderLost`."""
    return min(usable_cores(), MAX_THREADS), 1


def _warnings(
    header: VideoHeader, summary: DecodeSummary, frame_size: FrameSize, size: tuple[int, int]
) -> Iterator[str]:
    used = f"{size[0]}x{size[1]}"
    if frame_size.resolution and not frame_size.native and used != frame_size.resolution:
        yield (
            f"resolution {frame_size.resolution} is not a multiple of the patch size of {frame_size.patch} pixels; "
            f"{used} was used"
        )
    if header.mirrored:
        yield "the video is stored mirrored; it was flipped as its header requires"
    if summary.damaged:
        yield f"damaged in the file and concealed by the codec: {summary.damaged} frames"
    if summary.lost:
        yield f"damaged in the file, not decodable and left out: {summary.lost} frames"
    if summary.assumed_times:
        yield f"without a presentation time, or out of order, with assumed times: {summary.assumed_times} frames"
    if summary.no_end_mark:
        yield "the file has no end mark: it may have been cut off"
    if summary.resized:
        yield f"of another size than the first frame, and scaled to it: {summary.resized} frames"
