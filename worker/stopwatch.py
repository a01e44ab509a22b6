"""Time per stage, measured where it is spent."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from uvos.contract import Stage


class Stopwatch:
    """Seconds spent in each stage. Time in a nested stage does not count towards the enclosing one."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(Stage, 0.0)
        self._open: list[Stage] = []

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Measure a block of the main thread; blocks can be nested."""
        start = time.perf_counter()
        self._open.append(stage)
        try:
            yield
        finally:
            self._open.pop()
            self.add(stage, time.perf_counter() - start)

    @contextmanager
    def tile(self, stage: Stage, threads: int) -> Iterator[None]:
        """Measure a block of one of `threads` threads that compute together while the main thread waits in a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - start) / threads)

    def add(self, stage: Stage, seconds: float) -> None:
        """Count time within the open stage to another stage."""
        with self._lock:
            self._seconds[stage] += seconds
            if self._open:
                self._seconds[self._open[-1]] -= seconds

    def report(self) -> dict[str, float]:
        """Seconds by stage, and in total."""
        seconds = {stage.value: seconds for stage, seconds in self._seconds.items()}
        seconds["total"] = time.perf_counter() - self._start
        return {name: round(value, 4) for name, value in seconds.items()}
