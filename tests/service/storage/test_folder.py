"""Storage: records are created once, a superseded execution publishes nothing, nothing partial stays."""

import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.storage.folder import ORPHAN_AGE_S, Storage, new_job_id
from uvos.contract import JobEnd, JobParams, JobRecord, Motion, Status
from uvos.errors import IdempotencyConflict, JobNotFound, StorageFull

T = TypeVar("T")
PARAMS = JobParams(tau=[1.0], model="tiny", motion=Motion.off)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "data", result_ttl_s=60)


def submit(storage: Storage, key: str | None = None, fingerprint: str = "f") -> str:
    with storage.new_upload() as upload:
        upload.write(b"video")
        record = JobRecord(
            id=upload.id,
            created_at=datetime.now(UTC),
            video_name="a",
            video_bytes=5,
            video_sha256=upload.finish(),
            params=PARAMS,
            idempotency_key=key,
        )
        return storage.submit(record, upload, fingerprint).id


def end(status: Status = Status.succeeded, execution: str | None = None, ttl_s: float = 60) -> JobEnd:
    now = datetime.now(UTC)
    return JobEnd(status=status, ended_at=now, expires_at=now + timedelta(seconds=ttl_s), execution=execution)


def work(storage: Storage, job_id: str, execution: str) -> int:
    claim = storage.claim(job_id, execution)
    folder = storage.work_dir(job_id, execution)
    folder.mkdir()
    (folder / "mask").write_text(execution)
    return claim


def at_once(count: int, action: Callable[[int], T]) -> list[T]:
    barrier = threading.Barrier(count)

    def run(index: int) -> T:
        barrier.wait()
        return action(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_ids_sort_by_time_and_are_random() -> None:
    ids = [new_job_id() for _ in range(100)]
    assert len({job_id[12:] for job_id in ids}) == 100
    assert [job_id[:12] for job_id in ids] == sorted(job_id[:12] for job_id in ids)


def test_an_upload_that_is_not_submitted_is_removed(storage: Storage) -> None:
    with storage.new_upload() as upload:
        upload.write(b"half a video")
    assert os.listdir(storage.root / "uploads") == []


def test_an_upload_that_does_not_fit_is_rejected_before_it_is_received(storage: Storage) -> None:
    with pytest.raises(StorageFull):
        storage.new_upload(2**60)


@pytest.mark.parametrize("job_id", ["../../etc", "a/b", "", ".", "a" * 65, "x\0y"])
def test_an_id_never_leads_outside_the_folder(storage: Storage, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        storage.record(job_id)


def test_of_concurrent_ends_one_succeeds(storage: Storage) -> None:
    job_id = submit(storage)
    assert sorted(at_once(8, lambda _: storage.finish(job_id, end(Status.canceled)))) == [False] * 7 + [True]


def test_concurrent_claims_get_different_numbers(storage: Storage) -> None:
    job_id = submit(storage)
    assert sorted(at_once(8, lambda index: storage.claim(job_id, f"e{index}"))) == list(range(1, 9))


def test_a_superseded_execution_publishes_nothing(storage: Storage) -> None:
    job_id = submit(storage)
    first = work(storage, job_id, "first")
    second = work(storage, job_id, "second")
    assert not storage.work_dir(job_id, "first").exists()
    storage.work_dir(job_id, "first").mkdir()
    assert not storage.finish(job_id, end(execution="first"), claim=first)
    assert storage.end(job_id) is None
    assert storage.finish(job_id, end(execution="second"), claim=second)
    assert not storage.finish(job_id, end(execution="first"), claim=first)
    assert os.listdir(storage.root / "jobs" / job_id / "work") == ["second"]


def test_a_canceled_job_cannot_succeed(storage: Storage) -> None:
    job_id = submit(storage)
    claim = work(storage, job_id, "e")
    assert storage.finish(job_id, end(Status.canceled))
    assert not storage.finish(job_id, end(execution="e"), claim=claim)
    ended = storage.end(job_id)
    assert ended is not None
    assert ended.status == Status.canceled
    with pytest.raises(JobNotFound):
        storage.claim(job_id, "later")


def test_an_end_in_the_claim_log_is_finalized_by_the_next_process(storage: Storage) -> None:
    job_id = submit(storage)
    claim = work(storage, job_id, "e")
    storage.finish(job_id, end(execution="e"), claim=claim)
    (storage.root / "jobs" / job_id / "end.json").unlink()  # as if the process was killed before `finalize`
    storage.mark_open(job_id)
    with pytest.raises(JobNotFound):
        storage.claim(job_id, "later")
    ended = storage.end(job_id)
    assert ended is not None
    assert ended.execution == "e"
    assert storage.open_jobs() == []


def test_the_video_of_an_ended_job_is_removed(storage: Storage) -> None:
    job_id = submit(storage)
    claim = work(storage, job_id, "e")
    storage.finish(job_id, end(execution="e"), claim=claim)
    assert not storage.input_path(job_id).exists()
    assert storage.open_jobs() == []
    assert (storage.result_dir(job_id, end(execution="e")) / "mask").exists()


def test_concurrent_requests_with_one_idempotency_key_create_one_job(storage: Storage) -> None:
    assert len(set(at_once(16, lambda _: submit(storage, "k")))) == 1
    assert len(storage.job_ids()) == 1
    assert os.listdir(storage.root / "uploads") == []


def test_an_idempotency_key_cannot_be_used_for_another_request(storage: Storage) -> None:
    submit(storage, "k", "this")
    with pytest.raises(IdempotencyConflict):
        submit(storage, "k", "that")
    assert len(storage.job_ids()) == 1


def test_an_idempotency_key_is_valid_until_its_job_is_deleted(storage: Storage) -> None:
    first = submit(storage, "k")
    storage.finish(first, end(Status.canceled))
    assert submit(storage, "k") == first
    storage.delete(first)
    assert submit(storage, "k") != first


def test_an_idempotency_key_whose_job_has_expired_or_vanished_can_be_reused(storage: Storage) -> None:
    first = submit(storage, "k")
    storage.finish(first, end(Status.canceled, ttl_s=-1))
    second = submit(storage, "k")
    assert second != first
    (storage.root / "jobs" / second).rename(storage.root / "elsewhere")
    assert submit(storage, "k") not in (first, second)


def test_a_job_deleted_while_it_runs_does_not_come_back(storage: Storage) -> None:
    job_id = submit(storage)
    claim = work(storage, job_id, "e")
    storage.delete(job_id)
    assert storage.has_ended(job_id)
    assert storage.is_superseded(job_id, claim)
    assert not storage.finish(job_id, end(execution="e"), claim=claim)
    assert storage.count_crash(job_id) == 0
    with pytest.raises(JobNotFound):
        storage.claim(job_id, "later")
    assert storage.job_ids() == []


def test_sweep_removes_expired_jobs_and_orphans_in_time(storage: Storage) -> None:
    kept, expired, orphan = submit(storage), submit(storage, "k"), submit(storage)
    storage.finish(expired, end(Status.failed))
    (storage.root / "open" / orphan).unlink()  # as if the API died before it marked the job open
    broken = storage.root / "uploads" / "broken"  # as if the API died during an upload
    broken.mkdir()
    (broken / "input").write_bytes(b"video")
    now = datetime.now(UTC)
    assert storage.sweep(now) == []
    assert storage.sweep(now + timedelta(seconds=61)) == [expired]
    assert storage.job_ids() == sorted([kept, orphan], reverse=True)
    storage.sweep(now + timedelta(seconds=ORPHAN_AGE_S + 60))
    assert storage.job_ids() == [kept]
    assert os.listdir(storage.root / "uploads") == []
    assert os.listdir(storage.root / "keys") == []


class JobLifecycle(RuleBasedStateMachine):
    """In any order of claims, ends, cancellations and crashes, a job ends once, by its last execution."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.storage = Storage(Path(self.folder.name), result_ttl_s=60)
        self.job_id = submit(self.storage)
        self.claims: list[int] = []
        self.ended: bytes | None = None

    @property
    def path(self) -> Path:
        return self.storage.root / "jobs" / self.job_id / "end.json"

    @rule()
    def begin(self) -> None:
        try:
            self.claims.append(work(self.storage, self.job_id, f"e{len(self.claims) + 1}"))
        except JobNotFound:
            assert self.ended is not None

    @precondition(lambda self: self.claims)
    @rule(which=st.integers(0, 9))
    def publish(self, which: int) -> None:
        claim = self.claims[which % len(self.claims)]
        self.storage.work_dir(self.job_id, f"e{claim}").mkdir(exist_ok=True)
        counts = self.storage.finish(self.job_id, end(execution=f"e{claim}"), claim=claim)
        assert counts == (self.ended is None and claim == self.claims[-1])
        if counts:
            self.ended = self.path.read_bytes()

    @rule()
    def cancel(self) -> None:
        assert self.storage.finish(self.job_id, end(Status.canceled)) == (self.ended is None)
        self.ended = self.ended or self.path.read_bytes()

    @precondition(lambda self: self.ended)
    @rule()
    def lose_end_json(self) -> None:
        self.path.unlink(missing_ok=True)
        self.storage.mark_open(self.job_id)

    @invariant()
    def an_end_never_changes(self) -> None:
        if self.ended is not None and self.path.exists():
            assert self.path.read_bytes() == self.ended

    def teardown(self) -> None:
        self.folder.cleanup()


TestJobLifecycle = JobLifecycle.TestCase
TestJobLifecycle.settings = settings(
    max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
