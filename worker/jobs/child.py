"""The warm process: loads torch and models once, runs one job after another, is stopped and replaced by its parent.

Parent and child speak JSON lines over two pipes. To the child: {"run": Assignment} and {"cancel": execution}. From
it: {"ready": ...}, {"begun": execution}, {"progress": Progress}, and one of {"done": execution},
{"stopped": execution}, {"failed": execution, "problem": Problem}. The parent's side imports no torch; the child's
side is a module that calls `work_for_parent` when it is run, by default this one.
"""

import contextlib
import ctypes
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from pydantic import BaseModel

from service.settings import Settings

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
CANCEL_WITHIN_S = 1.2  # then the child is killed: a cancelled job is off the GPU within two seconds
START_TIMEOUT_S = 120.0  # torch and a model from a slow disk; then it is started anew


class Assignment(BaseModel):
    """One execution of a job."""

    job_id: str
    execution: str


Send = Callable[[dict[str, Any]], None]


class Runner(Protocol):
    """What does the work in the child: `worker.jobs.tasks.Runner`, or a test's own."""

    def warm_up(self) -> None: ...
    def about(self) -> dict[str, Any]: ...
    def run(self, job_id: str, execution: str) -> None: ...
    def cancel(self, execution: str) -> None: ...


class Child:
    """The parent's handle of the warm process."""

    def __init__(self, settings: Settings, module: str = "worker.jobs.child") -> None:
        self._settings = settings
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self.started_at = 0.0
        """When it was started last, by the monotonic clock."""
        self.is_warm = False
        """Whether it has told that it can work."""
        self.about: dict[str, Any] = {}
        """What the child told of itself when it was ready: device, models, sandbox."""

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process; it warms up while the parent goes on."""
        self.kill()
        self._buffer, self.started_at = b"", time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_without_settings() | {"UVOS_CHILD_SETTINGS": self._settings.model_dump_json()},
            process_group=0,  # Ctrl-C in the terminal reaches the parent alone, which ends the child in order
        )

    def run(self, assignment: Assignment) -> None:
        """Give it work; one that has died does nothing with it, and `receive` says so."""
        self._send({"run": assignment.model_dump()})

    def cancel(self, execution: str) -> None:
        """Ask it to stop what it does."""
        self._send({"cancel": execution})

    def _send(self, message: dict[str, Any]) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: `receive` says so
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, None where there is none within the time.

        Raises:
            EOFError: the process has died.
        """
        if self._process is None:
            raise EOFError("the worker's child is not there")
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise EOFError("the worker's child has died")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "ready" in message:
            self.about, self.is_warm = message["ready"], True
        return message

    def kill(self) -> int | None:
        """End it now, whatever it does; its exit code."""
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


def _without_settings() -> dict[str, str]:
    """The environment without ours: the child needs no address of the queue, and what it decodes no secret."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UVOS_")}


# --- the child's side


def main() -> None:
    """Segment videos until the parent is gone."""

    def make(settings: Settings, send: Send) -> Runner:
        from worker.jobs.tasks import Runner  # torch comes in here

        return Runner(settings, send)

    work_for_parent(make)


def work_for_parent(make: Callable[[Settings, Send], Runner]) -> None:
    """Run assignments until the parent is gone."""
    _die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent decides when a job is handed back
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever prints, prints to the log
    logging.basicConfig(level=logging.INFO, format="%(asctime)s child[%(process)d] %(message)s")
    settings = Settings.model_validate_json(os.environ.pop("UVOS_CHILD_SETTINGS"))

    def send(message: dict[str, Any]) -> None:
        out.write(json.dumps(message).encode() + b"\n")

    runner = make(settings, send)
    inbox: list[Assignment] = []
    arrived = threading.Condition()

    def listen() -> None:
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "cancel" in message:
                runner.cancel(message["cancel"])
            else:
                with arrived:
                    inbox.append(Assignment.model_validate(message["run"]))
                    arrived.notify()
        os._exit(0)  # the parent is gone

    threading.Thread(target=listen, daemon=True).start()
    runner.warm_up()
    send({"ready": runner.about()})
    while True:
        with arrived:
            while not inbox:
                arrived.wait()
            assignment = inbox.pop(0)
        send({"begun": assignment.execution})
        runner.run(assignment.job_id, assignment.execution)
        send({"ready": runner.about()})


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however it dies."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    main()
