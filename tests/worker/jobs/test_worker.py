"""One job in a worker: lease, deadline, attempts, and which execution may publish."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from service.settings import Settings
from service.storage.folder import Storage
from tests.chaos.stub_child import stub_video
from uvos.contract import JobEnd, JobParams, JobRecord, Motion, Status, WorkerInfo
from worker.jobs.child import Child
from worker.jobs.worker import ChildCannotStart, SegmentWorker

TIMEOUT_S = 30.0


@pytest.fixture
def worker(settings: Settings) -> Iterator[SegmentWorker]:
    quick = settings.model_copy(update={"lease_s": 2.0, "job_timeout_s": 1, "max_running_per_key": 1})
    with running_worker(quick) as worker:
        warm_up(worker)
        yield worker


@contextmanager
def running_worker(
    settings: Settings, module: str = "tests.chaos.stub_child", storage_type: type[Storage] = Storage
) -> Iterator[SegmentWorker]:
    """A worker whose child has been started."""
    storage = storage_type(settings.data_dir, result_ttl_s=60)
    worker = SegmentWorker(settings, storage, Child(settings, module))
    worker.child.start()
    try:
        yield worker
    finally:
        worker.child.kill()
        worker.broker.connection.close()
        worker.connection.close()
        worker.queues[0].connection.close()


def warm_up(worker: SegmentWorker) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not worker.keep_child_warm():
        assert time.monotonic() < deadline


def submit(worker: SegmentWorker, video: bytes | None = None, owner: str | None = None) -> str:
    video = stub_video() if video is None else video
    with worker.storage.new_upload() as upload:
        upload.write(video)
        record = JobRecord(
            id=upload.id,
            created_at=datetime.now(UTC),
            owner=owner,
            video_name="a",
            video_bytes=len(video),
            video_sha256=upload.finish(),
            params=JobParams(tau=[1.0], model="tiny", motion=Motion.off),
        )
        worker.storage.submit(record, upload, "")
    return upload.id


def end_of(worker: SegmentWorker, job_id: str) -> JobEnd:
    end = worker.storage.end(job_id)
    assert end is not None
    return end


def position(worker: SegmentWorker, job_id: str) -> int | None:
    [live] = worker.broker.live([worker.storage.record(job_id)])
    return live.position


def problem_type(end: JobEnd) -> str:
    assert end.status == Status.failed
    assert end.error is not None
    return end.error.type.removeprefix("/problems/")


def is_leased(worker: SegmentWorker, job_id: str) -> bool:
    return bool(worker.broker.connection.exists(f"uvos:lease:{job_id}"))


def crashes(worker: SegmentWorker, job_id: str) -> int:
    folder = worker.storage.root / "jobs" / job_id / "crashes"
    return len(os.listdir(folder)) if folder.exists() else 0


def test_a_finished_job_has_a_result_and_no_lease(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    worker.execute(job_id)
    end = end_of(worker, job_id)
    assert end.status == Status.succeeded
    assert (worker.storage.result_dir(job_id, end) / "manifest.json").exists()
    assert not is_leased(worker, job_id)


def test_a_job_that_has_ended_is_leased_or_does_not_exist_is_not_run(worker: SegmentWorker) -> None:
    ended, leased = submit(worker), submit(worker)
    now = datetime.now(UTC)
    worker.storage.finish(ended, JobEnd(status=Status.canceled, ended_at=now, expires_at=now))
    worker.broker.take_lease(leased, "another", 60, owner=None)
    for job_id in (ended, leased, "never", "../../etc"):
        worker.execute(job_id)
    assert worker.storage.end(leased) is None
    assert is_leased(worker, leased)


def test_deadline_applies_to_a_child_that_hangs(worker: SegmentWorker) -> None:
    job_id, before = submit(worker, stub_video(hang=True)), worker.child.pid
    began = time.monotonic()
    worker.execute(job_id)
    assert time.monotonic() - began < 5
    assert problem_type(end_of(worker, job_id)) == "deadline-exceeded"
    assert worker.child.pid != before


def test_a_job_that_crashes_its_child_is_tried_three_times(worker: SegmentWorker) -> None:
    job_id = submit(worker, stub_video(crash=True))
    for attempt in range(1, 4):
        assert worker.storage.end(job_id) is None
        worker.execute(job_id)
        assert crashes(worker, job_id) == attempt
        warm_up(worker)
    assert problem_type(end_of(worker, job_id)) == "too-many-attempts"


def test_a_child_that_died_before_the_job_began_costs_no_attempt(worker: SegmentWorker) -> None:
    first, job_id = submit(worker), submit(worker)
    worker.broker.enqueue(first)
    assert worker.child.pid is not None
    os.kill(worker.child.pid, signal.SIGKILL)
    worker.execute(job_id)
    assert worker.storage.end(job_id) is None
    assert crashes(worker, job_id) == 0
    assert worker.storage.claim_log(job_id).unfinished() == 0
    assert position(worker, job_id) == 0  # at the front
    warm_up(worker)
    worker.execute(job_id)
    assert end_of(worker, job_id).status == Status.succeeded


def test_a_job_whose_executions_all_vanish_fails(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    for number in range(15):
        worker.storage.claim(job_id, f"vanished{number}")
    worker.execute(job_id)
    assert problem_type(end_of(worker, job_id)) == "too-many-attempts"


def test_a_job_above_the_owners_running_limit_waits_and_is_requeued(worker: SegmentWorker) -> None:
    job_id = submit(worker, owner="ada")
    worker.broker.take_lease("another", "e", 60, owner="ada", limit=1)
    worker.execute(job_id)
    for _ in range(3):
        worker.recovery.run()
    assert position(worker, job_id) == 0
    assert worker.broker.queue.job_ids == []
    assert not is_leased(worker, job_id)
    worker.broker.release_lease("another", "e", owner="ada")
    assert worker.broker.queue.job_ids == [job_id]


def test_lost_jobs_are_requeued_oldest_first_after_two_sightings(worker: SegmentWorker) -> None:
    ids = [submit(worker) for _ in range(3)]
    worker.recovery.run()
    assert worker.broker.length() == 0  # a job between queue and lease looks lost
    worker.recovery.run()
    assert [position(worker, job_id) for job_id in sorted(ids)] == [0, 1, 2]


def test_an_ended_job_is_removed_from_the_queue(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    worker.broker.enqueue(job_id)
    queue = worker.broker.queue
    worker.broker.connection.lmove(queue.key, queue.intermediate_queue_key)
    now = datetime.now(UTC)
    worker.storage.finish(job_id, JobEnd(status=Status.canceled, ended_at=now, expires_at=now))
    worker.recovery.run()
    assert worker.broker.popped() == []
    assert not worker.broker.connection.exists(f"rq:job:{job_id}")


class FullStorage(Storage):
    """No space left for a result."""

    def finish(self, job_id: str, end: JobEnd, *, claim: int | None = None) -> bool:
        if end.execution is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().finish(job_id, end, claim=claim)


def test_a_job_whose_result_does_not_fit_on_the_disk_fails_and_leaves_nothing(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    worker.storage = FullStorage(worker.storage.root, result_ttl_s=60)
    worker.execute(job_id)
    assert problem_type(end_of(worker, job_id)) == "storage-full"
    assert os.listdir(worker.storage.root / "jobs" / job_id / "work") == []


class NoStorage(Storage):
    """No space left for anything."""

    def claim(self, job_id: str, execution: str) -> int:  # noqa: ARG002  # overrides the signature
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_job_that_cannot_be_claimed_stays_open(worker: SegmentWorker) -> None:
    job_id, storage = submit(worker), worker.storage
    worker.storage = NoStorage(storage.root, result_ttl_s=60)
    worker.execute(job_id)
    assert storage.open_jobs() == [job_id]
    assert not is_leased(worker, job_id)
    worker.storage = storage
    worker.execute(job_id)
    assert end_of(worker, job_id).status == Status.succeeded


def worker_info(worker: SegmentWorker) -> WorkerInfo:
    [info] = worker.broker.workers()
    return info


def test_a_child_starts_with_a_webhook_secret_set(settings: Settings) -> None:
    secret = settings.model_copy(update={"webhook_secret": SecretStr("a secret of the service")})
    with running_worker(secret) as worker:
        warm_up(worker)
        worker.announce()
        assert worker_info(worker).problem is None


def test_a_child_that_cannot_start_is_reported_with_its_reason(settings: Settings) -> None:
    with running_worker(settings, "tests.worker.jobs.failing_child") as worker:
        worker.announce()
        assert worker_info(worker).problem == "the models are being loaded"
        deadline = time.monotonic() + TIMEOUT_S
        while worker_info(worker).problem != "the models could not be loaded: RuntimeError: no such device":
            assert not worker.keep_child_warm()
            worker.announce()
            assert time.monotonic() < deadline


def test_a_worker_that_must_start_ends_with_its_first_child(settings: Settings) -> None:
    storage = Storage(settings.data_dir, result_ttl_s=60)
    child = Child(settings, "tests.worker.jobs.failing_child")
    with pytest.raises(ChildCannotStart, match="no such device"):
        SegmentWorker(settings, storage, child, must_start=True).serve()


def test_a_worker_waits_while_storage_is_unavailable(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    jobs, away = worker.storage.root / "jobs", worker.storage.root / "away"
    jobs.rename(away)
    jobs.write_text("not a folder")
    worker.maintain()
    worker.announce()
    problem = worker_info(worker).problem
    assert problem is not None
    assert problem.startswith("storage is unavailable")
    worker.execute(job_id)  # popped just before
    with pytest.raises(OSError, match="is missing"):
        worker.storage.purge(job_id)
    assert worker.storage.open_jobs() == [job_id]
    jobs.unlink()
    away.rename(jobs)
    worker.maintain()
    assert worker_info(worker).problem is None
    assert worker.storage.open_jobs() == [job_id]
    worker.execute(job_id)
    assert end_of(worker, job_id).status == Status.succeeded


def test_storage_that_fails_during_a_job_leaves_the_job_open(worker: SegmentWorker) -> None:
    job_id = submit(worker, stub_video(0.2))
    worker.storage = FailingStorage(worker.storage.root, result_ttl_s=60)
    worker.execute(job_id)
    assert worker.storage.open_jobs() == [job_id]
    assert not is_leased(worker, job_id)
    worker.storage = Storage(worker.storage.root, result_ttl_s=60)
    warm_up(worker)
    worker.execute(job_id)
    assert end_of(worker, job_id).status == Status.succeeded


class FailingStorage(Storage):
    """Storage that loses its permissions while a job runs."""

    def is_superseded(self, job_id: str, claim: int) -> bool:  # noqa: ARG002  # overrides the signature
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_damaged_job_fails_and_other_jobs_run(worker: SegmentWorker) -> None:
    damaged, intact = submit(worker), submit(worker)
    (worker.storage.root / "jobs" / damaged / "job.json").write_bytes(b'{"id": ')
    for _ in range(2):
        worker.recovery.run()
    assert position(worker, damaged) is None
    assert position(worker, intact) == 0
    assert problem_type(end_of(worker, damaged)) == "job-damaged"
    assert worker.storage.open_jobs() == [intact]
    worker.execute(damaged)
    worker.execute(intact)
    assert end_of(worker, intact).status == Status.succeeded
