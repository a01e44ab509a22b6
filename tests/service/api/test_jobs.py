"""Jobs over HTTP with a real queue and without a worker: show, list, cancel, delete."""

import pytest
from starlette.testclient import TestClient

from service.settings import Settings
from tests.service.api.test_segment import assert_problem
from tests.videos import make_scene, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", make_scene().frames).read_bytes()


def submit(http: TestClient, video: bytes) -> str:
    job_id: str = http.post("/segment", files={"video": ("clip.mp4", video)}).json()["id"]
    return job_id


def test_an_unknown_job_is_not_found(http: TestClient) -> None:
    assert_problem(http.get("/jobs/0123abc"), 404, "job-not-found")


@pytest.mark.parametrize("job_id", ["..x", "%2e%2e", "A" * 65, "a.b", "a%2fb"])
def test_an_id_cannot_traverse_folders(http: TestClient, job_id: str) -> None:
    assert http.get(f"/jobs/{job_id}/manifest.json").status_code in (404, 422)


def test_jobs_are_queued_in_order(http: TestClient, video: bytes) -> None:
    ids = [submit(http, video) for _ in range(3)]
    assert [http.get(f"/jobs/{job_id}").json()["position"] for job_id in ids] == [0, 1, 2]


def test_jobs_are_listed_newest_first_in_pages(http: TestClient, video: bytes) -> None:
    ids = [submit(http, video) for _ in range(5)]
    first = http.get("/jobs", params={"limit": 3}).json()
    second = http.get("/jobs", params={"limit": 3, "cursor": first["next"]}).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert "next" not in second


def test_jobs_are_filtered_by_status(http: TestClient, video: bytes) -> None:
    canceled, queued = submit(http, video), submit(http, video)
    http.post(f"/jobs/{canceled}/cancel")
    listed = http.get("/jobs", params={"status": "canceled"}).json()["jobs"]
    assert [job["id"] for job in listed] == [canceled]
    listed = http.get("/jobs", params={"status": "queued"}).json()["jobs"]
    assert [job["id"] for job in listed] == [queued]


def test_a_queued_job_is_canceled_at_once_and_stays_canceled(
    http: TestClient, settings: Settings, video: bytes
) -> None:
    job_id, behind = submit(http, video), submit(http, video)
    for _ in range(2):
        assert http.post(f"/jobs/{job_id}/cancel").json()["status"] == "canceled"
    job = http.get(f"/jobs/{job_id}").json()
    assert job["status"] == "canceled"
    assert job["expires_at"] > job["ended_at"]
    assert http.get(f"/jobs/{behind}").json()["position"] == 0
    assert not (settings.data_dir / "jobs" / job_id / "input").exists()


def test_deleting_a_job_removes_all_its_files(http: TestClient, settings: Settings, video: bytes) -> None:
    job_id = submit(http, video)
    assert http.delete(f"/jobs/{job_id}").status_code == 204
    assert_problem(http.get(f"/jobs/{job_id}"), 404, "job-not-found")
    assert_problem(http.delete(f"/jobs/{job_id}"), 404, "job-not-found")
    assert not any(path.name.startswith(job_id) for path in settings.data_dir.rglob("*"))


def test_the_result_of_an_unfinished_job_is_not_ready(http: TestClient, video: bytes) -> None:
    job_id = submit(http, video)
    assert_problem(http.get(f"/jobs/{job_id}/rle.json"), 409, "result-not-ready")
    http.post(f"/jobs/{job_id}/cancel")
    assert_problem(http.get(f"/jobs/{job_id}/rle.json"), 404, "result-not-found")


def test_a_long_poll_ends_after_its_wait(http: TestClient, video: bytes) -> None:
    job_id = submit(http, video)
    assert http.get(f"/jobs/{job_id}", params={"wait": 0.3}).json()["status"] == "queued"


def test_an_unknown_path_is_a_problem(http: TestClient) -> None:
    response = http.get("/nothing/here")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_a_running_process_is_alive(http: TestClient) -> None:
    assert http.get("/livez").json() == {"alive": True}


def test_models_are_listed_with_licence_and_weights(http: TestClient) -> None:
    page = http.get("/models").json()
    assert page["default"] == "tiny"
    assert {"tiny", "dino-vits16", "dino-vits8", "dino-vitb8", "dinov2-vits14", "dinov3-vits16"} <= {
        model["name"] for model in page["models"]
    }
    assert all(model["licence"] and model["weights"] and model["version"] for model in page["models"])


def test_metrics_count_jobs(http: TestClient, video: bytes) -> None:
    submit(http, video)
    assert "uvos_jobs_waiting 1.0" in http.get("/metrics").text
