"""Threads that each work on their own tile: how every stage uses all cores of a CPU."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch
from torch import Tensor

PULSE_S = 0.5  # longest time between two calls of `on_pulse`


class TilePool:
    """Runs a function over ranges of rows, one range per thread at a time, each torch operation in one thread.

    torch's own threads share every single operation and wait for each other after it. On tiles that fit a core's
    cache that takes longer than the work itself, and on a busy machine (measured with six other processes on two
    cores) fifty times longer. With one thread, as on a GPU, which has one queue, ranges run in turn.

    Args:
        threads: `Backend.threads`.
        on_pulse: Called with (frames done, all frames) from the thread that calls `run` or `advance`, at least every
            `PULSE_S` while tiles run. An exception from it cancels the run. Default: no reports. May be replaced
            between runs, when another stage begins.
    """

    def __init__(self, threads: int, on_pulse: Callable[[int, int], None] | None = None) -> None:
        self.threads = threads
        self.on_pulse = on_pulse or (lambda _done, _total: None)
        self._progress = 0, 0
        self._executor = ThreadPoolExecutor(threads, "tile-pool") if threads > 1 else None
        if self._executor is not None:
            started = threading.Barrier(threads)

            def limit_torch(_: int) -> None:
                torch.get_num_threads()  # a thread reads the common setting at its first use of torch, and only then
                torch.set_num_threads(1)
                started.wait()

            list(self._executor.map(limit_torch, range(threads)))
            torch.set_num_threads(threads)  # this thread's setting is the one that later threads start from

    def advance(self, done: int, total: int) -> None:
        """Report that `done` of `total` frames are done; pulses repeat it until the next call."""
        self._progress = done, total
        self.on_pulse(done, total)

    def step(self, total: int, most: int) -> int:
        """The size of ranges, at most `most`, with which every thread gets the same number of them."""
        ranges = self.threads * -(-total // (self.threads * most))
        return max(1, -(-total // max(1, ranges)))

    def run(self, work: Callable[[int, int], None], total: int, step: int) -> None:
        """Call `work(start, stop)` for ranges of `step` up to `total`, in any order, and wait for all.

        An exception from `work` or `on_pulse` ends the run: ranges not yet started are skipped, running ones are
        awaited, then it is raised.
        """
        if self._executor is None or total <= step:
            for start in range(0, total, step):
                work(start, min(start + step, total))
                self.on_pulse(*self._progress)
            return
        starts = iter(range(0, total, step))
        lock, stopped = threading.Lock(), threading.Event()

        def run_ranges() -> None:
            while not stopped.is_set():
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                work(start, min(start + step, total))

        running = [self._executor.submit(run_ranges) for _ in range(self.threads)]
        try:
            pending = set(running)
            while pending:
                done, pending = wait(pending, timeout=PULSE_S, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                self.on_pulse(*self._progress)
        finally:
            stopped.set()
            wait(running)


class ThreadBuffers:
    """Scratch memory of each thread by name: touching new pages for every tile costs as much as the work itself."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._local = device, threading.local()

    def get(self, name: str, count: int, columns: int) -> Tensor:
        """Uninitialized float32 rows, (count, columns), which the thread's next call with this name reuses."""
        buffer: Tensor | None = getattr(self._local, name, None)
        if buffer is None or len(buffer) < count or buffer.shape[1] != columns:
            buffer = torch.empty(count, columns, device=self._device)
            setattr(self._local, name, buffer)
        return buffer[:count]
