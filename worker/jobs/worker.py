"""The RQ worker: takes jobs from the queue, keeps one warm child process, requeues lost jobs. Loads no torch."""

import logging
import os
import secrets
import signal
import socket
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import redis
from pydantic import ValidationError
from rq import Queue, Worker
from rq.exceptions import DeserializationError, StopRequested
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker.base import WorkerStatus

from service.jobs.metrics import Instruments, Publisher
from service.jobs.queue import Broker, connect
from service.jobs.workers import installed_models
from service.settings import Settings
from service.storage.folder import Storage
from uvos.contract import TASK, QueueMessage, WorkerInfo
from worker.jobs.child import Child
from worker.jobs.execution import TICK_S, Execution
from worker.jobs.heartbeat import Heartbeat
from worker.jobs.messages import Ready
from worker.jobs.recovery import Recovery

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 1  # of the blocking pop, seconds; maintenance runs in between
RECONNECT_S = 1.0
HEARTBEAT_INTERVAL_S = 2.0
START_TIMEOUT_S = 120.0  # to import torch and load a model from a slow disk
WEIGHTS_TTL_S = 30.0
RETRY_DOWNLOAD_S = 600.0  # after a failed download, jobs that need one are refused for this long
MAX_RESTART_DELAY_S = 30.0  # between starts of a child that dies before it is warm, and between checks of storage


class ChildCannotStart(Exception):
    """The first child of a worker died before it was warm."""


class SegmentWorker(Worker):
    """One queue, one job at a time, one warm child."""

    max_connection_wait_time = 2.0  # RQ's backoff while Redis is down; the default is 60 s
    execution_type = Execution

    def __init__(
        self, settings: Settings, storage: Storage, child: Child | None = None, *, must_start: bool = False
    ) -> None:
        """Create a worker; `serve` runs it.

        Args:
            settings: The settings; `redis_url` is required.
            storage: The storage folder.
            child: The child process; by default one that segments videos.
            must_start: Whether `serve` raises `ChildCannotStart` if the first child dies before it is warm. Otherwise
                the worker restarts it and reports the problem in its heartbeat.
        """
        assert settings.redis_url is not None
        url = settings.redis_url.get_secret_value()
        self.settings = settings
        self.storage = storage
        self.broker = Broker(connect(url), job_timeout_s=settings.job_timeout_s)
        self.child = child or Child(settings)
        self.instruments = Instruments()
        name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self.recovery = Recovery(settings, storage, self.broker, name=name, instruments=self.instruments)
        self.index = self.recovery.index
        self.heartbeat_thread = Heartbeat(self.broker)
        self.download_failed_at = float("-inf")
        self._installed: tuple[float, list[str]] = (float("-inf"), [])
        self.stop_at: float | None = None
        self.child_problem: str | None = "the models are being loaded"
        self.storage_problem: str | None = None
        self._must_start = must_start
        self._failed_checks = 0
        self._cannot_start: ChildCannotStart | None = None
        self._maintained_at = 0.0
        self._failed_starts = 0
        super().__init__(
            [
                Queue(
                    self.broker.queue.name, connection=connect(url, response_timeout_s=None), serializer=JSONSerializer
                )
            ],
            name=name,
            connection=connect(url, response_timeout_s=None),
            serializer=JSONSerializer,
            log_job_description=False,
            prepare_for_work=False,  # it queries Redis, which may not be up yet
        )
        self.hostname, self.pid = socket.gethostname(), os.getpid()

    def serve(self) -> None:
        """Work until a signal stops the worker; waits while Redis is down.

        Raises:
            ChildCannotStart: The first child died before it was warm, and `must_start` is set.
        """
        self._install_signal_handlers()
        self.heartbeat_thread.start()
        publisher = Publisher(self.instruments, self.broker.connection)
        publisher.start()
        try:
            self.child.start()
            while not self._stop_requested and self._cannot_start is None:
                try:
                    self.work(logging_level="WARNING")
                except redis.RedisError as error:
                    log.warning("Redis does not respond (%s); trying again", error)
                if not self._stop_requested and self._cannot_start is None:
                    time.sleep(RECONNECT_S)
            if self._cannot_start is not None:
                raise self._cannot_start
        finally:
            self.child.kill()
            self.heartbeat_thread.stop()
            publisher.stop()
            with suppress(redis.RedisError):
                self.recovery.resign()

    def execute(self, job_id: str) -> None:
        """Run a job unless it has ended or another worker runs it."""
        self.recovery.resign()
        self.execution_type(self, job_id).run()

    def keep_child_warm(self) -> bool:
        """Restart a child that has died or does not become warm; whether the child is warm."""
        try:
            while self.child.receive(0 if self.child.is_warm else TICK_S) is not None:
                pass
        except EOFError:
            self._restart_dead_child()
        if not self.child.is_warm and time.monotonic() - self.child.started_at > START_TIMEOUT_S:
            self.child_problem = f"the models were not loaded within {START_TIMEOUT_S:g} s"
            log.error("%s; restarting the child", self.child_problem)
            self.instruments.child_deaths.labels("start").inc()
            self.child.start()
        if self.child.is_warm:
            self.child_problem, self._failed_starts = None, 0
        return self.child.is_warm

    def _restart_dead_child(self) -> None:
        was_warm, code = self.child.is_warm, self.child.kill()
        self.instruments.child_deaths.labels("idle" if was_warm else "start").inc()
        if was_warm:
            log.error("the child died without a job (exit code %s); restarting it", code)
        else:
            self._failed_starts += 1
            reason = self.child.start_error or f"the process exited with code {code}"
            self.child_problem = f"the models could not be loaded: {reason}"
            if self._must_start and self.child.state is None:
                self._cannot_start = ChildCannotStart(self.child_problem)
                raise StopRequested
            log.error("%s; restarting the child", self.child_problem)
            self._sleep(min(self._failed_starts, MAX_RESTART_DELAY_S))
        self.child.start()

    def _sleep(self, seconds: float) -> None:
        """Sleep while sending heartbeats; returns early when the worker was asked to stop."""
        wake_at = time.monotonic() + seconds
        while not self._stop_requested and time.monotonic() < wake_at:
            with suppress(redis.RedisError):
                self.announce()
            time.sleep(min(HEARTBEAT_INTERVAL_S, max(0.0, wake_at - time.monotonic())))

    def announce(self, busy_with: str | None = None) -> None:
        """Send the heartbeat that lists this worker in /readyz."""
        state = self.child.state or Ready(device="starting")
        self.heartbeat_thread.update(
            WorkerInfo(
                name=self.name,
                device=state.device,
                models=state.models,
                sandbox=state.sandbox,
                installed=self._installed_models(),
                may_download=self.settings.allow_hub and self.download_failed_at + RETRY_DOWNLOAD_S < time.monotonic(),
                busy_with=busy_with,
                problem=self.storage_problem or self.child_problem,
                memory_bytes=state.memory_bytes,
                memory_peak_bytes=state.memory_peak_bytes,
            )
        )

    def _installed_models(self) -> list[str]:
        """The models whose weights are on this machine, checked every `WEIGHTS_TTL_S`."""
        now = time.monotonic()
        if now - self._installed[0] > WEIGHTS_TTL_S:
            self._installed = (now, installed_models(self.settings))
        return self._installed[1]

    def hand_back_now(self) -> None:
        """Stop now; a running job is handed back."""
        self._stop_requested, self.stop_at = True, time.monotonic()

    # --- RQ's extension points

    @property
    def dequeue_timeout(self) -> int:
        return POLL_TIMEOUT_S

    @property
    def should_run_maintenance_tasks(self) -> bool:
        return True  # before every poll of the queue

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002  # a signal handler
        """First signal: no further jobs, and a grace period for the running one. Second: hand it back now."""
        grace_s = 0.0 if self._stop_requested else self.settings.shutdown_grace_s
        self._stop_requested = True
        self.stop_at = time.monotonic() + grace_s

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGINT, self.request_stop)
        signal.signal(signal.SIGTERM, self.request_stop)

    def register_birth(self) -> None:
        """Register in Redis; RQ refuses a name that is registered, as ours is after a connection was lost."""
        self.connection.delete(self.key)
        super().register_birth()  # type: ignore[no-untyped-call]

    def heartbeat(self, *arguments: Any, **named: Any) -> None:
        """RQ's heartbeat; raises StopRequested while Redis is down, because RQ's retry loop does not check for it."""
        try:
            super().heartbeat(*arguments, **named)
        except redis.RedisError as error:
            if self._stop_requested:
                raise StopRequested from error
            raise

    def subscribe(self) -> None:
        """RQ's pub/sub commands are disabled: write access to Redis must not be enough to stop a worker."""

    def unsubscribe(self) -> None: ...

    def run_maintenance_tasks(self) -> None:
        """Requeue lost jobs and keep the child warm; returns, and so lets RQ pop a job, only when it is."""
        while True:
            if self._stop_requested:
                raise StopRequested
            is_warm = self.keep_child_warm()
            if time.monotonic() - self._maintained_at >= self.settings.recovery_interval_s:
                self.maintain()
            if self.storage_problem is not None:
                self._sleep(min(2.0**self._failed_checks, MAX_RESTART_DELAY_S))
            elif is_warm:
                return

    def maintain(self) -> None:
        """Send a heartbeat and requeue lost jobs, unless storage is unavailable."""
        self._maintained_at = time.monotonic()
        try:
            self.storage.check()
            self.announce()
            self.recovery.run()
        except OSError as error:
            if self.storage_problem is None:
                log.error("storage is unavailable (%s); this worker runs no jobs until it is available", error)
            self.storage_problem = f"storage is unavailable: {error}"
            self._failed_checks += 1
            return
        if self.storage_problem is not None:
            log.warning("storage is available again")
            self.storage_problem, self._failed_checks = None, 0
            self.announce()

    def execute_job(self, job: Job, queue: Queue) -> None:  # noqa: ARG002  # there is one queue
        """Run a popped job if its message is one of ours."""
        try:
            self.set_state(WorkerStatus.BUSY)
            job_id = _parse(job)
            if job_id is not None:
                self.execute(job_id)
        finally:
            self._ack(job.id)

    def _ack(self, job_id: str) -> None:
        try:
            self.broker.ack(job_id, has_ended=self.storage.has_ended(job_id))
        except (redis.RedisError, OSError):
            log.warning("job %s: could not be acknowledged; `Recovery` will do it", job_id)


def _parse(job: Job) -> str | None:
    """The job id in a queue message; None for a message that this service does not write."""
    try:
        if job.func_name == TASK and not job.args:
            return QueueMessage.model_validate(job.kwargs).job_id
    except (DeserializationError, ValidationError, ValueError, TypeError):
        pass
    log.error("dropped a message that does not describe a job: %s", job.id)
    return None
