"""The state that the API and the workers share in Redis: the queue, leases, progress, timings, live workers.

None of it is authoritative. If Redis loses it, workers requeue open jobs from storage (`worker/jobs/recovery.py`), and
the end of a job is always read from storage.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis
from pydantic import ValidationError
from rq import Queue
from rq.exceptions import DuplicateJobError
from rq.serializers import JSONSerializer

from uvos.contract import QUEUE, TASK, JobProgress, JobTiming, QueueMessage, WorkerInfo

PROGRESS_TTL_S = 24 * 3600
EVENTS_KEPT = 500
TIMINGS_KEPT = 20  # per model; estimates come from the latest jobs
WORKER_TTL_S = 15
RESPONSE_TIMEOUT_S = 2.0  # redis-py with its default retries waits up to 59 s for a frozen server

# If a job is neither leased nor queued, remove what Redis still holds of it, so that it can be queued again. One atomic
# step: otherwise a worker could pop the job in between.
DROP_LOST_JOB = """
if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('LPOS', KEYS[2], ARGV[1]) then return 0 end
redis.call('LREM', KEYS[3], 0, ARGV[1])
redis.call('DEL', KEYS[4])
return 1
"""

# Take the lease of a job that has none, if its owner is below the limit.
# KEYS: the lease; the owner's leases as a sorted set, execution -> expiry.
# ARGV: execution; milliseconds; the owner's limit of running jobs (0: no limit).
TAKE_LEASE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[3] ~= '0' and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return 1
"""

# Renew or release a lease only if this execution holds it.
RENEW_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
RELEASE_LEASE = """
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


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

    def dequeue(self, job_id: str) -> None:
        """Remove a job from the queue."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(self.queue.key, 0, job_id)
            pipeline.lrem(self.queue.intermediate_queue_key, 0, job_id)
            pipeline.delete(f"rq:job:{job_id}", _progress(job_id))
            pipeline.execute()

    def position(self, job_id: str) -> int | None:
        """The number of jobs before this one; None if it is not queued."""
        position = self.connection.lpos(self.queue.key, job_id)
        return position if isinstance(position, int) else None

    def length(self) -> int:
        count: int = self.connection.llen(self.queue.key)
        return count

    def drop_lost(self, job_id: str) -> bool:
        """Remove what Redis holds of a job that is neither leased nor queued; whether it may be queued again."""
        keys = (_lease(job_id), self.queue.key, self.queue.intermediate_queue_key, f"rq:job:{job_id}")
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
        """Those of the jobs that are neither queued nor leased, in the given order."""
        if not job_ids:
            return []
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.lrange(self.queue.key, 0, -1)
            for job_id in job_ids:
                pipeline.exists(_lease(job_id))
            queued, *leases = pipeline.execute()
        waiting = {item.decode(errors="replace") for item in queued}
        return [job_id for job_id, lease in zip(job_ids, leases, strict=True) if not lease and job_id not in waiting]

    # --- leases

    def take_lease(
        self, job_id: str, execution: str, seconds: float, *, owner: str | None, limit: int | None = None
    ) -> bool:
        """Lease a job; False if it is leased already or its owner has `limit` jobs running."""
        arguments = (execution, int(seconds * 1000), limit or 0 if owner is not None else 0)
        return bool(self.connection.eval(TAKE_LEASE, 2, _lease(job_id), _running(owner), *arguments))

    def renew_lease(self, job_id: str, execution: str, seconds: float, *, owner: str | None) -> bool:
        """Extend a lease; False if this execution no longer holds it."""
        keys = (_lease(job_id), _running(owner))
        return bool(self.connection.eval(RENEW_LEASE, 2, *keys, execution, int(seconds * 1000)))

    def release_lease(self, job_id: str, execution: str, *, owner: str | None) -> None:
        self.connection.eval(RELEASE_LEASE, 2, _lease(job_id), _running(owner), execution)

    def running(self, owner: str | None) -> int:
        """The number of leased jobs of an owner."""
        seconds, _ = self.connection.time()  # the clock of Redis, with which the leases were taken
        count: int = self.connection.zcount(_running(owner), seconds * 1000, "+inf")
        return count

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

    def progress(self, job_id: str) -> JobProgress | None:
        """The progress of a job; None unless it is leased."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(_lease(job_id))
            pipeline.get(_progress(job_id))
            is_leased, text = pipeline.execute()
        with suppress(ValidationError):  # untrusted input
            return JobProgress.model_validate_json(text) if is_leased and text else None
        return None

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
        self.connection.set(f"uvos:worker:{info.name}", info.model_dump_json(), ex=WORKER_TTL_S)

    def retire_worker(self, name: str) -> None:
        self.connection.delete(f"uvos:worker:{name}")

    def workers(self) -> list[WorkerInfo]:
        """The workers that have sent a heartbeat in the last `WORKER_TTL_S` seconds."""
        keys: Iterable[bytes] = self.connection.scan_iter("uvos:worker:*", count=1000)
        texts: list[Any] = [self.connection.get(key) for key in keys]
        workers = []
        for text in texts:
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


def _timings(model: str) -> str:
    return f"uvos:timings:{model}"


def _progress(job_id: str) -> str:
    return f"uvos:progress:{job_id}"
