"""Progress of a command: bars on a terminal, lines at regular intervals elsewhere."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 30.0  # a log file shows at least one line per minute


class CommandProgress:
    """Shows tasks as bars on a terminal; elsewhere prints at intervals one line for each task that has changed.

    Args:
        console: Where to print; default: standard error.
        line_every_s: Seconds between lines where the console is not a terminal.
        enabled: False prints nothing, for the secondary processes of a distributed run.
    """

    def __init__(
        self, *, console: Console | None = None, line_every_s: float = LINE_EVERY_S, enabled: bool = True
    ) -> None:
        self._console = console or Console(stderr=True)
        has_bars = enabled and self._console.is_terminal
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn())
        count = TextColumn("{task.fields[count]}")
        self._bars = Progress(*columns, count, TimeElapsedColumn(), console=self._console, disable=not has_bars)
        self._line_every_s = line_every_s
        self._has_lines = enabled and not has_bars
        self._tasks: dict[str, TaskID] = {}
        self._changed: dict[str, str] = {}
        self._lock = threading.Lock()
        self._started_at = time.monotonic()
        self._stopped = threading.Event()
        self._printer = threading.Thread(target=self._print_periodically, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._bars.start()
        if self._has_lines:
            self._printer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._has_lines:
            self._printer.join()
            self._print_lines()
        self._bars.stop()

    def update(self, task: str, done: float, total: float | None = None, *, detail: str = "") -> None:
        """Show the state of a task; the first call adds it.

        Args:
            task: Name of the task.
            done: Completed units.
            total: All units, if known.
            detail: Short text after the name, such as the loss.
        """
        description = f"{task} {detail}".rstrip()
        has_units = isinstance(done, int) and bool(done or total)
        count = (f"{done}" if total is None else f"{done} of {total}") if has_units else ""
        with self._lock:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(description, total=total, count=count)
            self._changed.pop(task, None)  # keeps the latest task last
            self._changed[task] = f"{description}: {count}" if count else description
        self._bars.update(self._tasks[task], description=description, completed=done, total=total, count=count)

    def remove(self, task: str) -> None:
        """Remove a task from the display."""
        with self._lock:
            self._bars.remove_task(self._tasks.pop(task))
            self._changed.pop(task, None)

    def _print_periodically(self) -> None:
        lines: list[str] = []
        while not self._stopped.wait(self._line_every_s):
            lines = self._print_lines() or self._print(lines[-1:])  # unchanged: the latest line again, as a heartbeat

    def _print_lines(self) -> list[str]:
        """Print the tasks that have changed since the last call."""
        with self._lock:
            lines, self._changed = list(self._changed.values()), {}
        return self._print(lines)

    def _print(self, lines: list[str]) -> list[str]:
        seconds = time.monotonic() - self._started_at
        for line in lines:
            self._console.print(f"{line} after {seconds:.0f} s", highlight=False, markup=False, soft_wrap=True)
        return lines
