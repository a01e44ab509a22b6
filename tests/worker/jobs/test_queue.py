"""One job in the parent's hands: its lease, its deadline, its attempts, and who may publish."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from service.settings import Settings
from service.storage.folder import Storage
from tests.chaos.stub_child import stub_video
from uvos.contract import JobEnd, JobParams, JobRecord, Motion, Status
from worker.jobs.child import Child
from worker.jobs.queue import SegmentWorker

PATIENCE_S = 30.0


@pytest.fixture
def worker(settings: Settings) -> Iterator[SegmentWorker]:
    quick = settings.model_copy(update={"lease_s": 2.0, "job_timeout_s": 1, "max_running_per_key": 1})
    storage = Storage(quick.data_dir, result_ttl_s=60)
    worker = SegmentWorker(quick, storage, Child(quick, "tests.chaos.stub_child"))
    worker.child.start()
    warm_up(worker)
    yield worker
    worker.child.kill()
    worker.broker.connection.close()
    worker.connection.close()
    worker.queues[0].connection.close()


def warm_up(worker: SegmentWorker) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not worker._keep_child():
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


def reason(end: JobEnd) -> str:
    assert end.status == Status.failed
    assert end.error is not None
    return end.error.type.removeprefix("/problems/")


def deaths(worker: SegmentWorker, job_id: str) -> int:
    folder = worker.storage.root / "jobs" / job_id / "deaths"
    return len(os.listdir(folder)) if folder.exists() else 0


def test_a_job_that_is_done_has_its_result_and_no_lease(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    worker._execute(job_id)
    end = end_of(worker, job_id)
    assert end.status == Status.succeeded
    assert (worker.storage.result_dir(job_id, end) / "manifest.json").exists()
    assert not worker.broker.is_held(job_id)


def test_a_job_that_has_ended_or_is_held_or_never_was_is_left_alone(worker: SegmentWorker) -> None:
    ended, held = submit(worker), submit(worker)
    now = datetime.now(UTC)
    worker.storage.finish(ended, JobEnd(status=Status.canceled, ended_at=now, expires_at=now))
    worker.broker.take_lease(held, "another", 60, owner=None)
    for job_id in (ended, held, "never", "../../etc"):
        worker._execute(job_id)
    assert worker.storage.end(held) is None
    assert worker.broker.is_held(held)


def test_the_deadline_holds_for_one_that_hears_nothing(worker: SegmentWorker) -> None:
    job_id, before = submit(worker, stub_video(deaf=True)), worker.child.pid
    began = time.monotonic()
    worker._execute(job_id)
    assert time.monotonic() - began < 5
    assert reason(end_of(worker, job_id)) == "deadline-exceeded"
    assert worker.child.pid != before


def test_a_job_that_kills_its_child_is_tried_three_times(worker: SegmentWorker) -> None:
    job_id = submit(worker, stub_video(die=True))
    for attempt in range(1, 4):
        assert worker.storage.end(job_id) is None
        worker._execute(job_id)
        assert deaths(worker, job_id) == attempt
        warm_up(worker)
    assert reason(end_of(worker, job_id)) == "too-many-attempts"


def test_a_child_that_was_dead_before_is_no_fault_of_the_job(worker: SegmentWorker) -> None:
    first, job_id = submit(worker), submit(worker)
    worker.broker.enqueue(first)
    assert worker.child.pid is not None
    os.kill(worker.child.pid, signal.SIGKILL)
    worker._execute(job_id)
    assert worker.storage.end(job_id) is None
    assert deaths(worker, job_id) == 0
    assert worker.storage.lost_executions(job_id) == 0
    assert worker.broker.position(job_id) == 0  # before the other
    warm_up(worker)
    worker._execute(job_id)
    assert end_of(worker, job_id).status == Status.succeeded


def test_a_job_whose_workers_vanish_with_it_is_given_up(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    for number in range(15):
        worker.storage.claim(job_id, f"vanished{number}")
    worker._execute(job_id)
    assert reason(end_of(worker, job_id)) == "too-many-attempts"


def test_a_job_of_an_owner_with_enough_running_waits_and_comes_again(worker: SegmentWorker) -> None:
    job_id = submit(worker, owner="ada")
    worker.broker.take_lease("another", "e", 60, owner="ada", limit=1)
    worker._execute(job_id)
    for _ in range(3):
        worker.recover()
    assert worker.broker.position(job_id) is None
    assert not worker.broker.is_held(job_id)
    worker.broker.end_lease("another", "e", owner="ada")
    worker.recover()
    assert worker.broker.position(job_id) == 0


def test_what_was_lost_comes_back_oldest_first_after_a_second_look(worker: SegmentWorker) -> None:
    ids = [submit(worker) for _ in range(3)]
    worker.recover()
    assert worker.broker.length() == 0  # it may be between queue and lease
    worker.recover()
    assert [worker.broker.position(job_id) for job_id in sorted(ids)] == [0, 1, 2]


def test_what_ended_is_cleared_from_the_books_of_the_queue(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    worker.broker.enqueue(job_id)
    queue = worker.broker.queue
    worker.broker.connection.lmove(queue.key, queue.intermediate_queue_key)
    now = datetime.now(UTC)
    worker.storage.finish(job_id, JobEnd(status=Status.canceled, ended_at=now, expires_at=now))
    worker.recover()
    assert worker.broker.popped() == []
    assert not worker.broker.connection.exists(f"rq:job:{job_id}")


class FullStorage(Storage):
    """A disk with no room for the record of a success."""

    def finish(self, job_id: str, end: JobEnd, *, claim: int | None = None) -> bool:
        if end.execution is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().finish(job_id, end, claim=claim)


def test_a_result_that_does_not_fit_fails_and_leaves_nothing(worker: SegmentWorker) -> None:
    job_id = submit(worker)
    worker.storage = FullStorage(worker.storage.root, result_ttl_s=60)
    worker._execute(job_id)
    assert reason(end_of(worker, job_id)) == "storage-full"
    assert os.listdir(worker.storage.root / "jobs" / job_id / "work") == []


class NoStorage(Storage):
    """A disk on which nothing can be written."""

    def claim(self, job_id: str, execution: str) -> int:  # noqa: ARG002  # as its parent has it
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_job_that_cannot_even_begin_stays_open(worker: SegmentWorker) -> None:
    job_id, storage = submit(worker), worker.storage
    worker.storage = NoStorage(storage.root, result_ttl_s=60)
    worker._execute(job_id)
    assert storage.open_jobs() == [job_id]
    assert not worker.broker.is_held(job_id)
    worker.storage = storage
    worker._execute(job_id)
    assert end_of(worker, job_id).status == Status.succeeded
