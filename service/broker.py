"""What service and workers say to each other in Redis: the queue, leases, progress. Nothing here is the truth.

Redis may forget all of it: jobs are found again in storage (`worker/queue.py`), ends are read from storage.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import redis
from rq import Queue
from rq.exceptions import DuplicateJobError
from rq.serializers import JSONSerializer

from service.contract import QUEUE, TASK, Progress, QueueMessage, WorkerInfo

PROGRESS_TTL_S = 24 * 3600
EVENTS_KEPT = 500
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

# Keep or end a lease only while it is ours.
RENEW_LEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
END_LEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


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

    def lost(self, job_ids: list[str]) -> list[str]:
        """Those of the jobs that are neither queued nor held, in their order."""
        if not job_ids:
            return []
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.lrange(self.queue.key, 0, -1)
            for job_id in job_ids:
                pipeline.exists(_lease(job_id))
            queued, *held = pipeline.execute()
        waiting = {item.decode() for item in queued}
        return [job_id for job_id, lease in zip(job_ids, held, strict=True) if not lease and job_id not in waiting]

    # --- leases

    def take_lease(self, job_id: str, execution: str, seconds: float) -> bool:
        """Hold a job for some seconds; whether nobody else does."""
        return bool(self.connection.set(_lease(job_id), execution, nx=True, px=int(seconds * 1000)))

    def renew_lease(self, job_id: str, execution: str, seconds: float) -> bool:
        """Hold it longer; whether it was still ours."""
        return bool(self.connection.eval(RENEW_LEASE, 1, _lease(job_id), execution, int(seconds * 1000)))

    def end_lease(self, job_id: str, execution: str) -> None:
        self.connection.eval(END_LEASE, 1, _lease(job_id), execution)

    def is_held(self, job_id: str) -> bool:
        return bool(self.connection.exists(_lease(job_id)))

    # --- progress and events

    def report(self, job_id: str, progress: Progress) -> None:
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

    def progress(self, job_id: str) -> Progress | None:
        """Where a job is, if somebody works on it now."""
        with self.connection.pipeline(transaction=False) as pipeline:
            pipeline.exists(_lease(job_id))
            pipeline.get(_progress(job_id))
            held, text = pipeline.execute()
        return Progress.model_validate_json(text) if held and text else None

    # --- workers

    def announce_worker(self, info: WorkerInfo) -> None:
        self.connection.set(f"uvos:worker:{info.name}", info.model_dump_json(), ex=WORKER_TTL_S)

    def retire_worker(self, name: str) -> None:
        self.connection.delete(f"uvos:worker:{name}")

    def workers(self) -> list[WorkerInfo]:
        """The workers that have shown life in the last seconds."""
        keys: Iterable[bytes] = self.connection.scan_iter("uvos:worker:*", count=1000)
        texts: list[Any] = [self.connection.get(key) for key in keys]
        found = [WorkerInfo.model_validate(json.loads(text)) for text in texts if text]
        return sorted(found, key=lambda info: info.name)


def events_key(job_id: str) -> str:
    """The stream of a job's events."""
    return f"uvos:events:{job_id}"


def _lease(job_id: str) -> str:
    return f"uvos:lease:{job_id}"


def _progress(job_id: str) -> str:
    return f"uvos:progress:{job_id}"
