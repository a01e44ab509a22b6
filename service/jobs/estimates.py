"""When a job will end, as its view tells it: the paces of `eta.py`, the jobs before it, the workers there are."""

import time
from dataclasses import dataclass
from threading import Lock

from service.jobs.eta import Pace, Seconds
from service.jobs.queue import Broker
from uvos.contract import JobParams, JobProgress, JobRecord, SecondsRange, WorkerInfo

REMEMBERED_S = 3.0  # many views need the same paces and workers


@dataclass(frozen=True)
class Estimate:
    eta_s: SecondsRange | None
    fraction: float | None


class Estimates:
    """Estimates from what Redis knows; views that come close together share one look at it."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._lock = Lock()
        self._paces: dict[tuple[str, ...], tuple[float, Pace]] = {}
        self._workers: tuple[float, list[WorkerInfo]] = (float("-inf"), [])

    def of(self, record: JobRecord, progress: JobProgress | None, position: int | None) -> Estimate:
        """When a job that has not ended will end; a queued job without any worker has no estimate.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        pace = self._pace(record.params)
        if progress is not None:
            left = pace.remaining(progress, record.video_bytes, record.params)
            return Estimate(left.view(), pace.fraction(progress))
        workers = self._live_workers()
        if not workers:
            return Estimate(None, None)
        own = pace.before(record.video_bytes, record.params)
        return Estimate((own + self._wait(pace, workers, position or 0)).view(), None)

    def _wait(self, pace: Pace, workers: list[WorkerInfo], position: int) -> Seconds:
        """Until a worker is free: the jobs before it, and what is left of those that run."""
        typical = pace.typical()
        busy = sum(worker.busy_with is not None for worker in workers)
        running = Seconds(0.0, typical.high if busy == len(workers) else 0.0)
        rounds = position / len(workers)
        return running + typical.times(rounds, rounds)

    def _pace(self, params: JobParams) -> Pace:
        now, kind = time.monotonic(), (params.model, params.clustering, params.motion)
        with self._lock:
            known = self._paces.get(kind)
        if known is not None and now - known[0] < REMEMBERED_S:
            return known[1]
        devices = [worker.device for worker in self._live_workers()]
        pace = Pace.of(self.broker.timings(params.model), params, devices=devices)
        with self._lock:
            self._paces[kind] = (now, pace)
        return pace

    def _live_workers(self) -> list[WorkerInfo]:
        now = time.monotonic()
        with self._lock:
            seen, workers = self._workers
        if now - seen >= REMEMBERED_S:
            workers = self.broker.workers()
            with self._lock:
                self._workers = (now, workers)
        return workers
