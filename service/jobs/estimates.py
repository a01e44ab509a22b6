"""Estimate when a running job will end, from `eta.py` and the timings in Redis."""

import time
from dataclasses import dataclass
from threading import Lock

from service.jobs.eta import Pace
from service.jobs.queue import Broker
from service.jobs.workers import LiveWorkers
from uvos.contract import JobParams, JobProgress, JobRecord, SecondsRange

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

    def of(self, record: JobRecord, progress: JobProgress | None) -> Estimate:
        """The estimate for a job that has not ended; a waiting job has none, because its length is not known.

        Raises:
            redis.RedisError: Redis does not respond.
        """
        if progress is not None:
            pace = self._pace(record.params)
            return Estimate(pace.remaining(progress), pace.fraction(progress))
        return Estimate(None, None, has_worker=bool(self.workers.running()))

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
