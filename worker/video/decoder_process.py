"""The decoder process seen from its parent: start, read and validate messages, enforce time limits, end.

A video may have compromised the process, so all of its output is untrusted and validated.
"""

import contextlib
import fcntl
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, ValidationError

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
from worker.video.messages import (
    AnyMessage,
    DecodeFailure,
    DecoderOptions,
    DecodeSummary,
    FrameMessage,
    SandboxReport,
    VideoHeader,
)

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
MESSAGES: TypeAdapter[AnyMessage] = TypeAdapter(Annotated[AnyMessage, Field(discriminator="type")])
PROGRESS_INTERVAL_S = 0.1  # between calls of on_progress, which may cancel, while the decoder works
EXIT_TIMEOUT_S = 10.0  # from the end of its output to the end of the process
MAX_LINE = 2**16
PIPE_BYTES = 2**20  # a full-size frame in few reads; the default is 64 KiB
# libav's message for a coded size beyond `max_pixels` that cannot even be allocated.
TOO_MANY_PIXELS = re.compile(rb"Picture size (\d+)x(\d+) exceeds specified max pixel count")

OnFrameProgress = Callable[[int, int | None], None]
"""Called with frames done and, if known, frames expected; an exception it raises cancels the decoding."""


class DecoderLost(Exception):
    """The decoder was killed or is stuck, which the file need not have caused: worth one retry.

    libav's threads can deadlock on a damaged frame (observed with HEVC); a single thread does not.
    """

    def __init__(self, error: UvosError) -> None:
        super().__init__(error.detail)
        self.error = error
        """Raised if the retry fails in the same way."""


class DecoderProcess:
    """The decoder process, from start to guaranteed end (a context manager)."""

    def __init__(self, options: DecoderOptions, on_progress: OnFrameProgress | None = None) -> None:
        """Start the process.

        Args:
            options: Input, limits and open files, which the process inherits.
            on_progress: Called every `PROGRESS_INTERVAL_S` while waiting, and at the end.
        """
        self.options, self.limits, self.on_progress = options, options.limits, on_progress
        self.frames = 0
        self.sandbox: tuple[str, ...] = ()
        """Restrictions reported by the process."""
        self.summary: DecodeSummary | None = None
        self._expected_frames: int | None = None
        self._remaining_s = self.limits.timeout_s
        self._reported_at = 0.0
        self._buffer = bytearray()
        os.lseek(options.input_fd, 0, os.SEEK_SET)  # the position is shared with this process and its predecessor
        self._stderr, stderr = os.pipe()
        os.set_blocking(self._stderr, False)
        os.set_blocking(stderr, False)  # excess messages are dropped instead of blocking the decoder
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", "worker.video.decoder", options.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=[file for file in (options.input_fd, options.spool_fd) if file is not None],
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
        with contextlib.suppress(OSError):  # the user's limit of pipe memory may be exhausted
            fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stdin.close()
        self._stdout.close()
        os.close(self._stderr)

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        self._process.wait()

    def read_header(self) -> VideoHeader:
        """The properties of the video; to be answered with `set_size`."""
        report = self._message()
        if not isinstance(report, SandboxReport):
            raise UnreadableVideo("the decoder did not report its sandbox")
        self.sandbox = report.applied
        logger.debug("decoder sandboxed by %s", ", ".join(self.sandbox))
        header = self._message()
        if not isinstance(header, VideoHeader) or header.size[0] * header.size[1] > self.limits.max_pixels:
            raise UnreadableVideo("the decoder sent no valid description of the video")
        self._expected_frames = header.expected_frames
        return header

    def set_size(self, size: tuple[int, int]) -> None:
        """Set the size (H, W) that frames are scaled to; decoding starts."""
        with contextlib.suppress(BrokenPipeError):  # the next read detects that the process has ended
            self._stdin.write(b"%d %d\n" % size)

    def has_output(self) -> bool:
        """Whether `next_frame` will not block for long: there is output, or the process has ended."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        return b"\n" in self._buffer or bool(poll.poll(0))

    def next_frame(self) -> FrameMessage | None:
        """Wait for the next frame; None after the last frame."""
        message = self._message()
        if isinstance(message, DecodeSummary):
            if message.frames != self.frames:
                raise UnreadableVideo(f"the decoder announced {self.frames} frames and counted {message.frames}")
            self.summary = message
            self._report_progress(last=True)
            return None
        if not isinstance(message, FrameMessage) or message.number != min(self.frames + 1, self.limits.max_frames):
            raise UnreadableVideo("the decoder announced frames out of order")
        self.frames += 1
        return message

    def read_into(self, pixels: memoryview) -> None:
        """Read the bytes that follow a frame message."""
        filled = min(len(self._buffer), len(pixels))
        pixels[:filled] = self._buffer[:filled]
        del self._buffer[:filled]
        while filled < len(pixels):
            self._wait()
            count = os.readv(self._stdout.fileno(), [pixels[filled:]])
            if not count:
                raise self._exit_error()
            filled += count

    def _message(self) -> AnyMessage:
        while (end := self._buffer.find(b"\n")) < 0:
            self._wait()
            data = os.read(self._stdout.fileno(), MAX_LINE)
            if not data:
                raise self._exit_error()
            self._buffer += data
            if len(self._buffer) > 2 * MAX_LINE:
                raise UnreadableVideo(f"the decoder sent a message of more than {MAX_LINE} bytes")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = MESSAGES.validate_json(line)
        except ValidationError as error:
            logger.error("invalid message of the decoder %r: %s", line[:200], error)
            raise UnreadableVideo("the decoder sent an invalid message") from error
        if isinstance(message, DecodeFailure):
            raise self._refusal(message)
        return message

    def _wait(self) -> None:
        """Wait for output, reporting progress; raises when a time limit is exceeded."""
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        began = idle_since = time.monotonic()
        cpu_ticks = -1
        while True:
            self._report_progress()
            remaining_s = self._remaining_s - (time.monotonic() - began)
            if poll.poll(1000 * min(PROGRESS_INTERVAL_S, max(remaining_s, 0.001))):
                self._remaining_s -= time.monotonic() - began
                return
            if remaining_s <= 0:
                raise self._timeout()
            if (now := self._cpu_ticks()) != cpu_ticks:
                cpu_ticks, idle_since = now, time.monotonic()
            elif time.monotonic() - idle_since > self.limits.stall_s:
                logger.warning("the decoder is stuck after %d frames: %s", self.frames, self._stderr_tail())
                raise DecoderLost(UnreadableVideo(f"the decoder is stuck after {self.frames} frames"))

    def _cpu_ticks(self) -> int:
        """CPU time of all threads of the process, in clock ticks."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic_ns()  # unknown: treated as progress
        return int(fields[11]) + int(fields[12])

    def _report_progress(self, *, last: bool = False) -> None:
        if self.on_progress is None or not (last or time.monotonic() - self._reported_at >= PROGRESS_INTERVAL_S):
            return
        expected = self._expected_frames
        total = self.frames if last else None if expected is None else max(expected, self.frames)
        self.on_progress(self.frames, total)
        self._reported_at = time.monotonic()

    def _refusal(self, failure: DecodeFailure) -> UvosError:
        stderr = self._stderr_tail()
        if failure.kind == "UnreadableVideo" and (size := TOO_MANY_PIXELS.search(stderr)):
            width, height = int(size[1]), int(size[2])
            limit = self.limits.max_pixels
            return TooManyPixels(
                f"frames of {width}x{height} have {width * height} pixels; the limit is {limit}",
                limit=limit,
                actual=width * height,
            )
        logger.info("the decoder refused a file (%s: %s); stderr: %s", failure.kind, failure.detail, stderr)
        return REFUSALS.get(failure.kind, UnreadableVideo)(failure.detail, limit=failure.limit, actual=failure.actual)

    def _exit_error(self) -> Exception:
        """The error for a process that ended without a last message."""
        try:
            code = self._process.wait(timeout=EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        logger.warning("the decoder exited with %d after %d frames: %s", code, self.frames, self._stderr_tail())
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            return DecoderLost(OutOfMemoryBudget("the system killed the decoder, possibly for lack of memory"))
        if code == -signal.SIGXCPU:
            return self._timeout()
        reason = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return UnreadableVideo(f"the decoder crashed after {self.frames} frames ({reason})", actual=self.frames)

    def _timeout(self) -> DeadlineExceeded:
        limit = self.limits.timeout_s
        return DeadlineExceeded(f"decoding took more than {limit:g} s", limit=limit, actual=limit)

    def _stderr_tail(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._stderr, MAX_LINE)
        return b""


def environment() -> dict[str, str]:
    """The environment of the decoder: only the variables it needs, since others may hold secrets."""
    inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    return {
        **inherited,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MALLOC_ARENA_MAX": "1",  # each arena takes 64 MiB of the limited address space
        "LC_ALL": "C.UTF-8",
    }
