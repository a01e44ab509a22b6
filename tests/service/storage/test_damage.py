"""Damaged records: the job fails with a problem that says so, or is repaired; other jobs are not affected."""

import logging
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.storage.folder import Storage
from tests.chaos.stub_child import stub_video
from uvos.contract import Delivery, JobEnd, Status
from uvos.errors import JobNotFound

TRUNCATIONS = 200


@pytest.fixture
def storage(http: TestClient) -> Storage:
    storage: Storage = http.app_state["jobs"].storage
    return storage


def submit(http: TestClient, key: str | None = None) -> str:
    headers = {} if key is None else {"Idempotency-Key": key}
    response = http.post("/segment", files={"video": ("a.mp4", stub_video())}, headers=headers)
    assert response.status_code == 202, response.text
    job_id: str = response.json()["id"]
    return job_id


def succeed(storage: Storage, job_id: str) -> None:
    claim = storage.claim(job_id, "e")
    storage.work_dir(job_id, "e").mkdir()
    now = datetime.now(UTC)
    end = JobEnd(status=Status.succeeded, ended_at=now, expires_at=now + timedelta(hours=1), execution="e")
    assert storage.finish(job_id, end, claim=claim)


def folder(storage: Storage, job_id: str) -> Path:
    return storage.root / "jobs" / job_id


def truncate(path: Path, size: int = 0) -> None:
    path.write_bytes(path.read_bytes()[:size])


def assert_damaged(http: TestClient, job_id: str) -> None:
    job = http.get(f"/jobs/{job_id}").json()
    assert job["status"] == "failed"
    assert job["error"]["type"] == "/problems/job-damaged"


def test_a_damaged_end_is_restored_from_the_claim_log(http: TestClient, storage: Storage) -> None:
    job_id = submit(http)
    succeed(storage, job_id)
    before = (folder(storage, job_id) / "end.json").read_bytes()
    truncate(folder(storage, job_id) / "end.json")
    assert http.get(f"/jobs/{job_id}").json()["status"] == "succeeded"
    assert (folder(storage, job_id) / "end.json").read_bytes() == before


def test_a_job_whose_end_and_claims_are_damaged_is_listed_as_failed_and_can_be_deleted(
    http: TestClient, storage: Storage
) -> None:
    damaged, intact = submit(http), submit(http)
    succeed(storage, damaged)
    truncate(folder(storage, damaged) / "end.json")
    truncate(folder(storage, damaged) / "claims" / "2")
    assert_damaged(http, damaged)
    listed = {job["id"]: job["status"] for job in http.get("/jobs").json()["jobs"]}
    assert listed == {damaged: "failed", intact: "queued"}
    assert http.post(f"/jobs/{damaged}/cancel").json()["status"] == "failed"
    assert http.delete(f"/jobs/{damaged}").status_code == 204
    assert http.get(f"/jobs/{damaged}").status_code == 404
    assert [job["id"] for job in http.get("/jobs").json()["jobs"]] == [intact]


def test_a_job_whose_request_is_damaged_fails_and_can_be_deleted(http: TestClient, storage: Storage) -> None:
    damaged, intact = submit(http, "k"), submit(http)
    truncate(folder(storage, damaged) / "job.json", 10)
    assert_damaged(http, damaged)
    assert len(http.get("/jobs").json()["jobs"]) == 2
    assert http.delete(f"/jobs/{damaged}").status_code == 204
    assert storage.open_jobs() == [intact]
    assert submit(http, "k") != damaged


def test_a_job_whose_last_claim_is_damaged_fails_when_it_is_claimed(http: TestClient, storage: Storage) -> None:
    job_id = submit(http)
    storage.claim(job_id, "first")
    truncate(folder(storage, job_id) / "claims" / "1")
    with pytest.raises(JobNotFound):
        storage.claim(job_id, "second")
    assert_damaged(http, job_id)
    assert storage.open_jobs() == []


def test_a_damaged_record_is_logged_once(http: TestClient, storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    job_id = submit(http)
    truncate(folder(storage, job_id) / "job.json")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            http.get("/jobs")
    assert [record.getMessage() for record in caplog.records].count(
        f"the record jobs/{job_id}/job.json is damaged and cannot be read"
    ) == 1


def test_a_sweep_continues_after_damaged_jobs_and_removes_them_in_time(http: TestClient, storage: Storage) -> None:
    jobs = sorted(submit(http) for _ in range(3))
    for job_id in jobs:
        succeed(storage, job_id)
    truncate(folder(storage, jobs[1]) / "end.json")
    truncate(folder(storage, jobs[1]) / "claims" / "2")
    (storage.root / "jobs" / "lost+found").mkdir()
    (storage.root / "jobs" / "afile").write_text("")
    assert storage.sweep(datetime.now(UTC)) == []
    expired = storage.sweep(datetime.now(UTC) + timedelta(seconds=storage.result_ttl_s + 3600))
    assert set(jobs) <= set(expired)
    assert http.get("/jobs").json()["jobs"] == []


def test_a_damaged_idempotency_key_can_be_used_again(http: TestClient, storage: Storage) -> None:
    first = submit(http, "k")
    [path] = (storage.root / "keys").iterdir()
    truncate(path, 5)
    assert submit(http, "k") != first
    assert http.delete(f"/jobs/{first}").status_code == 204


def test_a_damaged_delivery_is_attempted_again_now(http: TestClient, storage: Storage) -> None:
    job_id = submit(http)
    now = datetime.now(UTC)
    storage.record_delivery(job_id, Delivery(attempt=1, at=now, status=500, next_at=now + timedelta(hours=8)))
    truncate(folder(storage, job_id) / "deliveries" / "1")
    delivery = storage.last_delivery(job_id)
    assert delivery is not None
    assert delivery.attempt == 1
    assert delivery.next_at is not None
    assert delivery.next_at <= datetime.now(UTC)


def test_any_truncated_record_affects_its_own_job_only(http: TestClient, storage: Storage) -> None:
    rng = random.Random(0)
    intact = submit(http)
    succeed(storage, intact)
    expected = http.get(f"/jobs/{intact}").json()
    damage: dict[str, Callable[[Path], Path]] = {
        "job.json": lambda job: job / "job.json",
        "end.json": lambda job: job / "end.json",
        "claim": lambda job: job / "claims" / rng.choice(["1", "2"]),
    }
    for number in range(TRUNCATIONS):
        job_id = submit(http)
        succeed(storage, job_id)
        kind = rng.choice(list(damage))
        path = damage[kind](folder(storage, job_id))
        truncate(path, rng.randrange(path.stat().st_size))
        status = http.get(f"/jobs/{job_id}").json()["status"]
        assert status == ("failed" if kind == "job.json" else "succeeded"), (number, kind)
        assert http.get("/jobs").status_code == 200
        assert http.get(f"/jobs/{intact}").json() == expected
        storage.sweep(datetime.now(UTC))
        assert http.delete(f"/jobs/{job_id}").status_code == 204
        assert os.listdir(storage.root / "jobs") == [intact]
