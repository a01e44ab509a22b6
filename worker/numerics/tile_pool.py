"""Threads that each work on a tile of their own: how stages use all cores of a CPU."""

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch

PULSE_S = 0.5  # at most between two calls of `breathe`


class Crew:
    """Runs a function over ranges of rows, one range a thread at a time, each operation in one thread.

    Torch's own threads share every single operation and wait for each other after it. On tiles that fit a core's
    cache that takes longer than the work, and on a busy machine (measured with six other processes on two cores)
    fifty times longer. A GPU has one queue: there the ranges simply run in turn.
    """

    def __init__(self, device: torch.device) -> None:
        count = torch.get_num_threads() if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(count, "crew") if count > 1 else None
        self.count = count
        if self._pool is not None:
            started = threading.Barrier(count)

            def alone(_: int) -> None:
                torch.get_num_threads()  # a thread takes the common setting at its first use of torch, and then no more
                torch.set_num_threads(1)
                started.wait()

            list(self._pool.map(alone, range(count)))
            torch.set_num_threads(count)  # a thread's setting is also where later threads start from

    def step(self, total: int, most: int) -> int:
        """Of how many rows, `most` at most, ranges are to be so that every thread has as many of them."""
        ranges = self.count * -(-total // (self.count * most))
        return max(1, -(-total // max(1, ranges)))

    def run(
        self, work: Callable[[int, int], None], total: int, step: int, breathe: Callable[[], None] = lambda: None
    ) -> None:
        """Call `work(start, stop)` for ranges of `step` up to `total`, in any order, and wait for all.

        `breathe` is called from this thread meanwhile; what it or `work` raises ends the run: ranges that were not
        begun are left out, those begun are waited for.
        """
        if self._pool is None or total <= step:
            for start in range(0, total, step):
                work(start, min(start + step, total))
                breathe()
            return
        starts = iter(range(0, total, step))
        lock, stopped = threading.Lock(), threading.Event()

        def member() -> None:
            while not stopped.is_set():
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                work(start, min(start + step, total))

        begun = [self._pool.submit(member) for _ in range(self.count)]
        try:
            rest = set(begun)
            while rest:
                done, rest = wait(rest, timeout=PULSE_S, return_when=FIRST_EXCEPTION)
                for one in done:
                    one.result()
                breathe()
        finally:
            stopped.set()
            wait(begun)
