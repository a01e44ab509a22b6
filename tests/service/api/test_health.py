"""GET /readyz: whether a job would be accepted, whether a worker would run it, and why not."""

from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.jobs.queue import Broker, connect
from service.settings import Settings
from uvos.contract import WorkerInfo


@pytest.fixture
def broker(settings: Settings) -> Broker:
    assert settings.redis_url is not None
    return Broker(connect(settings.redis_url.get_secret_value()), job_timeout_s=60)


def test_without_a_worker_jobs_are_accepted_but_the_service_is_not_ready(http: TestClient) -> None:
    response = http.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {
        "ready": False,
        "accepts_jobs": True,
        "runs_jobs": False,
        "queue": True,
        "storage": True,
        "workers": [],
        "reasons": ["no worker has sent a heartbeat in the last 15 s"],
    }


def test_a_worker_without_problem_makes_the_service_ready(http: TestClient, broker: Broker) -> None:
    broker.announce_worker(WorkerInfo(name="broken", device="starting", problem="no such device"))
    response = http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["reasons"] == ["worker broken: no such device"]
    broker.announce_worker(WorkerInfo(name="good", device="cpu"))
    response = http.get("/readyz")
    assert response.status_code == 200
    assert (response.json()["ready"], response.json()["reasons"]) == (True, [])


def test_an_unavailable_data_folder_is_reported_and_recovers(http: TestClient, settings: Settings) -> None:
    (settings.data_dir / "jobs").rename(settings.data_dir / "away")
    (settings.data_dir / "jobs").write_text("not a folder")
    response = http.get("/readyz")
    assert response.status_code == 503
    assert (response.json()["storage"], response.json()["accepts_jobs"]) == (False, False)
    assert "data folder cannot be written" in response.json()["reasons"][0]
    assert http.get("/jobs").status_code == 503
    assert http.get("/jobs").json()["type"] == "/problems/storage-unavailable"
    (settings.data_dir / "jobs").unlink()
    (settings.data_dir / "away").rename(settings.data_dir / "jobs")
    assert http.get("/readyz").json()["storage"]
    assert http.get("/jobs").status_code == 200


def test_a_queue_that_does_not_respond_is_a_reason(tmp_path: Path) -> None:
    settings = Settings(redis_url=SecretStr(f"unix://{tmp_path}/none"), data_dir=tmp_path, allowed_hosts=["testserver"])
    with TestClient(create_app(settings)) as http:
        response = http.get("/readyz")
    assert response.status_code == 503
    assert "the queue does not respond" in response.json()["reasons"][0]
