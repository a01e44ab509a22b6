"""Live workers, cached, and the models whose weights they have."""

import time
from threading import Lock

import redis

from service.jobs.queue import Broker
from service.settings import Settings
from uvos.contract import WorkerInfo
from uvos.errors import WeightsUnavailable
from uvos.models import MODELS
from uvos.weights import is_installed

CACHE_TTL_S = 1.0  # concurrent requests need the same list
LOCAL_TTL_S = 30.0  # of the weights on this machine


class LiveWorkers:
    """The workers with a recent heartbeat, cached for `CACHE_TTL_S`."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self.broker = broker
        self.settings = settings
        self._lock = Lock()
        self._workers: tuple[float, list[WorkerInfo]] = (float("-inf"), [])
        self._local: tuple[float, frozenset[str]] = (float("-inf"), frozenset())

    def all(self) -> list[WorkerInfo]:
        """All live workers.

        Raises:
            redis.RedisError: Redis does not respond.
        """
        now = time.monotonic()
        with self._lock:
            read_at, workers = self._workers
        if now - read_at >= CACHE_TTL_S:
            workers = self.broker.workers()
            with self._lock:
                self._workers = (now, workers)
        return workers

    def running(self) -> list[WorkerInfo]:
        """The live workers that run jobs; raises as `all`."""
        return [worker for worker in self.all() if worker.problem is None]

    def installed_models(self) -> frozenset[str]:
        """Models whose weights a live worker has; without live workers, those on this machine."""
        try:
            workers = self.running()
        except redis.RedisError:
            workers = []
        if workers:
            return frozenset(name for worker in workers for name in worker.installed)
        return self._installed_here()

    def check_weights(self, model: str) -> None:
        """Check that a live worker has the weights of a model or may download them.

        Raises:
            WeightsUnavailable: None of the live workers has or downloads them.
        """
        try:
            workers = self.running()
        except redis.RedisError:
            return
        if workers and not any(model in worker.installed or worker.may_download for worker in workers):
            installed = ", ".join(sorted(self.installed_models()))
            raise WeightsUnavailable(
                f"no worker has the weights of {model}: run `{install_command(model)}` on the machine of a worker, or "
                f"use one of {installed}",
                limit=installed,
                actual=model,
            )

    def _installed_here(self) -> frozenset[str]:
        now = time.monotonic()
        with self._lock:
            read_at, names = self._local
        if now - read_at >= LOCAL_TTL_S:
            names = frozenset(installed_models(self.settings))
            with self._lock:
                self._local = (now, names)
        return names


def installed_models(settings: Settings) -> list[str]:
    """The models whose weights are on this machine."""
    with_file = {settings.default_model} if settings.weights is not None else set()
    return [name for name, entry in MODELS.items() if name in with_file or is_installed(entry, settings.weights_folder)]


def install_command(model: str) -> str:
    return f"uvos-worker weights fetch {model}"
