"""The RQ worker as a parent without torch: takes jobs, holds their lease, watches the child that does the work.

RQ's own bookkeeping of executions, retries and failures is not used: storage knows how a job ended, a lease in Redis
tells that somebody works on it, and `recover` queues every open job that nobody holds. That one rule covers a killed
worker, a flushed Redis, and an API that died between storage and queue.
"""

import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import FrameType
from typing import Any

import redis
from pydantic import ValidationError
from rq import Queue, Worker
from rq.exceptions import DeserializationError, StopRequested
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.worker.base import WorkerStatus

from service.broker import Broker, connect
from service.contract import TASK, JobEnd, Problem, Progress, QueueMessage, Status, WorkerInfo
from service.errors import DeadlineExceeded, JobNotFound, TooManyAttempts
from service.settings import Settings
from service.storage import Storage
from worker.child import CANCEL_WITHIN_S, Assignment, Child

log = logging.getLogger(__name__)

TICK_S = 0.1  # between looks at the child, the lease, the deadline
IDLE_TICK_S = 2  # seconds a worker waits for a job before it looks around
SWEEP_INTERVAL_S = 60.0
LOST_AFTER_LOOKS = 2  # a job may be between queue and lease for a moment
RECONNECT_S = 1.0


class Unfinished(Enum):
    """Why an execution ended without an end of the job."""

    again = "again"
    """The job is to be run again: its process died, or this worker is told to stop."""
    taken = "taken"
    """The job is no longer ours: canceled, deleted, or another worker has it."""


class SegmentWorker(Worker):
    """One queue, one job at a time, one warm child."""

    max_connection_wait_time = 2.0  # Redis may be back at any moment

    def __init__(self, settings: Settings, storage: Storage) -> None:
        assert settings.redis_url is not None
        url = settings.redis_url.get_secret_value()
        self.settings = settings
        self.storage = storage
        self.broker = Broker(connect(url), job_timeout_s=settings.job_timeout_s)
        self.child = Child(settings)
        self._looks: dict[str, int] = {}
        self._swept_at = 0.0
        self._stop_by: float | None = None
        super().__init__(
            [Queue(self.broker.queue.name, connection=connect(url, answer_within_s=None), serializer=JSONSerializer)],
            name=f"{socket.gethostname()}-{secrets.token_hex(4)}",
            connection=connect(url, answer_within_s=None),
            serializer=JSONSerializer,
            log_job_description=False,
        )
        self.maintenance_interval = 0  # a look around in every idle tick; `run_maintenance_tasks` has its own pace
        self._looked_at = 0.0

    @property
    def dequeue_timeout(self) -> int:
        return IDLE_TICK_S

    def serve(self) -> None:
        """Work until told to stop; a Redis that goes away is waited for."""
        self.child.start()
        try:
            while True:
                try:
                    self.work(logging_level="WARNING")
                except redis.RedisError as error:
                    log.warning("the queue does not answer (%s), trying again", error)
                if self._stop_requested:
                    return
                time.sleep(RECONNECT_S)
        finally:
            self.child.kill()
            with suppress(redis.RedisError):
                self.broker.retire_worker(self.name)

    # --- RQ's extension points

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002  # a signal handler
        """First signal: no further jobs, and a grace period for the one at hand. Second: hand it back now."""
        grace = 0.0 if self._stop_requested else self.settings.shutdown_grace_s
        self._stop_requested = True
        self._stop_by = time.monotonic() + grace
        if self._state != WorkerStatus.BUSY:
            raise StopRequested

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGINT, self.request_stop)
        signal.signal(signal.SIGTERM, self.request_stop)

    def run_maintenance_tasks(self) -> None:
        self.last_cleaned_at = datetime.now(UTC)  # type: ignore[assignment]  # RQ declares it None
        if time.monotonic() - self._looked_at >= self.settings.recovery_interval_s:
            self._looked_at = time.monotonic()
            self.announce()
            self.recover()

    def execute_job(self, job: Job, queue: Queue) -> None:  # noqa: ARG002  # there is one queue
        """Do the job unless it has ended, is held by another, or is not one of ours."""
        try:
            self.set_state(WorkerStatus.BUSY)
            job_id = self._read(job)
            if job_id is not None:
                self._execute(job_id)
        finally:
            self._forget(job.id)
            self._state = WorkerStatus.IDLE

    def _read(self, job: Job) -> str | None:
        """The id in a message, None for a message that this service never writes."""
        try:
            if job.func_name == TASK and not job.args:
                return QueueMessage.model_validate(job.kwargs).job_id
        except (DeserializationError, ValidationError, ValueError, TypeError):
            pass
        log.error("dropped a message that is not a job of ours: %s", job.id)
        return None

    def _forget(self, job_id: str) -> None:
        """Take a job out of RQ's books."""
        try:
            with self.connection.pipeline() as pipeline:
                pipeline.lrem(self.broker.queue.intermediate_queue_key, 0, job_id)
                if self.storage.has_ended(job_id):
                    pipeline.delete(f"rq:job:{job_id}")
                pipeline.execute()
        except (redis.RedisError, JobNotFound):
            log.warning("could not clear job %s from the queue's books; it will be found there as ended", job_id)

    # --- one job

    def _execute(self, job_id: str) -> None:
        execution = secrets.token_hex(8)
        try:
            if self.storage.has_ended(job_id):
                return
            if not self.broker.take_lease(job_id, execution, self.settings.lease_s):
                return  # another worker has it; should it die, `recover` queues the job again
            claim = self.storage.claim(job_id, execution)
        except JobNotFound:
            return
        log.info("job %s: execution %s begins", job_id, execution)
        started_at = datetime.now(UTC)
        outcome = self._watch(job_id, execution, started_at)
        if isinstance(outcome, JobEnd):
            if self.storage.is_superseded(job_id, claim):
                log.warning("job %s: execution %s was overtaken and publishes nothing", job_id, execution)
            else:
                counts = self.storage.finish(job_id, outcome)
                log.info("job %s: %s%s", job_id, outcome.status.value, "" if counts else " (too late: it had ended)")
        try:
            self.broker.end_lease(job_id, execution)
            if self.storage.has_ended(job_id):
                self.broker.announce_end(job_id)
            elif outcome is Unfinished.again and self.broker.forget_lost(job_id):
                self.broker.enqueue(job_id, at_front=True)
                log.info("job %s: back to the front of the queue", job_id)
        except redis.RedisError:
            log.warning("job %s: the queue does not answer; the lease will run out by itself", job_id)

    def _watch(self, job_id: str, execution: str, started_at: datetime) -> "JobEnd | Unfinished":
        """Let the child work and watch it: how the job ended, or why that is not known here."""
        deadline = time.monotonic() + self.settings.job_timeout_s
        renewed_at = time.monotonic()
        frames: int | None = None
        stop_by: float | None = None  # when the child is killed unless it has stopped by itself

        def ended(status: Status, problem: Problem | None = None) -> JobEnd:
            now = datetime.now(UTC)
            return JobEnd(
                status=status,
                ended_at=now,
                expires_at=now + timedelta(seconds=self.settings.result_ttl_s),
                execution=execution if status == Status.succeeded else None,
                started_at=started_at,
                frames=frames,
                error=problem,
            )

        self.child.run(Assignment(job_id=job_id, execution=execution))
        while True:
            try:
                message = self.child.receive(TICK_S)
            except EOFError:
                return self._after_death(job_id, ended)
            if message is not None:
                if message.get("done") == execution:
                    return ended(Status.succeeded)
                if message.get("failed") == execution:
                    if message.get("restart"):
                        self.child.start()
                    return ended(Status.failed, Problem.model_validate(message["problem"]))
                if message.get("stopped") == execution:
                    return Unfinished.taken
                if "progress" in message:
                    progress = Progress.model_validate(message["progress"] | {"started_at": started_at})
                    frames = progress.frames_total or frames
                    self._tell(job_id, progress)
            now = time.monotonic()
            if now > deadline:
                self.child.start()
                limit = self.settings.job_timeout_s
                return ended(
                    Status.failed,
                    DeadlineExceeded(f"the job took longer than {limit} s", limit=limit, actual=limit).problem(),
                )
            if self._stop_by is not None and now > self._stop_by:
                self.child.kill()
                return Unfinished.again
            if now - renewed_at > self.settings.lease_s / 3:
                renewed_at = now
                if not self._still_ours(job_id, execution):
                    stop_by = self._ask_to_stop(execution, stop_by)
            if self.storage.has_ended(job_id):  # canceled or deleted
                stop_by = self._ask_to_stop(execution, stop_by)
            if stop_by is not None and now > stop_by:
                self.child.start()
                return Unfinished.taken

    def _ask_to_stop(self, execution: str, stop_by: float | None) -> float:
        if stop_by is not None:
            return stop_by
        self.child.cancel(execution)
        return time.monotonic() + CANCEL_WITHIN_S

    def _after_death(self, job_id: str, ended: Callable[[Status, Problem | None], JobEnd]) -> "JobEnd | Unfinished":
        """The child died under the job: again, up to the limit."""
        code = self.child.kill()
        self.child.start()
        deaths = self.storage.count_death(job_id)
        log.error("job %s: the child died (exit code %s), time %d", job_id, code, deaths)
        if deaths >= self.settings.max_attempts:
            error = TooManyAttempts(
                f"the process that works on it died {deaths} times (exit code {code})",
                limit=self.settings.max_attempts,
                actual=deaths,
            )
            return ended(Status.failed, error.problem())
        return Unfinished.again

    def _still_ours(self, job_id: str, execution: str) -> bool:
        """Renew the lease; a Redis that forgot it gives it back, one that does not answer takes nothing away."""
        try:
            self.announce(busy_with=job_id)
            return self.broker.renew_lease(job_id, execution, self.settings.lease_s) or self.broker.take_lease(
                job_id, execution, self.settings.lease_s
            )
        except redis.RedisError:
            return True

    def _tell(self, job_id: str, progress: Progress) -> None:
        try:
            self.broker.report(job_id, progress)
        except redis.RedisError:
            log.debug("progress of job %s is lost: the queue does not answer", job_id)

    # --- looking around

    def announce(self, busy_with: str | None = None) -> None:
        """Tell that this worker lives, and what it has loaded."""
        if busy_with is None:
            try:
                self.child.receive(0)
            except EOFError:
                log.error("the child died while idle (exit code %s)", self.child.kill())
                self.child.start()
        self.broker.announce_worker(WorkerInfo(name=self.name, busy_with=busy_with, **self._about()))

    def _about(self) -> dict[str, Any]:
        return {"device": "starting"} | self.child.about

    def recover(self) -> None:
        """Queue every open job that nobody holds and nobody has queued; remove what is past its time."""
        open_jobs = self.storage.open_jobs()
        lost = self.broker.lost(open_jobs)
        self._looks = {job_id: self._looks.get(job_id, 0) + 1 for job_id in lost}
        for job_id, looks in self._looks.items():
            if self.storage.has_ended(job_id):
                self.storage.tidy(job_id)
            elif looks >= LOST_AFTER_LOOKS and self.broker.forget_lost(job_id):
                log.warning("job %s was lost; queued again", job_id)
                self.broker.enqueue(job_id, at_front=True)
        if time.monotonic() - self._swept_at > SWEEP_INTERVAL_S:
            self._swept_at = time.monotonic()
            for job_id in self.storage.sweep():
                log.info("job %s expired", job_id)
