"""The events of a job as they happen, for server-sent events and long polling.

Workers append progress to a Redis stream per job, which wakes its listeners. Listeners also poll storage once a second,
so that they see the end of a job even if Redis has lost the stream or does not respond. A listener holds a connection
to Redis, not a thread.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis
from anyio import to_thread
from pydantic import ValidationError
from redis import asyncio as redis_async

from service.jobs.jobs import Jobs, compose
from service.jobs.queue import events_key
from uvos.contract import JobEnd, JobProgress, JobRecord, JobView, Status
from uvos.errors import QueueUnavailable

POLL_INTERVAL_S = 1.0  # of storage
KEEP_ALIVE_S = 15.0  # proxies close connections that are idle for long
BATCH_SIZE = 100
MAX_CONNECTIONS = 2000  # to Redis; further listeners only poll storage
THE_END = "end"  # id of the last event; a client that reconnects with it gets nothing more


@dataclass(frozen=True)
class Event:
    """The job after a change."""

    id: str
    """The position in the Redis stream from which to continue, or `THE_END`."""
    job: JobView


class Listener:
    """Waits for events in Redis without blocking a thread."""

    def __init__(self, url: str, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self.is_stopping = is_stopping
        """Whether the server shuts down; waiting requests then return early."""
        self._redis = redis_async.Redis.from_url(
            url, retry=None, socket_timeout=POLL_INTERVAL_S + 1, socket_connect_timeout=1, protocol=2,
            max_connections=MAX_CONNECTIONS,
        )  # fmt: skip

    async def latest(self, job_id: str) -> str:
        """The id of the job's latest event; "0-0" if there is none."""
        entries: Any = await self._redis.xrevrange(events_key(job_id), count=1)
        return str(entries[0][0].decode()) if entries else "0-0"

    async def after(self, job_id: str, last: str, timeout_s: float) -> list[tuple[str, JobProgress | None]]:
        """The events after `last`, as soon as there is one; an event without progress only wakes."""
        key = events_key(job_id)
        streams: Any = await self._redis.xread({key: last}, count=BATCH_SIZE, block=max(1, int(1000 * timeout_s)))
        return [
            (event_id.decode(), _parse_progress(fields.get(b"progress")))
            for _, entries in streams or []
            for event_id, fields in entries
        ]

    async def close(self) -> None:
        await self._redis.aclose()


async def follow(
    jobs: Jobs, listener: Listener, record: JobRecord, last: str | None, *, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncIterator[Event | None]:
    """Yield the current state of the job, or all events after `last`; then every change; finally its end.

    Yields None whenever nothing has happened for `keep_alive_s`.
    """
    sent: JobView | None = None
    sent_at = time.monotonic()
    while True:
        last, events = await _next_events(jobs, listener, record, last)
        for event in events:
            if not event.job.status.is_terminal and _has_changed(sent, event.job):
                sent, sent_at = event.job, time.monotonic()
                yield event
        if await to_thread.run_sync(jobs.storage.has_ended, record.id):
            yield Event(THE_END, await to_thread.run_sync(_view_at_end, jobs, record))
            return
        if listener.is_stopping():
            return
        if time.monotonic() - sent_at > keep_alive_s:
            sent_at = time.monotonic()
            yield None


async def _next_events(
    jobs: Jobs, listener: Listener, record: JobRecord, last: str | None
) -> tuple[str | None, list[Event]]:
    """The id of the latest event and the events after `last`; the current state if there are none.

    Returns after `POLL_INTERVAL_S` at the latest. If Redis does not respond, the events read so far are returned.
    """
    events: list[Event] = []
    try:
        if last is None:
            last = await listener.latest(record.id)
            return last, [Event(last, await to_thread.run_sync(jobs.view, record))]
        entries = await listener.after(record.id, last, POLL_INTERVAL_S)
        for event_id, progress in entries:
            last = event_id
            if progress is not None:
                events.append(Event(last, await to_thread.run_sync(_view_at, jobs, record, progress)))
        if not entries:
            events.append(Event(last, await to_thread.run_sync(jobs.view, record)))
    except (redis.RedisError, QueueUnavailable, OSError):
        await asyncio.sleep(POLL_INTERVAL_S)
    return last, events


async def wait_for_end(jobs: Jobs, listener: Listener, job_id: str, timeout_s: float) -> None:
    """Return when the job has ended, when the timeout is over, or when the server shuts down."""
    deadline = time.monotonic() + timeout_s
    last: str | None = None
    while not await to_thread.run_sync(jobs.storage.has_ended, job_id):
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0 or listener.is_stopping():
            return
        try:
            if last is None:
                last = await listener.latest(job_id)
                continue  # it may have ended before this
            for event_id, _ in await listener.after(job_id, last, min(remaining_s, POLL_INTERVAL_S)):
                last = event_id
        except (redis.RedisError, OSError):
            await asyncio.sleep(min(remaining_s, POLL_INTERVAL_S))


def _parse_progress(text: bytes | None) -> JobProgress | None:
    with suppress(ValidationError):  # untrusted input
        return JobProgress.model_validate_json(text) if text is not None else None
    return None


def _view_at(jobs: Jobs, record: JobRecord, progress: JobProgress) -> JobView:
    """The view of a running job at this progress."""
    return compose(record, None, progress, None, jobs.estimates.of(record, progress, None))


def _view_at_end(jobs: Jobs, record: JobRecord) -> JobView:
    end = jobs.storage.end(record.id)
    if end is None:  # deleted, which cancels a job
        now = datetime.now(UTC)
        end = JobEnd(status=Status.canceled, ended_at=now, expires_at=now)
    return compose(record, end)


def _has_changed(sent: JobView | None, current: JobView) -> bool:
    """Whether the view differs in more than its estimates."""
    estimates = {"eta_s", "fraction"}
    return sent is None or sent.model_dump(exclude=estimates) != current.model_dump(exclude=estimates)
