"""One execution of a job: take the lease, claim the job, watch the child, publish the end.

Two mechanisms protect against concurrent executions. The lease in Redis makes them rare: other workers do not begin a
job that is leased. The claim log in storage makes them harmless: only the latest claim may end the job.
"""

import logging
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Protocol

import redis

from service.jobs.index import JobIndex
from service.jobs.metrics import Instruments
from service.jobs.queue import Broker, CircuitBreaker
from service.logs import job_context
from service.settings import Settings
from service.storage.folder import Storage
from uvos.contract import JobEnd, JobRecord, Problem, Status
from uvos.errors import DeadlineExceeded, JobNotFound, StorageFull, TooManyAttempts, WeightsUnavailable
from worker.jobs.child import Child
from worker.jobs.messages import Begun, Done, Failed, FromChild, ProgressUpdate, Run, Stopped, StorageFailed

log = logging.getLogger(__name__)

TICK_S = 0.1  # between checks of the child, the lease and the deadlines
OWNERSHIP_INTERVAL_S = 0.5  # between reads of the claim log; cancellations arrive through Redis, sooner
CANCEL_TIMEOUT_S = 1.2  # then the child is killed: a cancelled job leaves the GPU within two seconds
BEGIN_TIMEOUT_S = 30.0  # a warm child that does not begin its work within this time hangs
REDIS_PAUSE_S = 2.0  # without calls to Redis after a failed one, so that its timeout does not delay the watch
LOST_EXECUTIONS_PER_ATTEMPT = 5  # a job may kill the worker itself each time, which then cannot count a crash


class Unfinished(Enum):
    """Why an execution stopped although its job has not ended."""

    crashed = auto()
    """The child crashed on the job; the job runs again."""
    handed_back = auto()
    """The worker stops, or its child was not available; the job runs again and no attempt counts."""
    storage_failed = auto()
    """The data folder is unavailable; `Recovery` requeues the job."""
    superseded = auto()
    """The job was canceled or deleted, or another execution has begun."""


RUNS_AGAIN = (Unfinished.crashed, Unfinished.handed_back)


class Host(Protocol):
    """The worker, as an execution uses it."""

    settings: Settings
    storage: Storage
    broker: Broker
    index: JobIndex
    child: Child
    instruments: Instruments
    stop_at: float | None
    """When a running job must be handed back, monotonic clock; None unless the worker was asked to stop."""
    download_failed_at: float
    """When weights could not be downloaded, monotonic clock."""

    def announce(self, busy_with: str | None = None) -> None: ...


class Execution:
    """One execution of one job."""

    def __init__(self, host: Host, job_id: str, *, begin_timeout_s: float = BEGIN_TIMEOUT_S) -> None:
        self._begin_timeout_s = begin_timeout_s
        self.host = host
        self.job_id = job_id
        self.id = secrets.token_hex(8)
        self._record: JobRecord | None = None
        self._claim = 0
        self._started_at = datetime.now(UTC)
        self._has_begun = False
        self._deadline = 0.0
        self._frames: int | None = None
        self._renewed_at = 0.0
        self._owned_at = 0.0
        self._kill_at: float | None = None
        self._redis = CircuitBreaker(REDIS_PAUSE_S)

    def run(self) -> None:
        """Run the job unless it has ended, is leased, or its owner has reached the limit of running jobs."""
        try:
            self._record = self.host.storage.record(self.job_id)
            if self.host.storage.has_ended(self.job_id) or not self.take_lease():
                return
        except JobNotFound:
            return
        except OSError as error:
            log.error("job %s: storage failed (%s); the job will be tried again", self.job_id, error)
            return
        with job_context(self.job_id, self._record.trace_id):
            self._run_leased()

    def _run_leased(self) -> None:
        outcome: JobEnd | Unfinished = Unfinished.superseded
        try:
            self._claim = self.host.storage.claim(self.job_id, self.id)
            log.info("job %s: execution %s begins", self.job_id, self.id)
            outcome = self.check_attempts() or self._watch()
            self._complete(outcome)
        except JobNotFound:
            log.info("job %s: it has ended since it was queued", self.job_id)
        except OSError as error:  # usually a full disk; the job stays open and runs again
            log.error("job %s: storage failed (%s); the job will be tried again", self.job_id, error)
        finally:
            self._release(requeue=outcome in RUNS_AGAIN)

    @property
    def _owner(self) -> str | None:
        return self._record.owner if self._record is not None else None

    # --- lease

    def take_lease(self) -> bool:
        settings = self.host.settings
        return self.host.broker.take_lease(
            self.job_id, self.id, settings.lease_s, owner=self._owner, limit=settings.max_running_per_key
        )

    def _keep_lease(self) -> bool:
        """Renew the lease, or take it again if Redis has lost it; False if another execution holds it.

        An unreachable Redis does not stop an execution: the claim log decides who may publish.
        """
        broker, lease_s = self.host.broker, self.host.settings.lease_s
        with suppress(redis.RedisError), self._redis.guard():
            self.host.announce(busy_with=self.job_id)
            return broker.renew_lease(self.job_id, self.id, lease_s, owner=self._owner) or broker.take_lease(
                self.job_id, self.id, lease_s, owner=self._owner
            )
        return True

    def _release(self, *, requeue: bool) -> None:
        broker = self.host.broker
        try:
            has_ended = self.host.storage.has_ended(self.job_id)
            if has_ended:
                self.host.index.refresh(self.job_id, self._owner)  # before the release, so that lists have the job
            broker.release_lease(self.job_id, self.id, owner=self._owner)
            if has_ended:
                broker.publish_end(self.job_id)
            elif requeue and broker.drop_lost(self.job_id):
                broker.enqueue(self.job_id, at_front=True)
                self.host.instruments.requeues.labels("unfinished").inc()
                log.info("job %s: requeued at the front", self.job_id)
        except (redis.RedisError, OSError) as error:
            log.warning("job %s: cannot be released (%s); the lease will expire", self.job_id, error)

    # --- watch

    def _watch(self) -> JobEnd | Unfinished:
        """Have the child run the job; check messages, deadlines and ownership until there is an outcome."""
        self._started_at = datetime.now(UTC)
        self._deadline = time.monotonic() + self._begin_timeout_s
        trace_id = self._record.trace_id if self._record is not None else None
        self.host.child.run(Run(job_id=self.job_id, execution=self.id, started_at=self._started_at, trace_id=trace_id))
        while True:
            try:
                message = self.host.child.receive(TICK_S)
            except EOFError:
                return self._after_crash()
            try:
                outcome = self._handle(message) or self._check_deadlines() or self._check_ownership()
            except OSError:  # storage failed here, but the child still works
                self._restart_child("storage")
                raise
            if outcome is not None:
                return outcome

    def _handle(self, message: FromChild | None) -> JobEnd | Unfinished | None:
        match message:
            case Begun(execution=self.id):
                self._has_begun = True
                self._deadline = time.monotonic() + self.host.settings.job_timeout_s
                self._measure_wait()
            case ProgressUpdate(progress=progress) if progress.execution == self.id:
                self._frames = progress.frames_total or self._frames
                self.publish_progress(message)
            case Done(execution=self.id, timing=timing):
                for stage, seconds in timing.seconds.items():
                    self.host.instruments.stage_seconds.labels(stage.value).observe(seconds)
                with suppress(redis.RedisError), self._redis.guard():
                    self.host.broker.record_timing(timing)
                return self._end(Status.succeeded)
            case Failed(execution=self.id, problem=problem, restart=restart):
                if restart:
                    self._restart_child("memory")
                if problem.type == WeightsUnavailable.type():
                    self.host.download_failed_at = time.monotonic()
                return self._end(Status.failed, problem)
            case StorageFailed(execution=self.id, reason=reason):
                log.error("job %s: storage failed (%s); the job will be tried again", self.job_id, reason)
                return Unfinished.storage_failed
            case Stopped(execution=self.id):
                return Unfinished.superseded
        return None

    def _measure_wait(self) -> None:
        if self._claim == 1 and self._record is not None:  # a later execution waited for the end of an earlier one
            waited = self._started_at - self._record.created_at
            self.host.instruments.queue_wait_seconds.observe(max(0.0, waited.total_seconds()))

    def _restart_child(self, reason: str) -> None:
        self.host.instruments.child_deaths.labels(reason).inc()
        self.host.child.start()

    def publish_progress(self, update: ProgressUpdate) -> None:
        """Publish progress to Redis; dropped if Redis does not respond."""
        with suppress(redis.RedisError), self._redis.guard():
            self.host.broker.publish_progress(self.job_id, update.progress)

    def _check_deadlines(self) -> JobEnd | Unfinished | None:
        """Stop at the job's deadline, or when the worker's grace period is over."""
        now = time.monotonic()
        if now > self._deadline and not self._has_begun:
            return self._replace_child()
        if now > self._deadline:
            self._restart_child("deadline")
            limit = self.host.settings.job_timeout_s
            error = DeadlineExceeded(f"the job took longer than {limit} s", limit=limit, actual=limit)
            return self._end(Status.failed, error.problem())
        if self.host.stop_at is not None and now > self.host.stop_at:
            self.host.instruments.child_deaths.labels("shutdown").inc()
            self.host.child.kill()
            return Unfinished.handed_back
        return None

    def _check_ownership(self) -> Unfinished | None:
        """Cancel the execution once the lease or the claim is lost; kill the child if it does not stop in time."""
        now = time.monotonic()
        if now - self._renewed_at > self.host.settings.lease_s / 3:
            self._renewed_at = now
            if not self._keep_lease():
                self.host.instruments.leases_lost.inc()
                self._cancel()
        if self._is_canceled() or self._is_superseded():
            self._cancel()
        if self._kill_at is not None and now > self._kill_at:
            self._restart_child("cancellation")
            return Unfinished.superseded
        return None

    def _is_canceled(self) -> bool:
        """Whether the API has announced a cancellation in Redis."""
        with suppress(redis.RedisError), self._redis.guard():
            return self.host.broker.is_canceled(self.job_id)
        return False

    def _is_superseded(self) -> bool:
        """Whether storage says that this execution may no longer publish; asked every `OWNERSHIP_INTERVAL_S`."""
        now = time.monotonic()
        if now - self._owned_at < OWNERSHIP_INTERVAL_S:
            return False
        self._owned_at = now
        return self.host.storage.is_superseded(self.job_id, self._claim)

    def _cancel(self) -> None:
        if self._kill_at is None:
            self.host.child.cancel(self.id)
            self._kill_at = time.monotonic() + CANCEL_TIMEOUT_S

    def _replace_child(self) -> Unfinished:
        """Restart a child that did not begin its work, which is not the job's fault."""
        log.error("the child did not begin its work (exit code %s); restarting it", self.host.child.kill())
        self._restart_child("start")
        return Unfinished.handed_back

    def _after_crash(self) -> JobEnd | Unfinished:
        """The child died: not the job's fault before it began, an attempt of the job afterwards."""
        if not self._has_begun:
            return self._replace_child()
        code = self.host.child.kill()
        self._restart_child("crash")
        crashes = self.host.storage.count_crash(self.job_id)
        log.error("job %s: the child crashed (exit code %s), crash %d", self.job_id, code, crashes)
        if crashes < self.host.settings.max_attempts:
            return Unfinished.crashed
        error = TooManyAttempts(
            f"the worker process crashed {crashes} times on this job (exit code {code})",
            limit=self.host.settings.max_attempts,
            actual=crashes,
        )
        return self._end(Status.failed, error.problem())

    def check_attempts(self) -> JobEnd | None:
        """The end of a job whose workers keep dying with it, so that no crash was counted."""
        limit = self.host.settings.max_attempts * LOST_EXECUTIONS_PER_ATTEMPT
        lost = self.host.storage.claim_log(self.job_id).unfinished() - 1  # without this execution
        if lost < limit:
            return None
        error = TooManyAttempts(f"{lost} executions began and none of them ended", limit=limit, actual=lost)
        return self._end(Status.failed, error.problem())

    # --- end

    def _end(self, status: Status, problem: Problem | None = None) -> JobEnd:
        now = datetime.now(UTC)
        return JobEnd(
            status=status,
            ended_at=now,
            expires_at=now + timedelta(seconds=self.host.settings.result_ttl_s),
            execution=self.id if status == Status.succeeded else None,
            started_at=self._started_at,
            frames=self._frames,
            error=problem,
        )

    def _complete(self, outcome: JobEnd | Unfinished) -> None:
        """Publish the end of the job, or hand the job back."""
        if not isinstance(outcome, JobEnd) or outcome.execution is None:
            self.host.storage.remove_work(self.job_id, self.id)  # first: on a full disk it makes space for the record
        if isinstance(outcome, JobEnd):
            self.publish(outcome)
        elif outcome is Unfinished.handed_back:
            self.host.storage.hand_back(self.job_id, self._claim)

    def publish(self, end: JobEnd) -> None:
        """End the job if this execution still may; if the result cannot be stored, the job fails."""
        storage = self.host.storage
        try:
            has_ended = storage.finish(self.job_id, end, claim=self._claim)
        except OSError as error:
            if end.execution is None:
                raise
            log.error("job %s: the result cannot be stored: %s", self.job_id, error)
            storage.remove_work(self.job_id, self.id)  # makes space for the record
            problem = StorageFull("no space left to store the result").problem()
            end = end.model_copy(update={"status": Status.failed, "execution": None, "error": problem})
            has_ended = storage.finish(self.job_id, end, claim=self._claim)
        if has_ended:
            log.info("job %s: %s", self.job_id, end.status.value)
            self._count(end)
            return
        log.warning("job %s: this execution was superseded and publishes nothing", self.job_id)
        if end.execution is not None:
            storage.remove_work(self.job_id, self.id)

    def _count(self, end: JobEnd) -> None:
        instruments = self.host.instruments
        instruments.count_end(end)
        if end.status == Status.succeeded and self._record is not None:
            instruments.frames.inc(end.frames or 0)
            instruments.job_seconds.observe(max(0.0, (end.ended_at - self._record.created_at).total_seconds()))
