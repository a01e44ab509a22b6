"""The process that parses a video: `python -m worker.video.decoder ORDER`, started by `decode.py` and by nothing else.

It is handed open files, shuts itself in (`sandbox.py`) before it reads their first byte, and says what it finds in
lines of JSON on its standard output: `sandbox`, `video`, one `frame` for each frame kept, then `done` or `error`.
After `video` it reads the size to scale to from its standard input: "H W". RGB rows go to the spool; without one
they follow their `frame` line. It starts fast: no torch, no numpy, no pydantic.
"""

import errno
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import av.filter
import av.logging
import av.subtitles.codeccontext  # PyAV imports these two when a file has subtitles: too late in a shut-in process
import av.subtitles.stream
from av.video.frame import VideoFrame

from worker.video import sandbox
from worker.video.sources import Pictures, Refusal, Turn, VideoFile

# A part that starts later than this is sought where an index allows it; earlier, decoding up to it is as fast.
SEEK_AFTER_S = 5.0
# Containers round times (Matroska to milliseconds): a frame this share of a step early is still that step's.
TICK_TOLERANCE = 0.1
KNOWN_COLORSPACES = (0, 1, 2, 4, 5, 6, 7, 9, 10)  # AVColorSpace; swscale refuses reserved and rare ones
UNSPECIFIED_COLORSPACE = 2
ROWS_A_WRITE = 1024  # IOV_MAX


@dataclass(frozen=True)
class Order:
    """What to decode and how far; as JSON the one argument of the process."""

    parent: int
    input: int
    """An open file."""
    picture_count: int | None
    """None: the file is a video; else a pack of so many pictures."""
    picture_rate: float
    spool: int | None
    """Where the rows go; None: behind their `frame` lines."""
    start: float | None
    end: float | None
    fps: float | None
    max_frames: int
    max_pixels: int
    max_duration_s: float
    max_bytes: int
    memory_bytes: int
    cpu_s: int
    threads: int


class Upright:
    """Frames to RGB of one size, turned upright."""

    def __init__(self, turn: Turn, size: tuple[int, int], threads: int) -> None:
        self.width, self.height = size if turn.transpose else size[::-1]  # before the turn
        self.upside_down = turn.flip_y
        self.threads = threads
        self.graph: av.filter.Graph | None = None
        if turn.transpose:  # "cclock_flip" is the plain transpose
            self.graph = self._graph("transpose", "clock" if turn.flip_x else "cclock_flip")
        elif turn.flip_x:
            self.graph = self._graph("hflip", "")

    def _graph(self, name: str, arguments: str) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1
        source = graph.add("buffer", f"video_size={self.width}x{self.height}:pix_fmt=rgb24:time_base=1/1000")
        graph.link_nodes(source, graph.add(name, arguments), graph.add("buffersink")).configure()
        return graph

    def rows(self, frame: VideoFrame) -> list[memoryview]:
        """The frame's pixels in as few pieces as possible, each of whole rows, three bytes a pixel."""
        if frame.colorspace not in KNOWN_COLORSPACES:
            frame.colorspace = UNSPECIFIED_COLORSPACE
        frame = frame.reformat(width=self.width, height=self.height, format="rgb24", threads=self.threads)
        if self.graph is not None:
            self.graph.vpush(frame)
            frame = self.graph.vpull()
        plane = frame.planes[0]
        pixels, used = memoryview(plane), 3 * frame.width
        if plane.line_size == used and not self.upside_down:
            return [pixels[: used * frame.height]]
        rows = [pixels[y * plane.line_size : y * plane.line_size + used] for y in range(frame.height)]
        return rows[::-1] if self.upside_down else rows


def write_rows(file: int, parts: Sequence[memoryview]) -> None:
    for first in range(0, len(parts), ROWS_A_WRITE):
        batch = list(parts[first : first + ROWS_A_WRITE])
        while batch:
            written = os.writev(file, batch)
            while batch and written >= len(batch[0]):
                written -= len(batch.pop(0))
            if batch:
                batch[0] = batch[0][written:]


def say(**message: Any) -> None:
    write_rows(sys.stdout.fileno(), [memoryview(json.dumps(message).encode() + b"\n")])


def expected_frames(source: VideoFile | Pictures, order: Order) -> int | None:
    """How many frames the header lets expect: only ever used to show progress."""
    if order.start is None and order.end is None and order.fps is None and source.frame_count:
        return source.frame_count
    part_s = expected_s(source, order)
    return None if part_s is None else max(1, round(part_s * min(1 / source.frame_s, order.fps or math.inf)))


def describe(source: VideoFile | Pictures, first: VideoFrame, turn: Turn, order: Order) -> dict[str, Any]:
    aspect = source.sample_aspect_ratio
    aspect = 1 / aspect if turn.transpose else aspect
    return {
        "size": (first.width, first.height) if turn.transpose else (first.height, first.width),
        "rotation": turn.degrees,
        "mirrored": turn.mirrored,
        "sample_aspect_ratio": (aspect.numerator, aspect.denominator),
        "codec": source.codec,
        "start_s": source.first_s or 0.0,
        "total": expected_frames(source, order),
    }


@dataclass
class Selection:
    """The frames of the part asked for, and the time of each from the first frame of the video on."""

    order: Order
    origin: float
    frame_s: float
    ended: bool = False
    """The end of the part was reached before that of the file."""
    last_s: float = -1.0
    """The time of the last frame that was seen."""
    guessed: int = 0
    """How many frames had no time, or none after the frame before."""

    def of(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[VideoFrame, float]]:
        order = self.order
        part_start: float | None = None
        tick = -1
        for frame in frames:
            time = round(frame.time - self.origin, 9) if frame.time is not None else -1.0
            if time <= self.last_s or time < 0:
                time = max(self.last_s + self.frame_s, 0.0)
                self.guessed += 1
            self.last_s = time
            if order.end is not None and time >= order.end:
                self.ended = True
                return
            if order.start is not None and time < order.start:
                continue
            part_start = time if part_start is None else part_start
            if order.fps is not None:
                step = int((time - part_start) * order.fps + TICK_TOLERANCE)
                if step <= tick:
                    continue
                tick = step
            if time - part_start > order.max_duration_s:
                raise too_long(time - part_start, order)
            yield frame, time


def decode(source: VideoFile | Pictures, order: Order) -> None:
    """Say what the video is, learn the size, write the frames, say how it ended."""
    frames = source.frames()
    first = next(frames, None)
    if first is None:
        raise Refusal("UnreadableVideo", "not one frame of the video stream can be decoded", actual=0)
    turn, origin = Turn.of(first), source.first_s or 0.0
    say(video=describe(source, first, turn, order))
    height, width = (int(side) for side in sys.stdin.readline().split())
    upright = Upright(turn, (height, width), order.threads)
    looks_long = looks_too_long(source, order)
    if looks_long:
        check_packets(source, origin, order)
    if looks_long or (order.start or 0.0) > SEEK_AFTER_S:
        frames = source.frames_from(origin + (order.start or 0.0))
    else:
        frames = chain([first], frames)

    kept = resized = 0
    selection = Selection(order, origin, source.frame_s)
    for frame, time in selection.of(frames):
        check_room(kept, 3 * height * width, order)
        resized += (frame.width, frame.height) != (first.width, first.height)
        pixels = upright.rows(frame)
        kept += 1
        if order.spool is not None:  # first the pixels, so that a frame that was announced is there
            write_rows(order.spool, pixels)
        say(frame=kept, time=time)
        if order.spool is None:
            write_rows(sys.stdout.fileno(), pixels)
    if not selection.ended and source.ends_early():
        raise Refusal("UnreadableVideo", good_part("the file ends early", source), actual=source.decoded)
    if not kept:
        last_s = max(selection.last_s, 0.0)
        raise Refusal("NoFrames", f"no frame lies in the part asked for; the last one seen is at {last_s:.3f} s")
    say(
        done={
            "frames": kept,
            "guessed": selection.guessed,
            "resized": resized,
            "damaged": source.damaged,
            "lost": 0 if selection.ended else source.lost_frames(),
            "no_end_mark": not selection.ended and source.has_no_end_mark(),
        }
    )


def good_part(what: str, source: VideoFile | Pictures) -> str:
    """What went wrong, how much is good, and how to get that."""
    last_s = math.floor(1000 * ((source.last_s or 0.0) - (source.first_s or 0.0)) + 1e-6) / 1000
    advice = f"; `end={last_s:.3f}` takes the part before" if last_s > 0 else ""
    return f"{what} after {source.decoded} good frames{advice}"


def expected_s(source: VideoFile | Pictures, order: Order) -> float | None:
    """How long the part is by the header."""
    if source.duration_s is None:
        return None
    return min(source.duration_s, order.end or math.inf) - (order.start or 0.0)


def looks_too_long(source: VideoFile | Pictures, order: Order) -> bool:
    """By the header, which may lie."""
    frames, seconds = expected_frames(source, order) or 0, expected_s(source, order) or 0.0
    return frames > order.max_frames or seconds > order.max_duration_s


def check_packets(source: VideoFile | Pictures, origin: float, order: Order) -> None:
    """Refuse what is too long before all up to the limit is decoded in vain: a packet is read in microseconds."""
    start, end = order.start or 0.0, order.end or math.inf
    counts = order.fps is None and source.has_one_frame_a_packet
    first, last, frames = math.inf, -math.inf, 0
    for time in source.packet_times():
        if start <= time - origin < end:
            first, last, frames = min(first, time), max(last, time), frames + 1
            if last - first > order.max_duration_s:
                raise too_long(max(last - first, expected_s(source, order) or 0.0), order)
            if counts and frames > order.max_frames:
                raise too_many_frames(max(frames, expected_frames(source, order) or 0), order)


def check_room(kept: int, frame_bytes: int, order: Order) -> None:
    """One more frame has to be within the limits."""
    if kept == order.max_frames:
        raise too_many_frames(kept + 1, order)
    if order.spool is not None and (kept + 1) * frame_bytes > order.max_bytes:
        raise Refusal(
            "TooManyFrames",
            f"decoded, more than {kept} frames of this size would take more than {order.max_bytes} bytes",
            limit=kept,
            actual=kept + 1,
        )


def too_many_frames(actual: int, order: Order) -> Refusal:
    limit = order.max_frames
    return Refusal("TooManyFrames", f"the video has more than {limit} frames", limit=limit, actual=actual)


def too_long(actual_s: float, order: Order) -> Refusal:
    limit = order.max_duration_s
    return Refusal("TooLong", f"the video runs for more than {limit:g} s", limit=limit, actual=round(actual_s, 3))


def as_refusal(error: Exception, source: VideoFile | Pictures | None, order: Order) -> Refusal:
    """What a failure means for the file.

    Damaged files raise nearly anything: libav's errors, UnicodeDecodeError, AttributeError, ZeroDivisionError.
    """
    if isinstance(error, Refusal):
        return error
    traceback.print_exception(error)
    code = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or code == errno.ENOMEM:
        return Refusal("OutOfMemoryBudget", "decoding takes more memory than it may", limit=order.memory_bytes)
    if code == errno.ENOSPC:
        return Refusal("StorageFull", "there is no room for the decoded frames")
    words = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())[:200]
    if source is None:
        return Refusal("UnreadableVideo", f"the file cannot be opened as a video ({words})")
    return Refusal("UnreadableVideo", good_part(f"decoding breaks off ({words})", source), actual=source.decoded)


def main() -> NoReturn:
    order = Order(**json.loads(sys.argv[1]))
    sandbox.die_with(order.parent)
    av.logging.restore_default_callback()  # to stderr, in C: the one in Python can deadlock with libav's threads
    av.logging.set_libav_level(av.logging.ERROR)
    if order.picture_count is not None:
        Pictures.prepare()
    applied = sandbox.confine(memory_bytes=order.memory_bytes, cpu_s=order.cpu_s, file_bytes=order.max_bytes)
    say(sandbox=applied)
    source: VideoFile | Pictures | None = None
    try:
        if order.picture_count is None:
            source = VideoFile(order.input, max_pixels=order.max_pixels, threads=order.threads)
        else:
            source = Pictures(
                order.input, count=order.picture_count, rate=order.picture_rate, max_pixels=order.max_pixels
            )
        decode(source, order)
    except BrokenPipeError:
        pass  # nobody waits for the frames any more
    except Exception as error:
        say(error=as_refusal(error, source, order).message)
    os._exit(0)  # codecs need not tidy up


if __name__ == "__main__":
    main()
