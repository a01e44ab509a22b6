"""The events of a job as they happen, for server-sent events and long polling.

Workers append progress to a Redis stream per job. One watcher per job and process reads it, polls storage, and passes
each change to all listeners of the job. It polls storage once a second, so that they see the end of a job even if Redis
has lost the stream or does not respond. A listener holds neither a thread nor a connection to Redis.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import redis
from anyio import to_thread
from pydantic import ValidationError
from redis import asyncio as redis_async

from service.jobs.jobs import Jobs, compose
from service.jobs.queue import events_key
from service.storage.folder import StoredJob
from uvos.contract import JobEnd, JobProgress, JobRecord, JobView, Status
from uvos.errors import QueueUnavailable

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0  # of storage
KEEP_ALIVE_S = 15.0  # proxies close connections that are idle for long
BATCH_SIZE = 100
MAX_CONNECTIONS = 2000  # to Redis; further watchers only poll storage
MAX_PENDING = 1000  # events of a slow listener; older ones are dropped
MAX_DELAY_S = 0.1  # beyond it, a listener receives only the latest of several events
S_PER_LISTENER = 0.001  # least interval between two events, so that many listeners do not take the whole process
THE_END = "end"  # id of the last event; a client that reconnects with it gets nothing more


@dataclass(frozen=True)
class Event:
    """The job after a change."""

    id: str
    """The position in the Redis stream from which to continue, or `THE_END`."""
    job: JobView

    @cached_property
    def data(self) -> str:
        """The job as JSON; computed once for all listeners."""
        return self.job.model_dump_json(exclude_none=True)

    @cached_property
    def state(self) -> str:
        """The job without estimates, which change all the time."""
        return self.job.model_dump_json(exclude={"eta_s", "fraction"})

    def is_before(self, event_id: str) -> bool:
        """Whether this event is older than one that a listener has received."""
        return self.id != THE_END and _position(self.id) < _position(event_id)


Subscription = asyncio.Queue[Event | None]
"""Receives the events of a job; None when the server shuts down."""


class Watcher:
    """Passes the events of one job to all its listeners."""

    def __init__(self, jobs: Jobs, client: "redis_async.Redis", record: JobRecord) -> None:
        self.subscriptions: set[Subscription] = set()
        self.current: Event | None = None
        """The latest event; None before the first."""
        self._jobs = jobs
        self._redis = client
        self._record = record
        self._checked_at = float("-inf")

    async def run(self, is_stopping: Callable[[], bool]) -> None:
        """Publish events until the job has ended or the server shuts down."""
        last: str | None = None
        try:
            while not is_stopping():
                last, events, may_have_ended = await self._next(last)
                is_crowded = S_PER_LISTENER * len(self.subscriptions) > MAX_DELAY_S
                for event in events[-1:] if is_crowded else events:
                    if not event.job.status.is_terminal:
                        self._publish(event)
                if (may_have_ended or self._is_check_due()) and await self._has_ended():
                    self._send(Event(THE_END, await to_thread.run_sync(self._view_at_end)))
                    return
                await asyncio.sleep(S_PER_LISTENER * len(self.subscriptions))
        except Exception:
            log.exception("job %s: its events cannot be followed", self._record.id)
        self._send(None)

    def _is_check_due(self) -> bool:
        return time.monotonic() - self._checked_at >= POLL_INTERVAL_S

    async def _has_ended(self) -> bool:
        self._checked_at = time.monotonic()
        with suppress(OSError):  # storage is unavailable for now
            return await to_thread.run_sync(self._jobs.storage.has_ended, self._record.id)
        return False

    def _publish(self, event: Event) -> None:
        is_new = self.current is None or self.current.state != event.state
        self.current = event
        if is_new:
            self._send(event)

    def _send(self, event: Event | None) -> None:
        for subscription in self.subscriptions:
            if subscription.full():
                subscription.get_nowait()
            subscription.put_nowait(event)

    async def _next(self, last: str | None) -> tuple[str | None, list[Event], bool]:
        """The id of the latest event, the events after `last`, and whether one of them may be the end of the job.

        The current state if there are none for `POLL_INTERVAL_S`, or `last` is None; nothing if Redis does not respond.
        """
        events: list[Event] = []
        may_have_ended = last is None
        try:
            if last is None:
                last = await self._latest()
                entries = []
            else:
                entries = await self._read(last)
            for last, progress in entries:
                if progress is None:
                    may_have_ended = True
                else:
                    events.append(Event(last, await to_thread.run_sync(self._jobs.view_at, self._record, progress)))
            if not entries:
                events.append(Event(last, await to_thread.run_sync(self._jobs.view, StoredJob(self._record, None))))
        except (redis.RedisError, QueueUnavailable, OSError):
            await asyncio.sleep(POLL_INTERVAL_S)
        return last, events, may_have_ended

    async def _latest(self) -> str:
        """The id of the job's latest event; "0-0" if there is none."""
        entries: Any = await self._redis.xrevrange(events_key(self._record.id), count=1)
        return str(entries[0][0].decode()) if entries else "0-0"

    async def _read(self, last: str) -> list[tuple[str, JobProgress | None]]:
        """The events after `last`, as soon as there is one; an event without progress is the end."""
        key = events_key(self._record.id)
        streams: Any = await self._redis.xread({key: last}, count=BATCH_SIZE, block=int(1000 * POLL_INTERVAL_S))
        return [_parse(entry) for _, entries in streams or [] for entry in entries]

    async def missed(self, last: str) -> list[Event]:
        """The events after `last` that Redis has."""
        try:
            entries: Any = await self._redis.xrange(events_key(self._record.id), min=f"({last}")
            events = [_parse(entry) for entry in entries]
            return [
                Event(event_id, await to_thread.run_sync(self._jobs.view_at, self._record, progress))
                for event_id, progress in events
                if progress is not None
            ]
        except (redis.RedisError, QueueUnavailable):
            return []

    def _view_at_end(self) -> JobView:
        end = self._jobs.storage.end(self._record.id)
        if end is None:  # deleted, which cancels a job
            now = datetime.now(UTC)
            end = JobEnd(status=Status.canceled, ended_at=now, expires_at=now)
        return compose(self._record, end)


class Listener:
    """The watchers of this process."""

    def __init__(self, url: str, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self.is_stopping = is_stopping
        """Whether the server shuts down; waiting requests then return early."""
        self._watchers: dict[str, Watcher] = {}
        self._tasks: dict[Watcher, asyncio.Task[None]] = {}
        self._redis = redis_async.Redis.from_url(
            url, retry=None, socket_timeout=POLL_INTERVAL_S + 1, socket_connect_timeout=1, protocol=2,
            max_connections=MAX_CONNECTIONS,
        )  # fmt: skip

    @asynccontextmanager
    async def subscribe(self, jobs: Jobs, record: JobRecord) -> AsyncIterator[tuple[Watcher, Subscription]]:
        """Subscribe to the events of a job; the first subscription starts its watcher, the last one stops it."""
        watcher = self._watchers.get(record.id)
        if watcher is None:
            watcher = self._watchers[record.id] = Watcher(jobs, self._redis, record)
            self._tasks[watcher] = asyncio.create_task(self._run(record.id, watcher))
        subscription: Subscription = asyncio.Queue(MAX_PENDING)
        watcher.subscriptions.add(subscription)
        try:
            yield watcher, subscription
        finally:
            watcher.subscriptions.discard(subscription)
            if not watcher.subscriptions and watcher in self._tasks:
                self._tasks[watcher].cancel()
                self._forget(record.id, watcher)

    async def _run(self, job_id: str, watcher: Watcher) -> None:
        try:
            await watcher.run(self.is_stopping)
        finally:
            self._forget(job_id, watcher)

    def _forget(self, job_id: str, watcher: Watcher) -> None:
        """Let the next subscription start another watcher."""
        self._tasks.pop(watcher, None)
        if self._watchers.get(job_id) is watcher:
            del self._watchers[job_id]

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.aclose()


async def follow(
    jobs: Jobs, listener: Listener, record: JobRecord, last: str | None, *, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncIterator[Event | None]:
    """Yield the current state of the job, or all events after `last`; then every change; finally its end.

    Yields None whenever nothing has happened for `keep_alive_s`.
    """
    async with listener.subscribe(jobs, record) as (watcher, subscription):
        sent: Event | None = None
        if last is None and watcher.current is not None:
            sent = watcher.current
            yield sent
        if last is not None:
            for event in await watcher.missed(last):
                sent, last = event, event.id
                yield event
        while True:
            try:
                received = await asyncio.wait_for(subscription.get(), keep_alive_s)
            except TimeoutError:
                yield None
                continue
            if received is None:
                return
            is_end = received.id == THE_END
            is_known = (last is not None and received.is_before(last)) or (
                sent is not None and sent.state == received.state
            )
            if is_end or not is_known:
                sent, last = received, received.id
                yield received
            if is_end:
                return


async def wait_for_end(jobs: Jobs, listener: Listener, record: JobRecord, timeout_s: float) -> None:
    """Return when the job has ended, when the timeout is over, or when the server shuts down."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            async for event in follow(jobs, listener, record, None):
                if event is not None and event.id == THE_END:
                    return


def _parse(entry: tuple[bytes, dict[bytes, bytes]]) -> tuple[str, JobProgress | None]:
    """The id and the progress of an entry of the stream; its content is untrusted."""
    event_id, fields = entry
    with suppress(ValidationError):
        if b"progress" in fields:
            return event_id.decode(), JobProgress.model_validate_json(fields[b"progress"])
    return event_id.decode(), None


def _position(event_id: str) -> tuple[int, int]:
    milliseconds, number = event_id.split("-")
    return int(milliseconds), int(number)
