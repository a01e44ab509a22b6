"""The decoder process, which parses untrusted video: `python -m worker.video.decoder OPTIONS`.

Started by `decoder_process.py` only. It inherits open files, enters the sandbox (`sandbox.py`) before it reads their
first byte, and writes messages (`messages.py`) as JSON lines to standard output: `sandbox`, `header`, one `frame` per
frame kept, then `summary` or `failure`. After `header` it reads the size to scale to, "H W", from standard input. RGB
rows are written to the spool, or after their `frame` message if there is no spool. For a fast start it imports
neither torch nor numpy nor pydantic.
"""

import errno
import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn

import av.filter
import av.logging
import av.subtitles.codeccontext  # PyAV imports these two lazily for files with subtitles: too late in the sandbox
import av.subtitles.stream
from av.video.frame import VideoFrame

from worker.video import sandbox
from worker.video.messages import (
    DecoderOptions,
    DecodeSummary,
    FrameMessage,
    Message,
    SandboxReport,
    VideoHeader,
)
from worker.video.request import VideoPart
from worker.video.sources import Orientation, PictureArchive, PicturePack, Refusal, VideoFile

# Seconds: a part that starts later is reached by seeking, where an index allows it; up to it, decoding is as fast.
SEEK_AFTER_S = 5.0
# Containers round times (Matroska to milliseconds): a frame early by up to this share of a step belongs to that step.
STEP_TOLERANCE = 0.1
KNOWN_COLORSPACES = (0, 1, 2, 4, 5, 6, 7, 9, 10)  # AVColorSpace; swscale rejects reserved and rare ones
UNSPECIFIED_COLORSPACE = 2
ROWS_PER_WRITE = 1024  # IOV_MAX


def main() -> NoReturn:
    options = DecoderOptions.from_json(sys.argv[1])
    limits = options.limits
    sandbox.die_with(options.parent_pid)
    av.logging.restore_default_callback()  # logs to stderr in C: the Python callback can deadlock with libav's threads
    av.logging.set_libav_level(av.logging.ERROR)
    if options.picture_count is not None or options.is_archive:
        PicturePack.prepare()
    applied = sandbox.confine(
        memory_bytes=limits.memory_bytes,
        cpu_s=int(limits.timeout_s * options.threads) + 1,
        file_bytes=limits.max_bytes,
    )
    send(SandboxReport(applied=applied))
    source: VideoFile | PicturePack | None = None
    try:
        if options.is_archive:
            source = PictureArchive(options.input_fd, max_pixels=limits.max_pixels)
        elif options.picture_count is None:
            source = VideoFile(options.input_fd, max_pixels=limits.max_pixels, threads=options.threads)
        else:
            source = PicturePack(options.input_fd, count=options.picture_count, max_pixels=limits.max_pixels)
        decode(source, options)
    except BrokenPipeError:
        pass  # the parent has stopped reading
    except Exception as error:
        send(as_refusal(error, source, options).message)
    os._exit(0)  # without codec cleanup


def decode(source: VideoFile | PicturePack, options: DecoderOptions) -> None:
    """Send the header, receive the size, write the frames, send the summary."""
    frames = source.frames()
    first = next(frames, None)
    if first is None:
        raise Refusal("UnreadableVideo", "no frame of the video stream can be decoded", actual=0)
    orientation, origin = Orientation.of(first), source.first_s or 0.0
    send(header(source, first, orientation, options))
    height, width = (int(side) for side in sys.stdin.readline().split())
    converter = RgbConverter(orientation, (height, width), options.threads)
    start = options.part.start or 0.0
    long = seems_too_long(source, options)
    if long:
        check_packets(source, origin, options)
    frames = source.frames_from(origin + start) if long or start > SEEK_AFTER_S else chain([first], frames)

    kept = resized = 0
    selector = FrameSelector(options.part, options.limits.max_duration_s, origin, source.frame_s)
    for frame, time_s, index in selector.select(frames):
        check_room(kept, 3 * height * width, options)
        resized += (frame.width, frame.height) != (first.width, first.height)
        rows = converter.rows(frame)
        kept += 1
        if options.spool_fd is not None:  # pixels first: an announced frame is complete
            write_rows(options.spool_fd, rows)
        first_number = source.first_number
        number = None if first_number is None else first_number + index
        send(FrameMessage(number=kept, time_s=time_s, source_frame=number))
        if options.spool_fd is None:
            write_rows(sys.stdout.fileno(), rows)
    if not selector.passed_end and source.ends_early():
        raise Refusal("UnreadableVideo", with_good_part("the file ends early", source), actual=source.decoded)
    if not kept:
        last_s = max(selector.last_s, 0.0)
        raise Refusal("NoFrames", f"the requested part contains no frame; the last frame found is at {last_s:.3f} s")
    send(
        DecodeSummary(
            frames=kept,
            assumed_times=selector.assumed_times,
            resized=resized,
            damaged=source.damaged,
            lost=0 if selector.passed_end else source.lost_frames(),
            no_end_mark=not selector.passed_end and source.has_no_end_mark(),
        )
    )


def header(
    source: VideoFile | PicturePack, first: VideoFrame, orientation: Orientation, options: DecoderOptions
) -> VideoHeader:
    aspect = source.sample_aspect_ratio
    aspect = 1 / aspect if orientation.transpose else aspect
    return VideoHeader(
        size=(first.width, first.height) if orientation.transpose else (first.height, first.width),
        rotation=orientation.degrees,
        mirrored=orientation.mirrored,
        sample_aspect_ratio=(aspect.numerator, aspect.denominator),
        codec=source.codec,
        expected_frames=expected_frames(source, options.part),
    )


@dataclass
class FrameSelector:
    """Selects the frames of a part and their times relative to the first frame of the video."""

    part: VideoPart
    max_duration_s: float
    origin: float
    """Time of the first frame on the container's clock, seconds."""
    frame_s: float
    """Time between frames, used for frames without a time."""
    passed_end: bool = False
    """Whether the end of the part was reached before the end of the file."""
    last_s: float = -1.0
    """Time of the last frame decoded."""
    assumed_times: int = 0
    """Number of frames without a time, or with a time before the previous frame."""

    def select(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[VideoFrame, float, int]]:
        """The frames of the part with their times and their positions in `frames`."""
        part = self.part
        part_start: float | None = None
        last_step = -1
        for index, frame in enumerate(frames):
            time = round(frame.time - self.origin, 9) if frame.time is not None else -1.0
            if time <= self.last_s or time < 0:
                time = max(self.last_s + self.frame_s, 0.0)
                self.assumed_times += 1
            self.last_s = time
            if part.end is not None and time >= part.end:
                self.passed_end = True
                return
            if part.start is not None and time < part.start:
                continue
            part_start = time if part_start is None else part_start
            if part.fps is not None:
                step = int((time - part_start) * part.fps + STEP_TOLERANCE)
                if step <= last_step:
                    continue
                last_step = step
            if time - part_start > self.max_duration_s:
                raise too_long(time - part_start, self.max_duration_s)
            yield frame, time, index


class RgbConverter:
    """Converts frames to RGB of one size and applies the orientation."""

    def __init__(self, orientation: Orientation, size: tuple[int, int], threads: int) -> None:
        self.width, self.height = size if orientation.transpose else size[::-1]  # before the transposition
        self.upside_down = orientation.flip_y
        self.threads = threads
        self.graph: av.filter.Graph | None = None
        if orientation.transpose:  # "cclock_flip" is the plain transposition
            self.graph = self._graph("transpose", "clock" if orientation.flip_x else "cclock_flip")
        elif orientation.flip_x:
            self.graph = self._graph("hflip", "")

    def _graph(self, name: str, arguments: str) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1
        source = graph.add("buffer", f"video_size={self.width}x{self.height}:pix_fmt=rgb24:time_base=1/1000")
        graph.link_nodes(source, graph.add(name, arguments), graph.add("buffersink")).configure()
        return graph

    def rows(self, frame: VideoFrame) -> list[memoryview]:
        """The frame's pixels, three bytes each, in as few buffers of whole rows as possible."""
        if frame.colorspace not in KNOWN_COLORSPACES:
            frame.colorspace = UNSPECIFIED_COLORSPACE
        frame = frame.reformat(width=self.width, height=self.height, format="rgb24", threads=self.threads)
        if self.graph is not None:
            self.graph.vpush(frame)
            frame = self.graph.vpull()
        plane = frame.planes[0]
        pixels, row_bytes = memoryview(plane), 3 * frame.width
        if plane.line_size == row_bytes and not self.upside_down:
            return [pixels[: row_bytes * frame.height]]
        rows = [pixels[y * plane.line_size : y * plane.line_size + row_bytes] for y in range(frame.height)]
        return rows[::-1] if self.upside_down else rows


def write_rows(file: int, rows: Sequence[memoryview]) -> None:
    for first in range(0, len(rows), ROWS_PER_WRITE):
        batch = list(rows[first : first + ROWS_PER_WRITE])
        while batch:
            written = os.writev(file, batch)
            while batch and written >= len(batch[0]):
                written -= len(batch.pop(0))
            if batch:
                batch[0] = batch[0][written:]


def send(message: Message) -> None:
    write_rows(sys.stdout.fileno(), [memoryview(message.to_json() + b"\n")])


# --- limits


def expected_frames(source: VideoFile | PicturePack, part: VideoPart) -> int | None:
    """Number of frames of the part by the container's header, which may be wrong."""
    if part.is_whole and source.frame_count:
        return source.frame_count
    part_s = expected_s(source, part)
    return None if part_s is None else max(1, round(part_s * min(1 / source.frame_s, part.fps or math.inf)))


def expected_s(source: VideoFile | PicturePack, part: VideoPart) -> float | None:
    """Duration of the part by the container's header, which may be wrong."""
    if source.duration_s is None:
        return None
    return min(source.duration_s, part.end or math.inf) - (part.start or 0.0)


def seems_too_long(source: VideoFile | PicturePack, options: DecoderOptions) -> bool:
    """Whether the part exceeds the limits by the container's header, which may be wrong."""
    frames, seconds = expected_frames(source, options.part) or 0, expected_s(source, options.part) or 0.0
    return frames > options.limits.max_frames or seconds > options.limits.max_duration_s


def check_packets(source: VideoFile | PicturePack, origin: float, options: DecoderOptions) -> None:
    """Refuse a part that is too long by its packets, which are read in microseconds, before it is decoded."""
    part, limits = options.part, options.limits
    start, end = part.start or 0.0, part.end or math.inf
    counts = part.fps is None and source.has_one_frame_a_packet
    first, last, frames = math.inf, -math.inf, 0
    for time in source.packet_times():
        if start <= time - origin < end:
            first, last, frames = min(first, time), max(last, time), frames + 1
            if last - first > limits.max_duration_s:
                raise too_long(max(last - first, expected_s(source, part) or 0.0), limits.max_duration_s)
            if counts and frames > limits.max_frames:
                raise too_many_frames(max(frames, expected_frames(source, part) or 0), limits.max_frames)


def check_room(kept: int, frame_bytes: int, options: DecoderOptions) -> None:
    """Refuse the next frame if it exceeds the limits."""
    limits = options.limits
    if kept == limits.max_frames:
        raise too_many_frames(kept + 1, limits.max_frames)
    if options.spool_fd is not None and (kept + 1) * frame_bytes > limits.max_bytes:
        raise Refusal(
            "TooManyFrames",
            f"more than {kept} decoded frames of this size exceed the limit of {limits.max_bytes} bytes",
            limit=kept,
            actual=kept + 1,
        )


def too_many_frames(actual: int, limit: int) -> Refusal:
    return Refusal("TooManyFrames", f"the video has more than {limit} frames", limit=limit, actual=actual)


def too_long(actual_s: float, limit_s: float) -> Refusal:
    return Refusal("TooLong", f"the video is longer than {limit_s:g} s", limit=limit_s, actual=round(actual_s, 3))


def with_good_part(problem: str, source: VideoFile | PicturePack) -> str:
    """A problem with the number of good frames before it, and the parameter that selects them."""
    last_s = math.floor(1000 * ((source.last_s or 0.0) - (source.first_s or 0.0)) + 1e-6) / 1000
    advice = f"; `end={last_s:.3f}` selects the part before" if last_s > 0 else ""
    return f"{problem} after {source.decoded} good frames{advice}"


def as_refusal(error: Exception, source: VideoFile | PicturePack | None, options: DecoderOptions) -> Refusal:
    """The refusal for any error while decoding.

    Damaged files raise nearly anything: libav's errors, UnicodeDecodeError, AttributeError, ZeroDivisionError.
    """
    if isinstance(error, Refusal):
        return error
    traceback.print_exception(error)
    code = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or code == errno.ENOMEM:
        limit = options.limits.memory_bytes
        return Refusal("OutOfMemoryBudget", f"decoding needs more than {limit} bytes of memory", limit=limit)
    if code == errno.ENOSPC:
        return Refusal("StorageFull", "no space left for the decoded frames")
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:200]
    if source is None:
        return Refusal("UnreadableVideo", f"the file cannot be opened as a video ({reason})")
    return Refusal("UnreadableVideo", with_good_part(f"decoding failed ({reason})", source), actual=source.decoded)


if __name__ == "__main__":
    main()
