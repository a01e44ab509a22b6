"""POST /segment: accepted and rejected requests."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.videos import make_scene, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_video(tmp_path_factory.mktemp("video") / "clip.mp4", make_scene().frames)
    return path.read_bytes()


def post(http: TestClient, video: bytes | None, name: str = "clip.mp4", **fields: object):  # type: ignore[no-untyped-def]
    files = None if video is None else {"video": (name, video)}
    return http.post("/segment", data=fields, files=files)


def assert_problem(response, status: int, problem_type: str) -> dict[str, object]:  # type: ignore[no-untyped-def]
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, object] = response.json()
    assert problem["type"] == f"/problems/{problem_type}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem


def is_empty(settings: Settings) -> bool:
    return not any(list((settings.data_dir / name).iterdir()) for name in ("uploads", "jobs", "open"))


def test_a_video_is_accepted_with_defaults_filled_in(http: TestClient, video: bytes) -> None:
    response = post(http, video, "My Clip.mp4")
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/jobs/{job['id']}" == job["links"]["self"]
    assert int(response.headers["retry-after"]) > 0
    assert job["status"] == "queued"
    assert job["position"] == 0
    assert job["video"]["name"] == "My Clip.mp4"
    assert job["waiting_for_worker"]
    assert job["video"]["bytes"] == len(video)
    assert job["params"]["model"] == "tiny"
    assert job["params"]["tau"]
    assert job["params"]["key_ratio"] == 0.1


def test_a_job_shows_the_requested_parameters(http: TestClient, video: bytes) -> None:
    fields = {"tau": ["0.5", "1.0"], "key_ratio": "0.2", "format": ["rle"], "start": "0", "end": "1", "edges": "patch"}
    params = post(http, video, **fields).json()["params"]
    assert params["tau"] == [0.5, 1.0]
    assert params["key_ratio"] == 0.2
    assert params["format"] == ["rle"]
    assert (params["start"], params["end"], params["edges"]) == (0, 1, "patch")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tau": "0"}, "tau"),
        ({"tau": "-1"}, "tau"),
        ({"tau": "nan"}, "tau"),
        ({"tau": "inf"}, "tau"),
        ({"tau": "much"}, "tau"),
        ({"tau": ["1", "1.0"]}, "tau"),
        ({"tau": ["1.0000001", "1"]}, "tau"),
        ({"key_ratio": "0"}, "key_ratio"),
        ({"key_ratio": "1.5"}, "key_ratio"),
        ({"key_ratio": ["0.1", "0.2"]}, "key_ratio"),
        ({"mode": "both"}, "mode"),
        ({"format": "jpeg"}, "format"),
        ({"resolution": "wide"}, "resolution"),
        ({"start": "2", "end": "1"}, "start"),
        ({"tua": "1"}, "tua"),
        ({"min_area": "1"}, "min_area"),
        ({"metadata": "north"}, "metadata"),
        ({"metadata": '{"camera": 1}'}, "metadata"),
        ({"metadata": json.dumps({str(n): "" for n in range(33)})}, "metadata"),
        ({"tags": "a,b"}, "tags"),
        ({"tags": [str(n) for n in range(17)]}, "tags"),
    ],
)
def test_an_invalid_field_is_named(
    http: TestClient, settings: Settings, video: bytes, fields: dict[str, object], named: str
) -> None:
    problem = assert_problem(post(http, video, **fields), 422, "invalid-parameters")
    assert named in str(problem["detail"])
    assert is_empty(settings)


def test_an_invalid_field_is_reported_with_limit_and_actual_value(http: TestClient, video: bytes) -> None:
    problem = assert_problem(post(http, video, key_ratio="1.5"), 422, "invalid-parameters")
    assert problem["limit"] == 1
    assert problem["actual"] == "1.5"
    assert problem["errors"] == [
        {"field": "key_ratio", "message": "Input should be less than or equal to 1", "limit": 1, "actual": "1.5"}
    ]


def test_all_invalid_fields_are_reported_at_once(http: TestClient, video: bytes) -> None:
    problem = assert_problem(post(http, video, tua="1", key_ratio="7", mode="x"), 422, "invalid-parameters")
    assert {error["field"] for error in problem["errors"]} == {"tua", "key_ratio", "mode"}  # type: ignore[attr-defined]


def test_an_unknown_model_is_rejected_with_the_known_ones(http: TestClient, video: bytes) -> None:
    problem = assert_problem(post(http, video, model="sam"), 422, "unknown-model")
    assert "tiny" in str(problem["limit"])
    assert problem["actual"] == "sam"


def test_a_form_without_a_video_is_rejected(http: TestClient) -> None:
    response = http.post("/segment", files={"tau": (None, "1")})
    assert_problem(response, 422, "empty-upload")


def test_a_file_in_another_field_is_rejected_with_the_right_field(http: TestClient, video: bytes) -> None:
    problem = assert_problem(http.post("/segment", files={"file": ("clip.mp4", video)}), 422, "invalid-parameters")
    assert "send it as `video`" in str(problem["detail"])


def test_metadata_and_tags_stay_with_the_job(http: TestClient, video: bytes) -> None:
    night = post(http, video, metadata='{"camera": "north"}', tags=["night", "cam 1"]).json()
    assert (night["metadata"], night["tags"]) == ({"camera": "north"}, ["night", "cam 1"])
    post(http, video, tags="day")
    assert [job["id"] for job in http.get("/jobs?tag=night").json()["jobs"]] == [night["id"]]
    assert http.get("/jobs?tag=nigh").json()["jobs"] == []


def test_a_body_that_is_not_a_form_is_rejected(http: TestClient) -> None:
    problem = assert_problem(http.post("/segment", json={"video": "x"}), 422, "invalid-parameters")
    assert problem["limit"] == "multipart/form-data"


def test_a_malformed_form_is_rejected(http: TestClient) -> None:
    body = b"--x\r\nContent-Disposition: nonsense"
    response = http.post("/segment", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


def test_an_empty_file_is_rejected(http: TestClient, settings: Settings) -> None:
    assert_problem(post(http, b""), 422, "empty-upload")
    assert is_empty(settings)


def test_a_text_file_is_rejected(http: TestClient, settings: Settings) -> None:
    assert_problem(post(http, b"Dear all, please find the video attached.\n" * 99), 415, "not-a-video")
    assert is_empty(settings)


@pytest.mark.parametrize("head", [b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b"%PDF-1.7\n", b"ID3\x04" + b"\0" * 99])
def test_other_file_types_are_rejected(http: TestClient, head: bytes) -> None:
    assert_problem(post(http, head), 415, "not-a-video")


def test_two_videos_are_rejected(http: TestClient, settings: Settings, video: bytes) -> None:
    response = http.post("/segment", files=[("video", ("a.mp4", video)), ("video", ("b.mp4", video))])
    assert_problem(response, 422, "invalid-parameters")
    assert is_empty(settings)


@pytest.fixture
def small(settings: Settings) -> Iterator[TestClient]:
    """A service that accepts at most 1,000 bytes."""
    limited = settings.model_copy(update={"max_upload_bytes": 1000})
    with TestClient(create_app(limited), raise_server_exceptions=False) as client:
        yield client


def test_a_too_large_upload_is_rejected_by_its_content_length(small: TestClient, settings: Settings) -> None:
    def endless() -> Iterator[bytes]:
        yield b"x"
        raise AssertionError("the body was read")

    headers = {"content-type": "multipart/form-data; boundary=x", "content-length": str(10**12)}
    request = small.build_request("POST", "/segment", headers=headers)
    problem = assert_problem(small.send(request), 413, "upload-too-large")
    assert problem["limit"] == 1000
    assert problem["actual"] == 10**12
    assert is_empty(settings)


def test_a_too_large_upload_is_rejected_while_it_arrives(small: TestClient, settings: Settings, video: bytes) -> None:
    problem = assert_problem(post(small, video), 413, "upload-too-large")
    assert problem["limit"] == 1000
    assert is_empty(settings)


def test_an_unavailable_queue_is_reported_within_seconds(tmp_path: Path, video: bytes) -> None:
    unreachable = SecretStr(f"unix://{tmp_path}/missing.sock")
    settings = Settings(redis_url=unreachable, data_dir=tmp_path / "data", allowed_hosts=["testserver"])
    with TestClient(create_app(settings), raise_server_exceptions=False) as http:
        began = time.monotonic()
        response = post(http, video)
        assert time.monotonic() - began < 3
    assert_problem(response, 503, "queue-unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert is_empty(settings)


def test_a_full_queue_rejects_the_job(settings: Settings, video: bytes) -> None:
    limited = settings.model_copy(update={"max_queued_jobs": 1})
    with TestClient(create_app(limited), raise_server_exceptions=False) as http:
        assert post(http, video).status_code == 202
        problem = assert_problem(post(http, video), 503, "queue-full")
    assert (problem["limit"], problem["actual"]) == (1, 1)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting needs root")
def test_a_full_disk_is_reported_and_the_upload_removed(settings: Settings, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=66m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        full = settings.model_copy(update={"data_dir": disk})
        with TestClient(create_app(full), raise_server_exceptions=False) as http:
            assert_problem(post(http, b"\0\0\0\x18ftypmp42" + bytes(8 * 2**20)), 507, "storage-full")
        assert is_empty(full)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_same_idempotency_key_and_content_return_the_same_job(http: TestClient, video: bytes) -> None:
    def send(**fields: object):  # type: ignore[no-untyped-def]
        return http.post(
            "/segment", data=fields, files={"video": ("clip.mp4", video)}, headers={"Idempotency-Key": "once"}
        )

    first, again = send(tau="1"), send(tau="1")
    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    http.post(first.json()["links"]["cancel"])
    assert send(tau="1").json()["status"] == "canceled"
    assert_problem(send(tau="2"), 422, "idempotency-conflict")
    assert len(http.get("/jobs").json()["jobs"]) == 1
