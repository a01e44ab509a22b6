"""The state that the API and the workers share in Redis: the queue, leases, progress, timings, live workers.

None of it is authoritative. If Redis loses it, workers requeue open jobs from storage (`worker/jobs/recovery.py`), and
the end of a job is always read from storage.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import redis
from pydantic import ValidationError
from rq import Queue
from rq.exceptions import DuplicateJobError
from rq.serializers import JSONSerializer

from service.jobs.scripts import DROP_LOST_JOB, LEAD, RELEASE_LEASE, RENEW_LEASE, RESIGN, TAKE_LEASE, UNPARK
from uvos.contract import QUEUE, TASK, JobProgress, JobRecord, JobTiming, QueueMessage, WorkerInfo

PROGRESS_TTL_S = 24 * 3600
CANCEL_TTL_S = 600
EVENTS_KEPT = 500
TIMINGS_KEPT = 20  # per model; estimates come from the latest jobs
WORKER_TTL_S = 4  # a worker sends its heartbeat every second
RESPONSE_TIMEOUT_S = 2.0  # redis-py with its default retries waits up to 59 s for a frozen server
PARKED = "uvos:parked"  # hash: job -> owner, of the jobs that wait because their owner has too many running
LEADER = "uvos:leader"
SWEPT = "uvos:swept"
WORKERS = "uvos:workers"  # set of names


def connect(url: str, *, response_timeout_s: float | None = RESPONSE_TIMEOUT_S) -> "redis.Redis":
    """A client without retries; None as timeout is for blocking commands."""
    return redis.Redis.from_url(
        url, retry=None, socket_timeout=response_timeout_s, socket_connect_timeout=RESPONSE_TIMEOUT_S, protocol=2
    )


class CircuitBreaker:
    """Skips calls to Redis for `pause_s` after a failed one, so that not every caller waits for the timeout."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._open_until = 0.0

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run calls to Redis.

        Raises:
            redis.RedisError: A call failed now, or less than `pause_s` ago.
        """
        if time.monotonic() < self._open_until:
            raise redis.ConnectionError("Redis failed a moment ago and is not asked yet")
        try:
            yield
        except redis.RedisError:
            self._open_until = time.monotonic() + self._pause_s
            raise


class Live(NamedTuple):
    """The state of a job that has not ended."""

    progress: JobProgress | None
    """None unless a worker runs it."""
    position: int | None
    """The number of jobs before this one, for a parked job those of its owner; None unless it waits."""


class Broker:
    """The Redis commands of this service."""

    def __init__(self, connection: "redis.Redis", *, job_timeout_s: int) -> None:
        self.connection = connection
        self.job_timeout_s = job_timeout_s
        self.queue = Queue(QUEUE, connection=connection, serializer=JSONSerializer)

    # --- the queue

    def enqueue(self, job_id: str, *, at_front: bool = False) -> None:
        """Queue a job unless it is queued."""
        with suppress(DuplicateJobError):
            self.queue.enqueue_call(
                TASK,
                kwargs=QueueMessage(job_id=job_id).model_dump(),
                job_id=job_id,
                unique=True,
                timeout=self.job_timeout_s,
                result_ttl=0,
                failure_ttl=0,
                description="segment a video",
                at_front=at_front,
            )

    def dequeue(self, job_id: str, *, owner: str | None) -> None:
        """Remove a job from the queue."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(self.queue.key, 0, job_id)
            pipeline.lrem(self.queue.intermediate_queue_key, 0, job_id)
            pipeline.zrem(_parked(owner), job_id)
            pipeline.hdel(PARKED, job_id)
            pipeline.delete(f"rq:job:{job_id}", _progress(job_id))
            pipeline.execute()

    def length(self) -> int:
        """The number of waiting jobs."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.llen(self.queue.key)
            pipeline.hlen(PARKED)
            return sum(pipeline.execute())

    def oldest(self) -> str | None:
        """The job at the front of the queue."""
        job_id: Any = self.connection.lindex(self.queue.key, 0)
        return job_id.decode(errors="replace") if job_id is not None else None

    def drop_lost(self, job_id: str) -> bool:
        """Remove what Redis holds of a job that is neither leased nor waiting; whether it may be queued again."""
        keys = (_lease(job_id), self.queue.key, self.queue.intermediate_queue_key, f"rq:job:{job_id}", PARKED)
        return bool(self.connection.eval(DROP_LOST_JOB, len(keys), *keys, job_id))

    def popped(self) -> list[str]:
        """Jobs that workers have popped and not acknowledged; includes those of workers that died."""
        items: list[Any] = self.connection.lrange(self.queue.intermediate_queue_key, 0, 999)
        return [item.decode(errors="replace") for item in items]

    def ack(self, job_id: str, *, has_ended: bool) -> None:
        """Acknowledge a popped job; remove its RQ record too if it has ended."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(self.queue.intermediate_queue_key, 0, job_id)
            if has_ended:
                pipeline.delete(f"rq:job:{job_id}")
            pipeline.execute()

    def lost(self, job_ids: list[str]) -> list[str]:
        """Those of the jobs that are neither waiting nor leased, in the given order."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.lrange(self.queue.key, 0, -1)
            pipeline.hkeys(PARKED)
            queued, parked = pipeline.execute()
        waiting = {item.decode(errors="replace") for item in (*queued, *parked)}
        candidates = [job_id for job_id in job_ids if job_id not in waiting]
        if not candidates:
            return []
        with self.connection.pipeline(transaction=False) as pipeline:
            for job_id in candidates:
                pipeline.exists(_lease(job_id))
            leases = pipeline.execute()
        return [job_id for job_id, lease in zip(candidates, leases, strict=True) if not lease]

    def unpark(self, limit: int | None) -> None:
        """Queue the oldest parked job of each owner with fewer than `limit` running jobs."""
        owners: list[Any] = self.connection.hvals(PARKED)
        for owner in {name.decode(errors="replace") for name in owners}:
            keys = (_running(owner), _parked(owner), PARKED, self.queue.key, _unparked(owner))
            self.connection.eval(UNPARK, len(keys), *keys, limit or 0)

    # --- leader

    def lead(self, name: str, seconds: float) -> bool:
        """Become or remain the leader, for this time; False if another worker is."""
        return bool(self.connection.eval(LEAD, 1, LEADER, name, int(seconds * 1000)))

    def is_sweep_due(self, interval_s: int) -> bool:
        """Whether the last sweep was longer ago than this; True once, to the one that sweeps."""
        return bool(self.connection.set(SWEPT, 1, nx=True, ex=interval_s))

    def resign(self, name: str) -> None:
        """Cease to be the leader."""
        self.connection.eval(RESIGN, 1, LEADER, name)

    # --- leases

    def take_lease(
        self, job_id: str, execution: str, seconds: float, *, owner: str | None, limit: int | None = None
    ) -> bool:
        """Lease a job; False if it is leased already or its owner has `limit` jobs running.

        In the second case the job is parked: it is queued at the front when a job of its owner releases its lease.
        """
        keys = (_lease(job_id), _running(owner), _parked(owner), PARKED)
        limit = limit or 0 if owner is not None else 0
        return bool(
            self.connection.eval(
                TAKE_LEASE, len(keys), *keys, execution, int(seconds * 1000), limit, job_id, owner or ""
            )
        )

    def renew_lease(self, job_id: str, execution: str, seconds: float, *, owner: str | None) -> bool:
        """Extend a lease; False if this execution no longer holds it."""
        keys = (_lease(job_id), _running(owner))
        return bool(self.connection.eval(RENEW_LEASE, 2, *keys, execution, int(seconds * 1000)))

    def release_lease(self, job_id: str, execution: str, *, owner: str | None) -> None:
        """Release a lease if this execution holds it; the next parked job of the owner may run."""
        keys = (_lease(job_id), _running(owner), _parked(owner), PARKED, self.queue.key, _unparked(owner))
        self.connection.eval(RELEASE_LEASE, len(keys), *keys, execution)

    # --- progress and events

    def publish_progress(self, job_id: str, progress: JobProgress) -> None:
        """Store the progress of a running job and append it to the job's event stream."""
        text = progress.model_dump_json()
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.set(_progress(job_id), text, ex=PROGRESS_TTL_S)
            pipeline.xadd(events_key(job_id), {"progress": text}, maxlen=EVENTS_KEPT, approximate=True)
            pipeline.expire(events_key(job_id), PROGRESS_TTL_S)
            pipeline.execute()

    def publish_end(self, job_id: str) -> None:
        """Append the end of a job to its event stream, which wakes its listeners."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.xadd(events_key(job_id), {"end": "1"}, maxlen=EVENTS_KEPT, approximate=True)
            pipeline.expire(events_key(job_id), PROGRESS_TTL_S)
            pipeline.execute()

    def live(self, jobs: Sequence[JobRecord]) -> list["Live"]:
        """What Redis has of jobs that have not ended: of leased ones the progress, of waiting ones the position."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for job in jobs:
                pipeline.exists(_lease(job.id))
                pipeline.get(_progress(job.id))
                pipeline.lpos(self.queue.key, job.id)
                pipeline.zrank(_parked(job.owner), job.id)
            answers = pipeline.execute()
        states = []
        for is_leased, text, queued, parked in zip(*[iter(answers)] * 4, strict=True):
            progress = None
            with suppress(ValidationError):  # untrusted input
                progress = JobProgress.model_validate_json(text) if is_leased and text else None
            position = queued if queued is not None else parked
            states.append(Live(progress, None if progress is not None else position))
        return states

    def running(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the jobs that are leased and have reported progress."""
        with self.connection.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.exists(_lease(job_id), _progress(job_id))
            counts = pipeline.execute()
        return {job_id for job_id, count in zip(job_ids, counts, strict=True) if count == 2}

    def cancel(self, job_id: str) -> None:
        """Have the worker that runs the job stop, sooner than it reads storage."""
        self.connection.set(_canceled(job_id), 1, ex=CANCEL_TTL_S)

    def is_canceled(self, job_id: str) -> bool:
        """Whether the job was canceled a moment ago."""
        return bool(self.connection.exists(_canceled(job_id)))

    # --- timings

    def record_timing(self, timing: JobTiming) -> None:
        """Store how long a job took."""
        with self.connection.pipeline() as pipeline:
            pipeline.lpush(_timings(timing.model), timing.model_dump_json())
            pipeline.ltrim(_timings(timing.model), 0, TIMINGS_KEPT - 1)
            pipeline.execute()

    def timings(self, model: str) -> list[JobTiming]:
        """The timings of the latest jobs of a model, newest first."""
        texts: list[Any] = self.connection.lrange(_timings(model), 0, TIMINGS_KEPT - 1)
        timings = []
        for text in texts:
            with suppress(ValidationError):  # untrusted input
                timings.append(JobTiming.model_validate_json(text))
        return timings

    # --- workers

    def announce_worker(self, info: WorkerInfo) -> None:
        with self.connection.pipeline() as pipeline:
            pipeline.sadd(WORKERS, info.name)
            pipeline.set(_worker(info.name), info.model_dump_json(), ex=WORKER_TTL_S)
            pipeline.execute()

    def retire_worker(self, name: str) -> None:
        with self.connection.pipeline() as pipeline:
            pipeline.srem(WORKERS, name)
            pipeline.delete(_worker(name))
            pipeline.execute()

    def workers(self) -> list[WorkerInfo]:
        """The workers that have sent a heartbeat in the last `WORKER_TTL_S` seconds."""
        members: set[Any] = self.connection.smembers(WORKERS)
        names = [name.decode(errors="replace") for name in members]
        texts: list[Any] = self.connection.mget([_worker(name) for name in names]) if names else []
        workers = []
        for name, text in zip(names, texts, strict=True):
            if text is None:
                self.connection.srem(WORKERS, name)
            with suppress(ValidationError):
                workers.append(WorkerInfo.model_validate_json(text or b""))
        return sorted(workers, key=lambda info: info.name)


def events_key(job_id: str) -> str:
    """The Redis stream of a job's events."""
    return f"uvos:events:{job_id}"


def _lease(job_id: str) -> str:
    return f"uvos:lease:{job_id}"


def _running(owner: str | None) -> str:
    return f"uvos:running:{owner or ''}"


def _parked(owner: str | None) -> str:
    return f"uvos:parked:{owner or ''}"


def _unparked(owner: str | None) -> str:
    return f"uvos:unparked:{owner or ''}"


def _canceled(job_id: str) -> str:
    return f"uvos:canceled:{job_id}"


def _timings(model: str) -> str:
    return f"uvos:timings:{model}"


def _worker(name: str) -> str:
    return f"uvos:worker:{name}"


def _progress(job_id: str) -> str:
    return f"uvos:progress:{job_id}"
