"""Index of jobs in Redis, by owner and state: lists and counts that do not read every job.

The index is derived from storage, which stays authoritative: a list reads each job that it shows. An entry that Redis
missed or lost is repaired in three ways: the leader compares the open jobs with storage at every pass (`reconcile`),
every start of a Redis server is followed by a comparison of all jobs (`is_current`), and a list drops what storage does
not have.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import redis

from service.storage.folder import Storage
from uvos.contract import JobEnd, JobRecord
from uvos.errors import JobNotFound

log = logging.getLogger(__name__)

STATES = ("all", "open", "succeeded", "failed", "canceled")
JOBS, OPEN, EXPIRY = "uvos:index:jobs", "uvos:index:open", "uvos:index:expiry"
BUILT = "uvos:index:built"  # the run id of the server that the index was last compared with storage on
BUILDING = "uvos:index:building"
BUILD_TIMEOUT_S = 300
CHECK_INTERVAL_S = 1.0  # between questions for the server's run id
BATCH_SIZE = 200
EXPIRED_PER_PASS = 1000

# Add an open job unless it has ended meanwhile. KEYS: the expiry times; the sets to add the job to. ARGV: the job.
ADD_OPEN = """
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
for i = 2, #KEYS do redis.call('ZADD', KEYS[i], 0, ARGV[1]) end
return 1
"""


class JobIndex:
    """Sorted sets of job ids, which sort by creation time."""

    def __init__(self, storage: Storage, connection: "redis.Redis") -> None:
        self.storage = storage
        self.connection = connection
        self._run_id = b""
        self._checked_at = float("-inf")

    # --- look up; every method may raise redis.RedisError

    def is_current(self) -> bool:
        """Whether the index has been compared with storage since the Redis server started; does so if it has not.

        False while another process does.
        """
        if time.monotonic() - self._checked_at > CHECK_INTERVAL_S:
            info: Any = self.connection.info("server")
            self._run_id, self._checked_at = info["run_id"].encode(), time.monotonic()
        if self.connection.get(BUILT) == self._run_id:
            return True
        if not self.connection.set(BUILDING, 1, nx=True, ex=BUILD_TIMEOUT_S):
            return False
        try:
            self._build()
            self.connection.set(BUILT, self._run_id)
        finally:
            self.connection.delete(BUILDING)
        return True

    def walk(self, owner: str | None, state: str, *, before: str | None, tag: str | None = None) -> Iterator[str]:
        """The ids of an owner's jobs in one of `STATES`, newest first.

        Args:
            owner: The owner; None for a service without API keys.
            state: One of `STATES`.
            before: Only jobs older than this one.
            tag: Only jobs with this tag.
        """
        key = _key(state, owner, tag)
        while True:
            latest = "+" if before is None else f"({before}"
            members: list[Any] = self.connection.zrevrangebylex(key, latest, "-", 0, BATCH_SIZE)
            ids = _texts(members)
            yield from ids
            if len(ids) < BATCH_SIZE:
                return
            before = ids[-1]

    def open_count(self, owner: str | None) -> int:
        """The number of an owner's jobs that have not ended."""
        count: int = self.connection.zcard(_key("open", owner))
        return count

    # --- change

    def put(self, record: JobRecord, end: JobEnd | None) -> None:
        """Add a job, or move it to its state."""
        sets = {state: [_key(state, record.owner, tag) for tag in (None, *record.tags)] for state in STATES}
        if end is None:
            opened = (EXPIRY, JOBS, OPEN, *sets["all"], *sets["open"])
            self.connection.eval(ADD_OPEN, len(opened), *opened, record.id)
            return
        with self.connection.pipeline() as pipeline:
            pipeline.zadd(JOBS, {record.id: 0})
            pipeline.zrem(OPEN, record.id)
            pipeline.zadd(EXPIRY, {record.id: end.expires_at.timestamp()})
            for state, keys in sets.items():
                for key in keys:
                    if state in ("all", end.status.value):
                        pipeline.zadd(key, {record.id: 0})
                    else:
                        pipeline.zrem(key, record.id)
            pipeline.execute()

    def remove(self, job_id: str, owner: str | None, tags: Sequence[str] = ()) -> None:
        """Remove a job from the lists of its owner and of these tags."""
        lists = [_key(state, owner, tag) for state in STATES for tag in (None, *tags)]
        with self.connection.pipeline() as pipeline:
            for key in (JOBS, OPEN, EXPIRY, *lists):
                pipeline.zrem(key, job_id)
            pipeline.execute()

    def refresh(self, job_id: str, owner: str | None = None, tags: Sequence[str] = ()) -> None:
        """Index a job as storage has it.

        Args:
            job_id: The job.
            owner: The owner in whose lists a job that is no longer in storage may be.
            tags: The tags in whose lists it may be.
        """
        try:
            job = self.storage.load(job_id)
        except JobNotFound:
            self.remove(job_id, owner, tags)
        else:
            self.put(job.record, job.end)

    # --- compare with storage

    def reconcile(self, open_jobs: Iterable[str]) -> None:
        """Repair the entries of jobs that are open in storage or in the index, but not in both."""
        indexed: list[Any] = self.connection.zrange(OPEN, 0, -1)
        self._refresh_all(set(open_jobs) ^ set(_texts(indexed)))

    def _build(self) -> None:
        began = time.monotonic()
        stored = set(self.storage.job_ids())
        members: list[Any] = self.connection.zrange(JOBS, 0, -1)
        indexed = set(_texts(members))
        self._refresh_all(stored ^ indexed)
        self.reconcile(self.storage.open_jobs())
        if stored - indexed:
            seconds = time.monotonic() - began
            log.warning("indexed %d jobs from storage in %.1f s", len(stored - indexed), seconds)

    def _refresh_all(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            try:
                self.refresh(job_id)
            except OSError as error:  # of this job's files only
                log.error("job %s: cannot be indexed: %s", job_id, error)

    def expire(self, now: datetime) -> list[str]:
        """Remove expired jobs from storage and index; their ids."""
        due: list[Any] = self.connection.zrangebyscore(EXPIRY, "-inf", now.timestamp(), 0, EXPIRED_PER_PASS)
        expired = []
        for job_id in _texts(due):
            try:
                record = None
                with suppress(JobNotFound):
                    record = self.storage.record(job_id)
                    if self.storage.expire(job_id, now):
                        expired.append(job_id)
                self.refresh(job_id, record.owner if record else None, record.tags if record else ())
            except OSError as error:  # of this job's files only
                log.error("job %s: cannot be removed: %s", job_id, error)
        return expired


def _key(state: str, owner: str | None, tag: str | None = None) -> str:
    key = f"uvos:index:{state}:{owner or ''}"
    return key if tag is None else f"{key}:{tag}"


def _texts(members: list[Any]) -> list[str]:
    """Members of a set as text; anything else than ids is replaced by what storage does not have."""
    return [member.decode(errors="replace") for member in members]
