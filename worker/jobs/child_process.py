"""The child process of a worker: loads torch and the models once, then runs one execution after another."""

import contextlib
import ctypes
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from service.logs import configure_logging, job_context
from service.settings import Settings
from uvos.errors import UvosError
from worker.jobs.child import SETTINGS_VARIABLE
from worker.jobs.messages import TO_CHILD, Begun, Cancel, FromChild, Ready, Run, StartFailed, encode

PR_SET_PDEATHSIG = 1
MAX_REASON = 500  # characters

Send = Callable[[FromChild], None]


class Runner(Protocol):
    """Runs executions: `worker.jobs.tasks.TaskRunner`, or a stub in tests."""

    def warm_up(self) -> None: ...
    def ready(self) -> Ready: ...
    def run(self, run: Run) -> None: ...
    def cancel(self, execution: str) -> None: ...


def main() -> None:
    """Segment videos until the worker exits."""

    def create_runner(settings: Settings, send: Send) -> Runner:
        from worker.jobs.tasks import TaskRunner  # imports torch, after output has been redirected

        return TaskRunner(settings, send)

    serve_worker(create_runner)


def serve_worker(create_runner: Callable[[Settings, Send], Runner]) -> None:
    """Run executions until the worker exits: messages arrive on standard input, leave on standard output."""
    _exit_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only the worker decides when a job is handed back
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # libraries that print must not corrupt the messages

    def send(message: FromChild) -> None:
        output.write(encode(message))

    runs: queue.SimpleQueue[Run] = queue.SimpleQueue()
    try:
        settings = Settings.model_validate_json(os.environ.pop(SETTINGS_VARIABLE))
        configure_logging("child", as_json=settings.log_format == "json")
        runner = create_runner(settings, send)
        threading.Thread(target=_receive, args=(runner, runs), daemon=True).start()
        runner.warm_up()
    except Exception as error:
        send(StartFailed(reason=f"{type(error).__name__}: {error}"[:MAX_REASON]))
        if isinstance(error, (UvosError, OSError, RuntimeError, ValueError)):
            sys.exit(1)  # the worker reports the reason
        raise
    send(runner.ready())
    while True:
        run = runs.get()
        send(Begun(execution=run.execution))
        with job_context(run.job_id, run.trace_id):
            runner.run(run)
        send(runner.ready())


def _receive(runner: Runner, runs: "queue.SimpleQueue[Run]") -> None:
    for line in sys.stdin.buffer:
        match TO_CHILD.validate_json(line):
            case Cancel(execution=execution):
                runner.cancel(execution)
            case Run() as run:
                runs.put(run)
    os._exit(0)  # the worker has exited


def _exit_with_parent() -> None:
    """Have the kernel kill this process when its parent exits."""
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    main()
