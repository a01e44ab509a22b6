"""Estimate when a job will end: from `eta.py`, the job's position in the queue and the number of workers."""

import time
from dataclasses import dataclass
from threading import Lock

from service.jobs.eta import Pace, Seconds
from service.jobs.queue import Broker
from service.jobs.workers import LiveWorkers
from uvos.contract import JobParams, JobProgress, JobRecord, SecondsRange, WorkerInfo

CACHE_TTL_S = 3.0  # concurrent views need the same timings


@dataclass(frozen=True)
class Estimate:
    eta_s: SecondsRange | None
    fraction: float | None
    has_worker: bool = True
    """Whether a live worker runs jobs."""


class Estimates:
    """Estimates from the timings in Redis, which are cached for `CACHE_TTL_S`, and the live workers."""

    def __init__(self, broker: Broker, workers: LiveWorkers) -> None:
        self.broker = broker
        self.workers = workers
        self._lock = Lock()
        self._paces: dict[tuple[str, ...], tuple[float, Pace]] = {}

    def of(self, record: JobRecord, progress: JobProgress | None, position: int | None) -> Estimate:
        """The estimate for a job that has not ended; empty for a queued job while there is no worker.

        Raises:
            redis.RedisError: Redis does not respond.
        """
        pace = self._pace(record.params)
        if progress is not None:
            remaining = pace.remaining(progress, record.video_bytes, record.params)
            return Estimate(remaining.view(), pace.fraction(progress))
        workers = self.workers.running()
        if not workers:
            return Estimate(None, None, has_worker=False)
        own = pace.before(record.video_bytes, record.params)
        return Estimate((own + self._wait(pace, workers, position or 0)).view(), None)

    def _wait(self, pace: Pace, workers: list[WorkerInfo], position: int) -> Seconds:
        """Time until a worker is free: the running jobs, then the jobs before this one."""
        typical = pace.typical()
        busy = sum(worker.busy_with is not None for worker in workers)
        running = Seconds(0.0, typical.high if busy == len(workers) else 0.0)
        rounds = position / len(workers)
        return running + typical.times(rounds, rounds)

    def _pace(self, params: JobParams) -> Pace:
        now, key = time.monotonic(), (params.model, params.clustering, params.motion)
        with self._lock:
            cached = self._paces.get(key)
        if cached is not None and now - cached[0] < CACHE_TTL_S:
            return cached[1]
        devices = [worker.device for worker in self.workers.all()]
        pace = Pace.of(self.broker.timings(params.model), params, devices=devices)
        with self._lock:
            self._paces[key] = (now, pace)
        return pace
