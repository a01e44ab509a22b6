"""Supervise the processes of `uvos up`: start them in order, restart dead ones with backoff, stop them in order.

Only a process that cannot be started ends the service; a process that dies after it has started is restarted.
"""

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import EADDRINUSE
from itertools import chain
from types import FrameType
from typing import Protocol

log = logging.getLogger(__name__)

CANNOT_START = 3  # exit status of a process that cannot start, for which a restart is pointless; uvicorn uses it too
POLL_INTERVAL_S = 0.2
STOP_TIMEOUT_S = 30.0  # longer than the grace period of a worker
ORPHAN_GRACE_S = 5.0  # to hand a running job back
BACKLOG = 2048  # connections that wait while the API restarts


class CannotStart(RuntimeError):
    """A process cannot be started, so the service ends."""

    def __init__(self, message: str, *, is_reported: bool) -> None:
        super().__init__(message)
        self.is_reported = is_reported
        """Whether the process itself has printed why it cannot start."""


class Service(Protocol):
    """A process that can be supervised."""

    name: str

    def start(self) -> object:
        """Start the process, or restart it after it died; raises RuntimeError if it does not start."""

    def poll(self) -> int | None:
        """The exit status; None while the process runs. Negative: the signal that killed it."""

    def terminate(self) -> None:
        """Ask the process to stop."""

    def wait(self, timeout_s: float) -> None:
        """Wait until it has stopped; kill it after the timeout."""


class AttachedProcess:
    """A subprocess that holds the read end of a pipe and stops when this process dies (`exit_with_parent`)."""

    def __init__(
        self, name: str, command: Sequence[str], environment: dict[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._pass_fds = pass_fds
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._close_pipe()
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            pass_fds=self._pass_fds,
            process_group=0,  # Ctrl-C in the terminal reaches this process only, which stops the others in order
        )

    def poll(self) -> int | None:
        return self._process.poll() if self._process is not None else 0

    def terminate(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


@dataclass(frozen=True)
class Backoff:
    """When a dead process is restarted."""

    first_s: float = 0.5
    """Delay before the first restart; doubled for each further one."""
    max_s: float = 15.0
    stable_s: float = 10.0
    """A process that has run for this long has started; its next restart has the first delay again."""
    max_failed_starts: int = 5
    """Failed restarts in sequence before the service ends. The first start may not fail."""

    def delay_s(self, failures: int) -> float:
        return min(self.first_s * 2.0 ** (failures - 1), self.max_s)


DEFAULT_BACKOFF = Backoff()


class Supervisor:
    """Runs groups of processes."""

    def __init__(self, groups: Sequence[Sequence[Service]], backoff: Backoff = DEFAULT_BACKOFF) -> None:
        """Create a supervisor.

        Args:
            groups: Started in this order, stopped in reverse; the members of a group stop at the same time.
            backoff: When dead processes are restarted.
        """
        self._groups = groups
        self._states = [_Supervised(service, backoff) for service in chain(*groups)]
        self._stopping = threading.Event()

    def run(self) -> None:
        """Run all processes until `stop`, SIGINT or SIGTERM.

        Raises:
            CannotStart: A process cannot be started.
        """
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._on_signal) for number in signals}
        try:
            for state in self._states:
                state.start()
            while not self._stopping.wait(POLL_INTERVAL_S):
                for state in self._states:
                    state.keep_running()
        finally:
            self._stopping.set()
            for group in reversed(self._groups):
                for service in group:
                    service.terminate()
                deadline = time.monotonic() + STOP_TIMEOUT_S
                for service in group:
                    service.wait(max(0.1, deadline - time.monotonic()))
            for number, handler in previous.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Have `run` stop all processes and return."""
        self._stopping.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  # a signal handler
        if self._stopping.is_set():  # the second signal: workers hand their jobs back at once
            for service in chain(*self._groups[1:]):
                service.terminate()
        self.stop()


class _Supervised:
    """A process and the history of its starts."""

    def __init__(self, service: Service, backoff: Backoff) -> None:
        self.service = service
        self._backoff = backoff
        self._starts = 0
        self._failures = 0
        self._failed_starts = 0
        self._started_at = 0.0
        self._restart_at: float | None = None

    def start(self) -> None:
        self._starts += 1
        self._started_at, self._restart_at = time.monotonic(), None
        try:
            self.service.start()
        except RuntimeError as error:
            self._after_failed_start(str(error), is_reported=False)

    def keep_running(self) -> None:
        """Restart the process if it has died and the delay is over."""
        now = time.monotonic()
        if self._restart_at is not None:
            if now >= self._restart_at:
                self.start()
            return
        status = self.service.poll()
        has_started = now - self._started_at >= self._backoff.stable_s
        if status is None:
            if has_started:
                self._failures = self._failed_starts = 0
            return
        if status == CANNOT_START or (self._starts == 1 and status > 0 and not has_started):
            self._after_failed_start(f"exit status {status}", is_reported=True)
        else:
            self._schedule_restart(f"exited with status {status}")

    def _after_failed_start(self, reason: str, *, is_reported: bool) -> None:
        self._failed_starts += 1
        if self._starts == 1 or self._failed_starts >= self._backoff.max_failed_starts:
            raise CannotStart(f"the {self.service.name} cannot start: {reason}", is_reported=is_reported)
        self._schedule_restart(f"could not start ({reason})")

    def _schedule_restart(self, reason: str) -> None:
        self._failures += 1
        delay_s = self._backoff.delay_s(self._failures)
        self._restart_at = time.monotonic() + delay_s
        log.warning("the %s %s; restarting it in %g s", self.service.name, reason, delay_s)


def listen(host: str, port: int) -> socket.socket:
    """Bind a listening socket.

    Raises:
        OSError: The address is in use or cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # accepted sockets inherit it; asyncio sets it only on sockets whose protocol number is given
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        reason = "another process uses it" if error.errno == EADDRINUSE else error.strerror or str(error)
        raise OSError(f"cannot listen on {host} port {port}: {reason}. Choose another with --port") from error


def exit_with_parent(stop: Callable[[], None]) -> None:
    """Call `stop` when standard input closes, and exit `ORPHAN_GRACE_S` later at the latest; returns at once.

    The kernel closes the pipe however the parent dies. Its signal for this purpose, PR_SET_PDEATHSIG, reports the
    death of the thread that started the process instead.
    """

    def watch() -> None:
        while os.read(0, 1 << 12):
            pass
        stop()
        time.sleep(ORPHAN_GRACE_S)
        os._exit(1)  # closes the pipes to processes that this one has started, which then stop in the same way

    threading.Thread(target=watch, daemon=True).start()
