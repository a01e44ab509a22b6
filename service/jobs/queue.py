"""What service and workers say to each other in Redis: the queue, leases, progress. Nothing here is the truth.

Redis may forget all of it: jobs are found again in storage (`worker/jobs/queue.py`), ends are read from storage.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import redis
from pydantic import ValidationError
from rq import Queue
from rq.exceptions import DuplicateJobError
from rq.serializers import JSONSerializer

from uvos.contract import QUEUE, TASK, JobProgress, JobTiming, QueueMessage, WorkerInfo

PROGRESS_TTL_S = 24 * 3600
EVENTS_KEPT = 500
TIMINGS_KEPT = 20  # of each model: the estimates come from the latest jobs
WORKER_TTL_S = 15
ANSWER_WITHIN_S = 2.0  # the API's patience with Redis; redis-py would wait up to 59 s on a frozen server

# Take a job from whoever lost it: only if nobody holds it, nobody has it in the queue, drop what is left of it in
# Redis, so that it can be queued anew. One step, or a worker could pop it in between.
FORGET_LOST_JOB = """
if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('LPOS', KEYS[2], ARGV[1]) then return 0 end
redis.call('LREM', KEYS[3], 0, ARGV[1])
redis.call('DEL', KEYS[4])
return 1
"""

# Hold a job that nobody holds, if its owner has room. KEYS: the lease, and by execution until when its owner's other
# jobs are held. ARGV: execution, milliseconds, how many of the owner's jobs may run (0: any number).
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

# Keep or end a lease only while it is ours.
RENEW_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2], ARGV[1])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
END_LEASE = """
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


def connect(url: str, *, answer_within_s: float | None = ANSWER_WITHIN_S) -> "redis.Redis":
    """A client that gives up after `answer_within_s` instead of retrying for a minute."""
    return redis.Redis.from_url(
        url, retry=None, socket_timeout=answer_within_s, socket_connect_timeout=ANSWER_WITHIN_S, protocol=2
    )


class Broker:
    """The few Redis commands this service needs, named by what they mean."""

    def __init__(self, connection: "redis.Redis", *, job_timeout_s: int) -> None:
        self.connection = connection
        self.job_timeout_s = job_timeout_s
        self.queue = Queue(QUEUE, connection=connection, serializer=JSONSerializer)

    # --- the queue

    def enqueue(self, job_id: str, *, at_front: bool = False) -> None:
        """Queue a job; it is there once, however often this is called."""
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
        """Take a job out of the queue, wherever it stands."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(self.queue.key, 0, job_id)
            pipeline.lrem(self.queue.intermediate_queue_key, 0, job_id)
            pipeline.delete(f"rq:job:{job_id}", _progress(job_id))
            pipeline.execute()

    def position(self, job_id: str) -> int | None:
        """Jobs before this one; None where it is not in the queue."""
        place = self.connection.lpos(self.queue.key, job_id)
        return place if isinstance(place, int) else None

    def length(self) -> int:
        count: int = self.connection.llen(self.queue.key)
        return count

    def forget_lost(self, job_id: str) -> bool:
        """Drop what Redis still has of a job that nobody holds; whether it may be queued anew."""
        keys = (_lease(job_id), self.queue.key, self.queue.intermediate_queue_key, f"rq:job:{job_id}")
        return bool(self.connection.eval(FORGET_LOST_JOB, len(keys), *keys, job_id))

    def popped(self) -> list[str]:
        """Jobs that some worker popped; those of a worker that died then stay here."""
        found: list[Any] = self.connection.lrange(self.queue.intermediate_queue_key, 0, 999)
        return [item.decode(errors="replace") for item in found]

    def forget_popped(self, job_id: str, *, has_ended: bool) -> None:
        """Take a popped job out of the queue's books, altogether once it has ended."""
        with self.connection.pipeline() as pipeline:
            pipeline.lrem(self.queue.intermediate_queue_key, 0, job_id)
            if has_ended:
                pipeline.delete(f"rq:job:{job_id}")
            pipeline.execute()

    def lost(self, job_ids: list[str]) -> list[str]:
        """Those of the jobs that are neither queued nor held, in their order."""
        if not job_ids:
            return []
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.lrange(self.queue.key, 0, -1)
            for job_id in job_ids:
                pipeline.exists(_lease(job_id))
            queued, *held = pipeline.execute()
        waiting = {item.decode(errors="replace") for item in queued}
        return [job_id for job_id, lease in zip(job_ids, held, strict=True) if not lease and job_id not in waiting]

    # --- leases

    def take_lease(
        self, job_id: str, execution: str, seconds: float, *, owner: str | None, limit: int | None = None
    ) -> bool:
        """Hold a job for some seconds; whether nobody else does, and its owner may have one more running."""
        arguments = (execution, int(seconds * 1000), limit or 0 if owner is not None else 0)
        return bool(self.connection.eval(TAKE_LEASE, 2, _lease(job_id), _running(owner), *arguments))

    def renew_lease(self, job_id: str, execution: str, seconds: float, *, owner: str | None) -> bool:
        """Hold it longer; whether it was still ours."""
        keys = (_lease(job_id), _running(owner))
        return bool(self.connection.eval(RENEW_LEASE, 2, *keys, execution, int(seconds * 1000)))

    def end_lease(self, job_id: str, execution: str, *, owner: str | None) -> None:
        self.connection.eval(END_LEASE, 2, _lease(job_id), _running(owner), execution)

    def running(self, owner: str | None) -> int:
        """How many of this owner's jobs are held now."""
        count: int = self.connection.zcount(_running(owner), int(time.time() * 1000), "+inf")
        return count

    def is_held(self, job_id: str) -> bool:
        return bool(self.connection.exists(_lease(job_id)))

    # --- progress and events

    def report(self, job_id: str, progress: JobProgress) -> None:
        """Tell where a running job is, to whoever asks and to whoever listens."""
        text = progress.model_dump_json()
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.set(_progress(job_id), text, ex=PROGRESS_TTL_S)
            pipeline.xadd(events_key(job_id), {"progress": text}, maxlen=EVENTS_KEPT, approximate=True)
            pipeline.expire(events_key(job_id), PROGRESS_TTL_S)
            pipeline.execute()

    def announce_end(self, job_id: str) -> None:
        """Wake whoever waits for a job's end."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.xadd(events_key(job_id), {"end": "1"}, maxlen=EVENTS_KEPT, approximate=True)
            pipeline.expire(events_key(job_id), PROGRESS_TTL_S)
            pipeline.execute()

    def progress(self, job_id: str) -> JobProgress | None:
        """Where a job is, if somebody works on it now."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(_lease(job_id))
            pipeline.get(_progress(job_id))
            held, text = pipeline.execute()
        with suppress(ValidationError):  # Redis may hold anything
            return JobProgress.model_validate_json(text) if held and text else None
        return None

    # --- how long jobs take

    def learn(self, timing: JobTiming) -> None:
        """Keep what a job took."""
        with self.connection.pipeline() as pipeline:
            pipeline.lpush(_timings(timing.model), timing.model_dump_json())
            pipeline.ltrim(_timings(timing.model), 0, TIMINGS_KEPT - 1)
            pipeline.execute()

    def timings(self, model: str) -> list[JobTiming]:
        """What the latest jobs of a model took, newest first."""
        texts: list[Any] = self.connection.lrange(_timings(model), 0, TIMINGS_KEPT - 1)
        found = []
        for text in texts:
            with suppress(ValidationError):  # Redis may hold anything
                found.append(JobTiming.model_validate_json(text))
        return found

    # --- workers

    def announce_worker(self, info: WorkerInfo) -> None:
        self.connection.set(f"uvos:worker:{info.name}", info.model_dump_json(), ex=WORKER_TTL_S)

    def retire_worker(self, name: str) -> None:
        self.connection.delete(f"uvos:worker:{name}")

    def workers(self) -> list[WorkerInfo]:
        """The workers that have shown life in the last seconds."""
        keys: Iterable[bytes] = self.connection.scan_iter("uvos:worker:*", count=1000)
        texts: list[Any] = [self.connection.get(key) for key in keys]
        found = []
        for text in texts:
            with suppress(ValidationError):
                found.append(WorkerInfo.model_validate_json(text or b""))
        return sorted(found, key=lambda info: info.name)


def events_key(job_id: str) -> str:
    """The stream of a job's events."""
    return f"uvos:events:{job_id}"


def _lease(job_id: str) -> str:
    return f"uvos:lease:{job_id}"


def _running(owner: str | None) -> str:
    return f"uvos:running:{owner or ''}"


def _timings(model: str) -> str:
    return f"uvos:timings:{model}"


def _progress(job_id: str) -> str:
    return f"uvos:progress:{job_id}"
