"""Progress of a command: bars on a terminal, lines in a log file."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

LINE_EVERY_S = 30.0
"""Between two lines where there is no terminal: a log file shows at least one line a minute."""


class CommandProgress:
    """Shows tasks as bars on a terminal and as one line at regular intervals elsewhere.

    Args:
        console: Where to write; default: standard error.
        line_every_s: Seconds between two lines where the console is no terminal.
        enabled: False shows nothing (processes of a distributed run other than the first).
    """

    def __init__(
        self, *, console: Console | None = None, line_every_s: float = LINE_EVERY_S, enabled: bool = True
    ) -> None:
        self._console = console or Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        has_bars = enabled and self._console.is_terminal
        self._bars = Bars(*columns, TimeElapsedColumn(), console=self._console, disable=not has_bars)
        self._line_every_s = line_every_s
        self._has_lines = enabled and not has_bars
        self._latest: str | None = None
        self._tasks: dict[str, int] = {}
        self._began = time.monotonic()
        self._stopped = threading.Event()
        self._printer = threading.Thread(target=self._print_lines, name="progress", daemon=True)

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
            self._print_line()
        self._bars.stop()

    def update(self, task: str, done: int, total: int | None = None, *, detail: str = "") -> None:
        """Show the state of a task; the first call creates it.

        Args:
            task: Name of the task.
            done: Units done.
            total: Units in all, where known.
            detail: Short text behind the name, such as the loss.
        """
        description = f"{task} {detail}".rstrip()
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(description, total=total)
        self._bars.update(self._tasks[task], description=description, completed=done, total=total)  # type: ignore[arg-type]  # rich's own TaskID
        self._latest = f"{description}: {done}" + ("" if total is None else f" of {total}")

    def remove(self, task: str) -> None:
        """Take a task that is done off the screen."""
        self._bars.remove_task(self._tasks.pop(task))  # type: ignore[arg-type]

    def _print_lines(self) -> None:
        while not self._stopped.wait(self._line_every_s):
            self._print_line()

    def _print_line(self) -> None:
        if self._latest is not None:
            seconds = time.monotonic() - self._began
            self._console.print(f"{self._latest} after {seconds:.0f} s", highlight=False, markup=False)
