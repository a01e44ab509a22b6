"""A data folder without inodes or of another owner, and clocks that jump by a day: jobs wait, nothing is lost."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.jobs.embedded import EmbeddedServer
from service.jobs.queue import Broker
from service.settings import Settings
from service.storage.folder import Storage
from tests.chaos.stub_child import stub_video
from tests.worker.jobs.test_worker import end_of, running_worker, submit, warm_up, worker_info
from uvos.contract import Status
from worker.jobs.worker import SegmentWorker

DAY = timedelta(days=1)
NOBODY = 65534
INODES = 200


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with few inodes."""
    folder = tmp_path / "data"
    folder.mkdir()
    options = f"size=128m,nr_inodes={INODES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this process may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def no_inodes(disk: Path) -> Iterator[None]:
    """All inodes of the file system are in use."""
    ballast = disk / "ballast"
    ballast.mkdir()
    while os.statvfs(disk).f_favail:
        (ballast / str(os.statvfs(disk).f_favail)).touch()
    yield
    for path in ballast.iterdir():
        path.unlink()


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Run with the file permissions of another user; root ignores permissions."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def own_folder(settings: Settings) -> Iterator[Settings]:
    """Settings with a data folder that only root may enter, and a queue that any user may use."""
    with tempfile.TemporaryDirectory() as name, EmbeddedServer(Path(name) / "queue") as server:
        for path in (Path(name), server.folder, server.socket):
            path.chmod(0o777)
        data = Path(name) / "data"
        data.mkdir(mode=0o700)
        yield settings.model_copy(update={"data_dir": data, "redis_url": SecretStr(server.url)})


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user of a process")


def post(http: TestClient) -> int:
    response = http.post("/segment", files={"video": ("a.mp4", stub_video())})
    if response.status_code != 202:
        assert response.headers["content-type"] == "application/problem+json"
    return response.status_code


def test_uploads_get_507_while_there_are_no_inodes_and_nothing_partial_stays(disk: Path, http: TestClient) -> None:
    assert post(http) == 202
    before = sorted(disk.glob("[!b]*/*"))
    with no_inodes(disk):
        response = http.post("/segment", files={"video": ("a.mp4", stub_video())})
        assert response.status_code == 507
        assert "no inodes left" in response.json()["detail"]
        assert len(http.get("/jobs").json()["jobs"]) == 1
        assert http.get("/readyz").json()["accepts_jobs"] is False
    assert sorted(disk.glob("[!b]*/*")) == before
    assert post(http) == 202


def assert_recovers(worker: SegmentWorker, job_id: str) -> None:
    worker.maintain()
    assert worker_info(worker).problem is None
    warm_up(worker)
    worker.execute(job_id)
    assert end_of(worker, job_id).status == Status.succeeded


@pytest.mark.usefixtures("disk")
def test_a_worker_without_inodes_waits_and_runs_its_jobs_afterwards(settings: Settings) -> None:
    with running_worker(settings) as worker:
        warm_up(worker)
        job_id = submit(worker)
        with no_inodes(settings.data_dir):
            worker.execute(job_id)
            worker.maintain()
            worker.announce()
            assert "No space left" in (worker_info(worker).problem or "")
            assert worker.storage.open_jobs() == [job_id]
        assert_recovers(worker, job_id)


@needs_root
def test_a_worker_waits_while_its_folder_belongs_to_another_user(own_folder: Settings) -> None:
    with running_worker(own_folder) as worker:
        warm_up(worker)
        job_id = submit(worker)
        with as_user(NOBODY):
            worker.execute(job_id)
            worker.maintain()
            worker.announce()
            assert "Permission denied" in (worker_info(worker).problem or "")
        assert worker.storage.open_jobs() == [job_id]
        assert_recovers(worker, job_id)


@needs_root
def test_the_api_answers_503_while_its_folder_belongs_to_another_user(own_folder: Settings) -> None:
    with TestClient(create_app(own_folder), raise_server_exceptions=False) as http:
        with as_user(NOBODY):
            assert http.get("/livez").status_code == 200
            assert http.get("/readyz").json()["accepts_jobs"] is False
            for response in (http.get("/jobs"), http.post("/segment", files={"video": ("a.mp4", stub_video())})):
                assert response.status_code == 503
                assert response.json()["type"] == "/problems/storage-unavailable"
        assert post(http) == 202


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])
def test_an_upload_in_progress_and_open_jobs_survive_a_clock_jump(jump: timedelta, http: TestClient) -> None:
    storage: Storage = http.app_state["jobs"].storage
    assert post(http) == 202
    jobs = storage.open_jobs()
    with storage.new_upload() as upload:
        upload.write(b"video")
        abandoned = storage.root / "uploads" / "abandoned"
        abandoned.mkdir()
        (abandoned / "input").write_bytes(b"video")
        assert storage.sweep(datetime.now(UTC) + jump) == []
        assert upload.path.read_bytes() == b"video"
        assert abandoned.exists() is (jump < timedelta())
    assert not upload.folder.exists()
    assert storage.open_jobs() == jobs


def test_running_jobs_are_counted_by_the_clock_of_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(redis.Redis.from_url(redis_url), job_timeout_s=60)
    broker.take_lease("job", "e", 60, owner="ada")
    monkeypatch.setattr("time.time", lambda: datetime.now(UTC).timestamp() + DAY.total_seconds())
    assert not broker.take_lease("another", "e", 60, owner="ada", limit=1)
    broker.connection.close()
