"""The worker's handle of its child process. Loads no torch.

The child (`child_process.py`) loads torch and the models once and runs one job after another. The worker can kill and
replace it at any moment: at a job's deadline, on cancellation, after an out-of-memory error.
"""

import contextlib
import os
import selectors
import subprocess
import sys
import time

from service.settings import Settings
from worker.jobs.messages import FROM_CHILD, Cancel, FromChild, Ready, Run, StartFailed, ToChild, encode

SETTINGS_VARIABLE = "UVOS_CHILD_SETTINGS"
EXIT_TIMEOUT_S = 1.0  # between the end of the output and the exit


class Child:
    """A child process that can be restarted."""

    def __init__(self, settings: Settings, module: str = "worker.jobs.child_process") -> None:
        self._settings = settings
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self.started_at = 0.0
        """Time of the last start, monotonic clock, seconds."""
        self.is_warm = False
        """Whether the child has loaded its models since the last start."""
        self.state: Ready | None = None
        """The last `Ready` message of the child, also of earlier starts; None if it has never been warm."""
        self.start_error: str | None = None
        """Why the child could not start, if it said so."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process, or restart it; returns before it is warm."""
        self.kill()
        self._buffer, self.started_at, self.start_error = b"", time.monotonic(), None
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment() | {SETTINGS_VARIABLE: self._settings.json_without_secrets()},
            process_group=0,  # Ctrl-C in the terminal reaches the worker only, which stops the child in order
        )

    def run(self, run: Run) -> None:
        """Begin an execution. If the process has died, the next `receive` raises EOFError."""
        self._send(run)

    def cancel(self, execution: str) -> None:
        """Ask the child to stop an execution."""
        self._send(Cancel(execution=execution))

    def _send(self, message: ToChild) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` reports the death of the process
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()

    def receive(self, timeout_s: float) -> FromChild | None:
        """The next message; None if there is none within the timeout.

        Raises:
            EOFError: The process has died or was not started.
        """
        if self._process is None:
            raise EOFError("the child process is not running")
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                with contextlib.suppress(subprocess.TimeoutExpired):  # for its exit code
                    self._process.wait(EXIT_TIMEOUT_S)
                raise EOFError("the child process has died")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message = FROM_CHILD.validate_json(line)
        match message:
            case Ready():
                self.state, self.is_warm = message, True
            case StartFailed(reason=reason):
                self.start_error = reason
        return message

    def kill(self) -> int | None:
        """Kill the process if it runs; its exit code."""
        self.is_warm = False
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None
        return code


def _environment() -> dict[str, str]:
    """The environment without UVOS_*: the child process, which handles untrusted video, must not hold secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UVOS_")}
