"""What happens to a job, as it happens: for server-sent events and long polls.

Workers write progress to a stream in Redis, which wakes whoever listens; a look at storage once a second tells of the
end even where Redis has forgotten the stream or does not answer. Whoever listens costs a connection to Redis, not a
thread.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis
from anyio import to_thread
from redis import asyncio as redis_async

from service.jobs.jobs import Jobs, compose
from service.jobs.queue import events_key
from uvos.contract import JobEnd, JobProgress, JobRecord, JobView, Status
from uvos.errors import QueueUnavailable

LOOK_EVERY_S = 1.0  # at storage, whatever Redis says
KEEP_ALIVE_S = 15.0  # proxies close what is silent for long
READ_AT_ONCE = 100
LISTENERS = 2000  # connections to Redis; whoever comes beyond them is told once a second
THE_END = "end"  # id of the last event: who has seen it is told that nothing more will come


@dataclass(frozen=True)
class Event:
    """The job after a change."""

    id: str
    """To go on from; that of the progress in Redis's stream, or `THE_END`."""
    job: JobView


class Listener:
    """Waits on Redis without holding a thread."""

    def __init__(self, url: str, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self.is_stopping = is_stopping
        """Whether the server is told to stop: who waits is let go, and comes back to another."""
        self._redis = redis_async.Redis.from_url(
            url, retry=None, socket_timeout=LOOK_EVERY_S + 1, socket_connect_timeout=1, protocol=2,
            max_connections=LISTENERS,
        )  # fmt: skip

    async def latest(self, job_id: str) -> str:
        """The id of the job's latest event; the one before all others where there is none."""
        entries: Any = await self._redis.xrevrange(events_key(job_id), count=1)
        return str(entries[0][0].decode()) if entries else "0-0"

    async def after(self, job_id: str, last: str, within_s: float) -> list[tuple[str, JobProgress | None]]:
        """The events after `last`, waiting for the first of them; None tells that the job ended."""
        key = events_key(job_id)
        answer: Any = await self._redis.xread({key: last}, count=READ_AT_ONCE, block=max(1, int(1000 * within_s)))
        return [
            (name.decode(), JobProgress.model_validate_json(fields[b"progress"]) if b"progress" in fields else None)
            for _, entries in answer or []
            for name, fields in entries
        ]

    async def close(self) -> None:
        await self._redis.aclose()


async def follow(
    jobs: Jobs, listener: Listener, record: JobRecord, last: str | None, *, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncIterator[Event | None]:
    """The job as it is now, or every progress after event `last`; then every change; at last its end.

    None is yielded where nothing has happened for `keep_alive_s`.
    """
    told: JobView | None = None
    spoke_at = time.monotonic()
    while True:
        events: list[Event] = []
        try:
            if last is None:
                last = await listener.latest(record.id)
                events.append(Event(last, await to_thread.run_sync(jobs.view, record)))
            else:
                entries = await listener.after(record.id, last, LOOK_EVERY_S)
                for last, progress in entries:
                    if progress is not None:
                        events.append(Event(last, await to_thread.run_sync(_at, jobs, record, progress)))
                if not entries:
                    events.append(Event(last, await to_thread.run_sync(jobs.view, record)))
        except (redis.RedisError, QueueUnavailable, OSError):
            await asyncio.sleep(LOOK_EVERY_S)
        for event in events:
            if not event.job.status.is_terminal and _differ(told, event.job):
                told, spoke_at = event.job, time.monotonic()
                yield event
        if await to_thread.run_sync(jobs.storage.has_ended, record.id):
            yield Event(THE_END, await to_thread.run_sync(_ended, jobs, record))
            return
        if listener.is_stopping():
            return
        if time.monotonic() - spoke_at > keep_alive_s:
            spoke_at = time.monotonic()
            yield None


async def wait_for_end(jobs: Jobs, listener: Listener, job_id: str, within_s: float) -> None:
    """Return when the job has ended, or after so many seconds."""
    deadline = time.monotonic() + within_s
    last: str | None = None
    while not await to_thread.run_sync(jobs.storage.has_ended, job_id):
        left = deadline - time.monotonic()
        if left <= 0 or listener.is_stopping():
            return
        try:
            if last is None:
                last = await listener.latest(job_id)
                continue  # it may have ended before this
            for event, _ in await listener.after(job_id, last, min(left, LOOK_EVERY_S)):
                last = event
        except (redis.RedisError, OSError):
            await asyncio.sleep(min(left, LOOK_EVERY_S))


def _at(jobs: Jobs, record: JobRecord, progress: JobProgress) -> JobView:
    """The job as it was when a worker told this."""
    return compose(record, None, progress, None, jobs.estimates.of(record, progress, None))


def _ended(jobs: Jobs, record: JobRecord) -> JobView:
    end = jobs.storage.end(record.id)
    if end is None:  # removed: it was canceled then
        now = datetime.now(UTC)
        end = JobEnd(status=Status.canceled, ended_at=now, expires_at=now)
    return compose(record, end)


def _differ(told: JobView | None, now: JobView) -> bool:
    """Whether there is something new to tell; estimates alone are not."""
    unwatched = {"eta_s", "fraction"}
    return told is None or told.model_dump(exclude=unwatched) != now.model_dump(exclude=unwatched)
