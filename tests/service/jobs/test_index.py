"""The index of jobs gives the lists that storage gives, also after Redis missed or lost changes."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from service.jobs.index import BUILDING, BUILT
from service.jobs.jobs import Jobs
from service.jobs.metrics import Instruments
from service.jobs.queue import Broker, connect
from service.settings import Settings
from service.storage.folder import Storage
from uvos.contract import JobEnd, JobParams, JobProgress, JobRecord, Motion, Stage, Status

TAGS = ["cat", "dog:big"]
OWNERS = ("ada", "bob", None)
ENDS = (Status.succeeded, Status.failed, Status.canceled)


@pytest.fixture
def jobs(settings: Settings) -> Iterator[Jobs]:
    assert settings.redis_url is not None
    connection = connect(settings.redis_url.get_secret_value())
    jobs = Jobs(
        Storage(settings.data_dir, result_ttl_s=60), Broker(connection, job_timeout_s=60), settings, Instruments()
    )
    assert jobs.index.is_current()
    yield jobs
    connection.close()


def submit(jobs: Jobs, owner: str | None = None, *, tags: list[str] | None = None, indexed: bool = True) -> str:
    with jobs.storage.new_upload() as upload:
        record = JobRecord(
            id=upload.id,
            created_at=datetime.now(UTC),
            owner=owner,
            video_name="a",
            video_bytes=5,
            video_sha256=upload.finish(),
            params=JobParams(tau=[1.0], model="tiny", motion=Motion.off),
            tags=tags or [],
        )
        jobs.storage.submit(record, upload, "")
    if indexed:
        jobs.index.put(record, None)
    return upload.id


def finish(jobs: Jobs, job_id: str, status: Status = Status.failed, *, ttl_s: float = 60, indexed: bool = True) -> None:
    now = datetime.now(UTC)
    jobs.storage.finish(job_id, JobEnd(status=status, ended_at=now, expires_at=now + timedelta(seconds=ttl_s)))
    if indexed:
        jobs.index.refresh(job_id)


def listed(
    jobs: Jobs, owner: str | None, status: Status | None = None, *, tag: str | None = None, size: int = 1000
) -> list[str]:
    ids: list[str] = []
    before: str | None = None
    while True:
        page = jobs.page(owner=owner, before=before, status=status, tag=tag, size=size)
        ids += [job.id for job in page.jobs]
        before = page.next
        if before is None:
            return ids


def stored(jobs: Jobs, owner: str | None, status: Status | None, tag: str | None = None) -> list[str]:
    """The list as storage gives it, without the index."""
    ids = []
    for job_id in jobs.storage.job_ids():
        job = jobs.storage.load(job_id)
        actual = Status.queued if job.end is None else job.end.status
        if job.record.owner == owner and status in (None, actual) and (tag is None or tag in job.record.tags):
            ids.append(job_id)
    return ids


@pytest.mark.parametrize("seed", range(3))
def test_lists_equal_those_of_storage_whatever_redis_missed(jobs: Jobs, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(60):
        action, indexed = draw.random(), draw.random() < 0.7
        ids = jobs.storage.job_ids()
        if action < 0.5 or not ids:
            submit(jobs, draw.choice(OWNERS), tags=draw.sample(TAGS, draw.randrange(3)), indexed=indexed)
        elif action < 0.8:
            finish(jobs, draw.choice(ids), draw.choice(ENDS), indexed=indexed)
        elif action < 0.95:
            jobs.storage.delete(draw.choice(ids))
        else:
            jobs.broker.connection.flushall()
    jobs.index.is_current()
    jobs.index.reconcile(jobs.storage.open_jobs())
    for owner in OWNERS:
        for status in (None, Status.queued, *ENDS):
            size, tag = draw.choice([1, 3, 1000]), draw.choice([None, *TAGS])
            assert listed(jobs, owner, status, tag=tag, size=size) == stored(jobs, owner, status, tag)
        if owner is not None:
            assert jobs.open_of(owner) == len(stored(jobs, owner, Status.queued))


def test_the_index_is_compared_with_storage_after_a_restart_of_redis(jobs: Jobs) -> None:
    finish(jobs, submit(jobs, indexed=False), indexed=False)  # as if Redis died before it wrote the change to disk
    assert listed(jobs, None, Status.failed) == []
    jobs.broker.connection.set(BUILT, "another run")
    assert listed(jobs, None, Status.failed) == jobs.storage.job_ids()


def test_lists_come_from_storage_while_the_index_is_built_or_redis_is_down(jobs: Jobs) -> None:
    job_id = submit(jobs, "ada", indexed=False)
    finish(jobs, job_id, indexed=False)
    jobs.broker.connection.delete(BUILT)
    jobs.broker.connection.set(BUILDING, 1)
    assert listed(jobs, "ada", Status.failed) == [job_id]
    assert jobs.open_of("ada") == 0
    down = Jobs(jobs.storage, Broker(connect("redis://127.0.0.1:1"), job_timeout_s=60), jobs.settings, jobs.instruments)
    assert listed(down, "ada", Status.failed) == [job_id]
    assert listed(down, "bob") == []
    assert down.open_of("ada") == 0


def test_running_and_queued_jobs_are_listed_by_their_progress(jobs: Jobs) -> None:
    queued, running = submit(jobs), submit(jobs)
    jobs.broker.take_lease(running, "e", 60, owner=None)
    assert set(listed(jobs, None, Status.queued)) == {queued, running}
    progress = JobProgress(execution="e", started_at=datetime.now(UTC), stage=Stage.decode)
    jobs.broker.publish_progress(running, progress)
    assert listed(jobs, None, Status.running) == [running]
    assert listed(jobs, None, Status.queued) == [queued]
    finish(jobs, running, indexed=False)  # its worker has not released it yet
    assert listed(jobs, None, Status.failed) == [running]
    assert listed(jobs, None, Status.running) == []


def test_expired_jobs_are_removed_by_their_time(jobs: Jobs) -> None:
    kept, expired, never = submit(jobs), submit(jobs, "ada"), submit(jobs)
    finish(jobs, kept)
    finish(jobs, expired, ttl_s=-1)
    assert jobs.index.expire(datetime.now(UTC)) == [expired]
    assert jobs.storage.job_ids() == sorted([kept, never], reverse=True)
    later = datetime.now(UTC) + timedelta(seconds=61)
    assert jobs.index.expire(later) == [kept]
    assert jobs.index.expire(later) == []
    assert jobs.storage.job_ids() == [never]


def test_foreign_members_of_the_index_are_dropped(jobs: Jobs) -> None:
    job_id = submit(jobs)
    for key in ("uvos:index:all:", "uvos:index:open:", "uvos:index:open", "uvos:index:jobs", "uvos:index:expiry"):
        jobs.broker.connection.zadd(key, {b"../../etc": 0, b"\xff": 0, b"": 0, b"zz": 0})
    assert listed(jobs, None) == [job_id]
    assert listed(jobs, None, Status.queued) == [job_id]
    jobs.index.reconcile(jobs.storage.open_jobs())
    assert jobs.index.expire(datetime.now(UTC)) == []
    assert jobs.storage.open_jobs() == [job_id]
