"""The decoder seen from outside: start it, listen to it, hold it to its time, end it.

Whoever broke into that process could say anything, so what it says is believed only as far as it validates.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from uvos.errors import (
    DeadlineExceeded,
    NoFrames,
    NoVideoStream,
    OutOfMemoryBudget,
    StorageFull,
    TooLong,
    TooManyFrames,
    TooManyPixels,
    UnreadableVideo,
    UnsupportedCodec,
    UvosError,
)
from worker.video.decoder import Order

logger = logging.getLogger(__name__)

REFUSALS: dict[str, type[UvosError]] = {
    error.__name__: error
    for error in (
        NoFrames,
        NoVideoStream,
        OutOfMemoryBudget,
        StorageFull,
        TooLong,
        TooManyFrames,
        TooManyPixels,
        UnreadableVideo,
        UnsupportedCodec,
    )
}
TICK_S = 0.1  # how often progress is told, and cancelling noticed, while the decoder works
LAST_BREATH_S = 10.0  # from the end of what it says to the end of the process
MAX_LINE = 2**16
PIPE_BYTES = 2**20  # a frame at full size in few reads; the system's default is 64 KiB
# How libav says that a coded size is beyond `max_pixels`, when a frame of that size cannot even be allocated.
TOO_MANY_PIXELS = re.compile(rb"Picture size (\d+)x(\d+) exceeds specified max pixel count")

Progress = Callable[[int, int | None], None]
"""Called with frames done and, where known, frames expected; may raise to stop the decoding."""


class DecoderLost(Exception):
    """The decoder was killed, or makes no progress any more: the first time, its file need not be the cause of it.

    libav's threads can wait for each other for ever over a damaged frame (seen with HEVC); with one thread they do not.
    """

    def __init__(self, error: UvosError) -> None:
        super().__init__(error.detail)
        self.error = error
        """What to say when it happens again."""


class Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Count = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=1, le=2**20)]


class SaidOfVideo(Said):
    size: tuple[Side, Side]
    rotation: Literal[0, 90, 180, 270]
    mirrored: bool
    sample_aspect_ratio: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    codec: str = Field(max_length=32)
    start_s: FiniteFloat
    total: int | None


class SaidAtTheEnd(Said):
    frames: Annotated[int, Field(ge=1)]
    guessed: Count
    resized: Count
    damaged: Count
    lost: Count
    no_end_mark: bool


class SaidOnError(Said):
    kind: str
    detail: str = Field(max_length=600)
    limit: float | int | None = None
    actual: float | int | None = None


class Message(Said):
    sandbox: tuple[str, ...] | None = None
    video: SaidOfVideo | None = None
    frame: int | None = None
    time: FiniteFloat | None = None
    done: SaidAtTheEnd | None = None
    error: SaidOnError | None = None


class DecoderProcess:
    """The decoder's process, from its start to its certain end (a context manager)."""

    def __init__(self, order: Order, *, timeout_s: float, stall_s: float, on_progress: Progress | None = None) -> None:
        """Start it.

        Args:
            order: What to do, with files of ours that it inherits.
            timeout_s: How long all waiting for it may take together.
            stall_s: How long it may say nothing and not compute either.
            on_progress: Told every `TICK_S` while waiting, and at the end.
        """
        self.order, self.timeout_s, self.stall_s, self.on_progress = order, timeout_s, stall_s, on_progress
        self.frames = 0
        self.sandbox: tuple[str, ...] = ()
        """What it says it was confined by."""
        self.video: SaidOfVideo | None = None
        self.done: SaidAtTheEnd | None = None
        self._left_s = timeout_s
        self._told_at = 0.0
        self._buffer = bytearray()
        os.lseek(order.input, 0, os.SEEK_SET)  # it shares the position with us, and with the one before it
        self._stderr, stderr = os.pipe()
        os.set_blocking(self._stderr, False)
        os.set_blocking(stderr, False)  # what is too much to hold is dropped: a flood of messages stops nothing
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", "worker.video.decoder", json.dumps(asdict(order))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=[file for file in (order.input, order.spool) if file is not None],
                bufsize=0,
                cwd="/",
                env=environment(),
            )
        except BaseException:
            os.close(self._stderr)
            raise
        finally:
            os.close(stderr)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        with contextlib.suppress(OSError):  # the user's share of pipe memory may be used up
            fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()
        os.close(self._stderr)

    def answer(self, choose: Callable[[tuple[int, int]], tuple[int, int]]) -> tuple[int, int]:
        """Let `choose` decide, from (H, W) as shown, the size to decode to; returns it."""
        self.sandbox = self._message().sandbox or ()
        logger.debug("decoder confined by %s", ", ".join(self.sandbox))
        video = self._message().video
        if video is None or video.size[0] * video.size[1] > self.order.max_pixels:
            raise UnreadableVideo("the decoder did not say what the video is")
        self.video = video
        size = choose(video.size)
        with contextlib.suppress(BrokenPipeError):  # a decoder that is gone is noticed by the next message
            self._stdin.write(b"%d %d\n" % size)
        return size

    def has_spoken(self) -> bool:
        """Whether there is something to hear, or the process is gone: `next_frame` then need not wait long."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        return b"\n" in self._buffer or bool(poll.poll(0))

    def next_frame(self) -> float | None:
        """The time of the next frame in seconds, once it is there; None after the last one."""
        message = self._message()
        if message.done is not None:
            if message.done.frames != self.frames:
                raise UnreadableVideo("the decoder counted other frames than it announced")
            self.done = message.done
            self._tell(last=True)
            return None
        if message.time is None or message.frame != self.frames + 1 or message.frame > self.order.max_frames:
            raise UnreadableVideo("the decoder announced frames out of order")
        self.frames += 1
        return message.time

    def read_into(self, pixels: memoryview) -> None:
        """The bytes that follow a frame's announcement."""
        held = min(len(self._buffer), len(pixels))
        pixels[:held] = self._buffer[:held]
        del self._buffer[:held]
        filled = held
        while filled < len(pixels):
            self._wait()
            count = os.readv(self._stdout.fileno(), [pixels[filled:]])
            if not count:
                raise self._failure()
            filled += count

    def _message(self) -> Message:
        while (end := self._buffer.find(b"\n")) < 0:
            self._wait()
            data = os.read(self._stdout.fileno(), MAX_LINE)
            if not data:
                raise self._failure()
            self._buffer += data
            if len(self._buffer) > 2 * MAX_LINE:
                raise UnreadableVideo("the decoder does not end its sentences")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = Message.model_validate_json(line)
        except ValidationError as error:
            logger.error("the decoder said %r: %s", line[:200], error)
            raise UnreadableVideo("the decoder said something unintelligible") from error
        if message.error is not None:
            raise self._refusal(message.error)
        return message

    def _wait(self) -> None:
        """Until the decoder has said something, for as long as it may take; tells progress meanwhile."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        began = idle_since = time.monotonic()
        computed = -1
        while True:
            self._tell()
            left_s = self._left_s - (time.monotonic() - began)
            if poll.poll(1000 * min(TICK_S, max(left_s, 0.001))):
                self._left_s -= time.monotonic() - began
                return
            if left_s <= 0:
                limit = self.timeout_s
                raise DeadlineExceeded(f"decoding took more than {limit:g} s", limit=limit, actual=limit)
            if (now := self._computing_time()) != computed:
                computed, idle_since = now, time.monotonic()
            elif time.monotonic() - idle_since > self.stall_s:
                logger.warning("the decoder is stuck after %d frames: %s", self.frames, self._last_words())
                raise DecoderLost(UnreadableVideo(f"the decoder is stuck after {self.frames} frames"))

    def _computing_time(self) -> int:
        """Of all its threads, in clock ticks."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic_ns()  # not known here: taken for alive
        return int(fields[11]) + int(fields[12])

    def _tell(self, *, last: bool = False) -> None:
        if self.on_progress is None or not (last or time.monotonic() - self._told_at >= TICK_S):
            return
        expected = self.video.total if self.video is not None else None
        total = self.frames if last else None if expected is None else max(expected, self.frames)
        self.on_progress(self.frames, total)
        self._told_at = time.monotonic()

    def _refusal(self, error: SaidOnError) -> UvosError:
        words = self._last_words()
        if error.kind == "UnreadableVideo" and (size := TOO_MANY_PIXELS.search(words)):
            width, height = int(size[1]), int(size[2])
            return TooManyPixels(
                f"frames of {width}x{height} have {width * height} pixels; the limit is {self.order.max_pixels}",
                limit=self.order.max_pixels,
                actual=width * height,
            )
        logger.info("the decoder refused a file (%s: %s); its last words: %s", error.kind, error.detail, words)
        return REFUSALS.get(error.kind, UnreadableVideo)(error.detail, limit=error.limit, actual=error.actual)

    def _failure(self) -> Exception:
        """What it means that the decoder ended without a word."""
        try:
            code = self._process.wait(timeout=LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        logger.warning("the decoder ended with %d after %d frames: %s", code, self.frames, self._last_words())
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            return DecoderLost(OutOfMemoryBudget("the system ended the decoder, perhaps for want of memory"))
        if code == -signal.SIGXCPU:
            limit = self.timeout_s
            return DeadlineExceeded(f"decoding took more than {limit:g} s", limit=limit, actual=limit)
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return UnreadableVideo(f"the decoder crashed after {self.frames} frames ({how})", actual=self.frames)

    def _last_words(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._stderr, MAX_LINE)
        return b""


def environment() -> dict[str, str]:
    """What the decoder needs to start, and nothing else of ours, which may hold secrets."""
    needed = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    return {
        **needed,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MALLOC_ARENA_MAX": "1",  # each takes 64 MiB of the address space that is limited
        "LC_ALL": "C.UTF-8",
    }
