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
        "reasons": [response.json()["reasons"][0]],
    }
    assert "no worker" in response.json()["reasons"][0]
    assert "uvos-worker run" in response.json()["reasons"][0]


def test_models_state_whether_workers_have_their_weights(http: TestClient, broker: Broker) -> None:
    broker.announce_worker(WorkerInfo(name="one", device="cpu", installed=["tiny"], may_download=False))
    models = {model["name"]: model for model in http.get("/models").json()["models"]}
    assert (models["tiny"]["installed"], models["tiny"].get("install")) == (True, None)
    assert not models["dino-vits8"]["installed"]
    assert models["dino-vits8"]["install"] == "uvos-worker weights fetch dino-vits8"
    video = {"video": ("clip.gif", b"GIF89a" + bytes(20))}
    refused = http.post("/segment", data={"model": "dino-vits8"}, files=video)
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/weights-unavailable")
    assert "uvos-worker weights fetch dino-vits8" in refused.json()["detail"]
    assert http.post("/segment", data={"model": "tiny"}, files=video).status_code == 202
    broker.announce_worker(WorkerInfo(name="one", device="cpu", installed=["tiny"], may_download=True))


def test_every_path_has_the_prefix_v1_as_well(http: TestClient) -> None:
    assert http.get("/v1/healthz").json() == http.get("/healthz").json() == {"alive": True}
    video = {"video": ("clip.gif", b"GIF89a" + bytes(20))}
    job = http.post("/v1/segment", files=video).json()
    assert http.get(f"/v1{job['links']['self']}").json()["id"] == http.get(job["links"]["self"]).json()["id"]
    assert http.get("/v1/jobs/0123abc").json()["type"] == "/problems/job-not-found"
    assert http.get("/v1").status_code == 404


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
