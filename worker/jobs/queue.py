"""The RQ worker as a parent without torch: takes jobs, holds their lease, watches the child that does the work.

RQ's own bookkeeping of executions, retries and failures is not used: storage knows how a job ended, a lease in Redis
tells that somebody works on it, and `recover` queues every open job that nobody holds. That one rule covers a killed
worker, a flushed Redis, and an API that died between storage and queue.
"""

import logging
import os
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

from service.jobs.queue import Broker, connect
from service.settings import Settings
from service.storage.folder import Storage
from uvos.contract import TASK, JobEnd, JobProgress, JobTiming, Problem, QueueMessage, Status, WorkerInfo
from uvos.errors import DeadlineExceeded, JobNotFound, StorageFull, TooManyAttempts
from worker.jobs.child import CANCEL_WITHIN_S, START_TIMEOUT_S, Assignment, Child

log = logging.getLogger(__name__)

TICK_S = 0.1  # between looks at the child, the lease, the deadline
IDLE_TICK_S = 1  # seconds a worker waits for a job before it looks around
SWEEP_INTERVAL_S = 60.0
LOST_AFTER_LOOKS = 2  # a job may be between queue and lease for a moment
LOST_EXECUTIONS_PER_ATTEMPT = 5  # a job may take the parent with it each time, and then nobody counts its deaths
BEGIN_WITHIN_S = 30.0  # a warm child that does not take up its work in this time is stuck
RECONNECT_S = 1.0
SILENCE_S = 2.0  # a Redis that did not answer is left alone for so long, lest a job's watch wait for it
MAX_START_PAUSE_S = 30.0  # between starts of a child that dies before it is warm


class Unfinished(Enum):
    """Why an execution ended without an end of the job."""

    died = "died"
    """The job is to be run again: its process died of it."""
    handed_back = "handed back"
    """The job is to be run again, through no fault of its own: this worker stops, or its child was not there."""
    taken = "taken"
    """The job is no longer ours: canceled, deleted, or another worker has it."""


class SegmentWorker(Worker):
    """One queue, one job at a time, one warm child."""

    max_connection_wait_time = 2.0  # Redis may be back at any moment

    def __init__(self, settings: Settings, storage: Storage, child: Child | None = None) -> None:
        assert settings.redis_url is not None
        url = settings.redis_url.get_secret_value()
        self.settings = settings
        self.storage = storage
        self.broker = Broker(connect(url), job_timeout_s=settings.job_timeout_s)
        self.child = child or Child(settings)
        self._looks: dict[str, int] = {}
        self._looked_at = self._swept_at = 0.0
        self._stop_by: float | None = None
        self._silent_until = 0.0
        self._failed_starts = 0
        super().__init__(
            [Queue(self.broker.queue.name, connection=connect(url, answer_within_s=None), serializer=JSONSerializer)],
            name=f"{socket.gethostname()}-{secrets.token_hex(4)}",
            connection=connect(url, answer_within_s=None),
            serializer=JSONSerializer,
            log_job_description=False,
            prepare_for_work=False,  # it would ask Redis for our address, and Redis may not be there yet
        )
        self.hostname, self.pid = socket.gethostname(), os.getpid()

    @property
    def dequeue_timeout(self) -> int:
        return IDLE_TICK_S

    @property
    def should_run_maintenance_tasks(self) -> bool:
        return True  # before every look at the queue

    def serve(self) -> None:
        """Work until told to stop; a Redis that goes away is waited for."""
        self._install_signal_handlers()
        try:
            self.child.start()
            while not self._stop_requested:
                try:
                    self.work(logging_level="WARNING")
                except redis.RedisError as error:
                    log.warning("the queue does not answer (%s), trying again", error)
                if not self._stop_requested:
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

    def hand_back_now(self) -> None:
        """Stop at once, whatever is at hand."""
        self._stop_requested, self._stop_by = True, time.monotonic()

    def _install_signal_handlers(self) -> None:
        signal.signal(signal.SIGINT, self.request_stop)
        signal.signal(signal.SIGTERM, self.request_stop)

    def register_birth(self) -> None:
        """Also when this worker was there before and Redis went away."""
        self.connection.delete(self.key)
        super().register_birth()  # type: ignore[no-untyped-call]

    def heartbeat(self, *arguments: Any, **named: Any) -> None:
        """Also ends the wait for a Redis that is gone: RQ's own loop asks for nothing else meanwhile."""
        try:
            super().heartbeat(*arguments, **named)
        except redis.RedisError as error:
            if self._stop_requested:
                raise StopRequested from error
            raise

    def subscribe(self) -> None:
        """RQ's commands over pub/sub are not used; whoever can write to Redis must not stop a worker with them."""

    def unsubscribe(self) -> None: ...

    def run_maintenance_tasks(self) -> None:
        """Look around before each look at the queue, and take no job while the child is not warm."""
        while True:
            if self._stop_requested:
                raise StopRequested
            is_warm = self._keep_child()
            if time.monotonic() - self._looked_at >= self.settings.recovery_interval_s:
                self._looked_at = time.monotonic()
                self.announce()
                self.recover()
            if is_warm:
                return

    def _keep_child(self) -> bool:
        """Whether the child is warm; one that has died, or does not get warm, is started again."""
        try:
            while self.child.receive(0 if self.child.is_warm else TICK_S) is not None:
                pass
        except EOFError:
            self._failed_starts = 0 if self.child.is_warm else self._failed_starts + 1
            log.error("the child died without a job (exit code %s), starting another", self.child.kill())
            time.sleep(min(self._failed_starts, MAX_START_PAUSE_S))
            self.child.start()
        if not self.child.is_warm and time.monotonic() - self.child.started_at > START_TIMEOUT_S:
            log.error("the child is not warm after %g s, starting another", START_TIMEOUT_S)
            self.child.start()
        return self.child.is_warm

    def execute_job(self, job: Job, queue: Queue) -> None:  # noqa: ARG002  # there is one queue
        """Do the job unless it has ended, is held by another, or is not one of ours."""
        try:
            self.set_state(WorkerStatus.BUSY)
            job_id = self._read(job)
            if job_id is not None:
                self._execute(job_id)
        finally:
            self._forget(job.id)

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
        """Take a job that was popped out of RQ's books; `recover` does it where this cannot."""
        try:
            self.broker.forget_popped(job_id, has_ended=self._has_ended(job_id))
        except redis.RedisError:
            log.warning("could not clear job %s from the queue's books", job_id)

    def _has_ended(self, job_id: str) -> bool:
        """Also of what never was a job: nobody needs to work on it."""
        try:
            return self.storage.has_ended(job_id)
        except JobNotFound:
            return True

    # --- one job

    def _execute(self, job_id: str) -> None:
        execution = secrets.token_hex(8)
        try:
            owner = self.storage.record(job_id).owner
            if self.storage.has_ended(job_id):
                return
            limit = self.settings.max_running_per_key
            if not self.broker.take_lease(job_id, execution, self.settings.lease_s, owner=owner, limit=limit):
                # Another worker has it, or its owner has as many running as may be: in both cases `recover` queues
                # it again once nobody holds it and there is room.
                return
        except JobNotFound:
            return
        outcome: JobEnd | Unfinished = Unfinished.taken
        try:
            claim = self.storage.claim(job_id, execution)
            log.info("job %s: execution %s begins", job_id, execution)
            outcome = self._within_attempts(job_id) or self._watch(job_id, execution, claim, owner)
            if not isinstance(outcome, JobEnd) or outcome.execution is None:
                self.storage.drop_work(job_id, execution)  # first of all: on a full disk it makes room for the record
            if isinstance(outcome, JobEnd):
                self._publish(job_id, outcome, claim)
            elif outcome is Unfinished.handed_back:
                self.storage.hand_back(job_id, claim)
        except JobNotFound:
            log.info("job %s: it ended meanwhile", job_id)
        except OSError as error:  # a full disk, as a rule: the job stays open, and is found again
            log.error("job %s: storage fails (%s); it will be tried again", job_id, error)
        finally:
            self._release(job_id, execution, owner, again=outcome in (Unfinished.died, Unfinished.handed_back))

    def _publish(self, job_id: str, end: JobEnd, claim: int) -> None:
        """Write how the job ended, if this execution still may; with no room for a result, that it failed."""
        try:
            counts = self.storage.finish(job_id, end, claim=claim)
        except OSError as error:
            if end.execution is None:
                raise
            log.error("job %s: its result cannot be kept: %s", job_id, error)
            self.storage.drop_work(job_id, end.execution)  # makes room for the record
            problem = StorageFull("there was no room left to store the result").problem()
            end = end.model_copy(update={"status": Status.failed, "execution": None, "error": problem})
            counts = self.storage.finish(job_id, end, claim=claim)
        if counts:
            log.info("job %s: %s", job_id, end.status.value)
            return
        log.warning("job %s: this execution was overtaken and publishes nothing", job_id)
        if end.execution is not None:
            self.storage.drop_work(job_id, end.execution)

    def _release(self, job_id: str, execution: str, owner: str | None, *, again: bool) -> None:
        try:
            self.broker.end_lease(job_id, execution, owner=owner)
            if self.storage.has_ended(job_id):
                self.broker.announce_end(job_id)
            elif again and self.broker.forget_lost(job_id):
                self.broker.enqueue(job_id, at_front=True)
                log.info("job %s: back to the front of the queue", job_id)
        except redis.RedisError:
            log.warning("job %s: the queue does not answer; the lease will run out by itself", job_id)

    def _within_attempts(self, job_id: str) -> JobEnd | None:
        """The end of a job whose executions keep vanishing without a word, together with their workers."""
        limit = self.settings.max_attempts * LOST_EXECUTIONS_PER_ATTEMPT
        lost = self.storage.lost_executions(job_id) - 1  # without the one that begins
        if lost < limit:
            return None
        error = TooManyAttempts(f"it was begun {lost} times and never came to an end", limit=limit, actual=lost)
        return self._ended(Status.failed, error.problem())

    def _ended(self, status: Status, problem: Problem | None = None) -> JobEnd:
        now = datetime.now(UTC)
        expires_at = now + timedelta(seconds=self.settings.result_ttl_s)
        return JobEnd(status=status, ended_at=now, expires_at=expires_at, error=problem)

    def _watch(self, job_id: str, execution: str, claim: int, owner: str | None) -> "JobEnd | Unfinished":
        """Let the child work and watch it: how the job ended, or why that is not known here."""
        started_at = datetime.now(UTC)
        has_begun = False
        deadline = time.monotonic() + BEGIN_WITHIN_S
        renewed_at = 0.0
        frames: int | None = None
        stop_by: float | None = None  # when the child is killed unless it has stopped by itself

        def ended(status: Status, problem: Problem | None = None) -> JobEnd:
            facts = {"execution": execution if status == Status.succeeded else None}
            return self._ended(status, problem).model_copy(update=facts | {"started_at": started_at, "frames": frames})

        self.child.run(Assignment(job_id=job_id, execution=execution))
        while True:
            try:
                message = self.child.receive(TICK_S)
            except EOFError:
                return self._after_death(job_id, ended) if has_begun else self._start_over()
            now = time.monotonic()
            if message is not None:
                if message.get("begun") == execution:
                    has_begun, deadline = True, now + self.settings.job_timeout_s
                if message.get("done") == execution:
                    if "timing" in message:
                        self._learn(JobTiming.model_validate(message["timing"]))
                    return ended(Status.succeeded)
                if message.get("failed") == execution:
                    if message.get("restart"):
                        self.child.start()
                    return ended(Status.failed, Problem.model_validate(message["problem"]))
                if message.get("stopped") == execution:
                    return Unfinished.taken
                if "progress" in message:
                    progress = JobProgress.model_validate(message["progress"] | {"started_at": started_at})
                    frames = progress.frames_total or frames
                    self._tell(job_id, progress)
            if now > deadline:
                if not has_begun:
                    return self._start_over()
                self.child.start()
                limit = self.settings.job_timeout_s
                return ended(
                    Status.failed,
                    DeadlineExceeded(f"the job took longer than {limit} s", limit=limit, actual=limit).problem(),
                )
            if self._stop_by is not None and now > self._stop_by:
                self.child.kill()
                return Unfinished.handed_back
            if now - renewed_at > self.settings.lease_s / 3:
                renewed_at = now
                if not self._still_ours(job_id, execution, owner):
                    stop_by = self._ask_to_stop(execution, stop_by)
            if self.storage.is_superseded(job_id, claim):  # canceled, deleted, overtaken
                stop_by = self._ask_to_stop(execution, stop_by)
            if stop_by is not None and now > stop_by:
                self.child.start()
                return Unfinished.taken

    def _start_over(self) -> Unfinished:
        """The child did not take up its work: no fault of the job."""
        log.error("the child did not begin its work (exit code %s), starting another", self.child.kill())
        self.child.start()
        return Unfinished.handed_back

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
        return Unfinished.died

    def _still_ours(self, job_id: str, execution: str, owner: str | None) -> bool:
        """Renew the lease; a Redis that forgot it gives it back, one that does not answer takes nothing away."""
        if time.monotonic() < self._silent_until:
            return True
        try:
            self.announce(busy_with=job_id)
            lease_s = self.settings.lease_s
            return self.broker.renew_lease(job_id, execution, lease_s, owner=owner) or self.broker.take_lease(
                job_id, execution, lease_s, owner=owner
            )
        except redis.RedisError:
            self._silent_until = time.monotonic() + SILENCE_S
            return True

    def _tell(self, job_id: str, progress: JobProgress) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            self.broker.report(job_id, progress)
        except redis.RedisError:
            self._silent_until = time.monotonic() + SILENCE_S
            log.debug("progress of job %s is lost: the queue does not answer", job_id)

    def _learn(self, timing: JobTiming) -> None:
        try:
            self.broker.learn(timing)
        except redis.RedisError:
            log.debug("a timing is lost: the queue does not answer")

    # --- looking around

    def announce(self, busy_with: str | None = None) -> None:
        """Tell that this worker lives, and what it has loaded."""
        self.broker.announce_worker(WorkerInfo(name=self.name, busy_with=busy_with, **self._about()))

    def _about(self) -> dict[str, Any]:
        return {"device": "starting"} | self.child.about

    def recover(self) -> None:
        """Queue every open job that nobody holds and nobody has queued; remove what is past its time."""
        lost = self.broker.lost(self.storage.open_jobs())
        self._looks = {job_id: self._looks.get(job_id, 0) + 1 for job_id in lost}
        for job_id in reversed(lost):  # each goes to the front: the oldest last
            if self._has_ended(job_id):
                self.storage.tidy(job_id)
            elif self._looks[job_id] >= LOST_AFTER_LOOKS and self._has_room(job_id) and self.broker.forget_lost(job_id):
                log.warning("job %s was not in the queue; queued again", job_id)
                self.broker.enqueue(job_id, at_front=True)
        for job_id in self.broker.popped():
            if self._has_ended(job_id):
                self.broker.forget_popped(job_id, has_ended=True)
        if time.monotonic() - self._swept_at > SWEEP_INTERVAL_S:
            self._swept_at = time.monotonic()
            for job_id in self.storage.sweep():
                log.info("job %s expired", job_id)

    def _has_room(self, job_id: str) -> bool:
        """Whether one more of its owner's jobs may run."""
        limit = self.settings.max_running_per_key
        if limit is None:
            return True
        try:
            owner = self.storage.record(job_id).owner
        except JobNotFound:
            return False
        return owner is None or self.broker.running(owner) < limit
