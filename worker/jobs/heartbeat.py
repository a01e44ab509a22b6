"""The heartbeat of a worker, sent from a thread, so that a slow disk does not delay it."""

import threading
import time
from contextlib import suppress

import redis

from service.jobs.queue import Broker
from uvos.contract import WorkerInfo

INTERVAL_S = 1.0
MAX_SILENCE_S = 15.0  # of the worker itself; then it hangs, and its heartbeat ends


class Heartbeat:
    """Repeats the latest state of a worker while the worker keeps updating it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stopped = threading.Event()
        self._latest: tuple[float, WorkerInfo] | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeat and remove the worker from the list of live workers."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._latest is not None:
            with suppress(redis.RedisError):
                self._broker.retire_worker(self._latest[1].name)

    def update(self, info: WorkerInfo) -> None:
        """Send a new state.

        Raises:
            redis.RedisError: Redis does not respond.
        """
        self._latest = (time.monotonic(), info)
        self._broker.announce_worker(info)

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            if self._latest is not None and time.monotonic() - self._latest[0] < MAX_SILENCE_S:
                with suppress(redis.RedisError):
                    self._broker.announce_worker(self._latest[1])
