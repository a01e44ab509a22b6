"""The warm process as its parent sees it: what it says, that it stops, that it goes when its parent goes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from service.settings import Settings
from service.storage.folder import Storage
from tests.chaos.stub_child import stub_video
from uvos.contract import JobParams, JobRecord, Motion
from worker.jobs.child import Assignment, Child

PATIENCE_S = 30.0
PARENT = """
import sys, time
from pathlib import Path
from service.settings import Settings
from worker.jobs.child import Child
child = Child(Settings(data_dir=Path(sys.argv[1])), "tests.chaos.stub_child")
child.start()
while child.receive(1) is None: pass
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "data", result_ttl_s=60)


@pytest.fixture
def child(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setenv("UVOS_API_KEYS", "a secret")
    settings = Settings(data_dir=storage.root, redis_url=SecretStr("redis://:password@nowhere"), api_keys=None)
    child = Child(settings, "tests.chaos.stub_child")
    child.start()
    wait_for(child, "ready")
    yield child
    child.kill()


def wait_for(child: Child, kind: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        message = child.receive(0.1)
        if message is not None and kind in message:
            return message
    raise AssertionError(f"the child does not say {kind!r}")


def submit(storage: Storage, video: bytes) -> Assignment:
    with storage.new_upload() as upload:
        upload.write(video)
        record = JobRecord(
            id=upload.id,
            created_at=datetime.now(UTC),
            video_name="a",
            video_bytes=len(video),
            video_sha256=upload.finish(),
            params=JobParams(tau=[1.0], model="tiny", motion=Motion.off),
        )
        storage.submit(record, upload, "")
    storage.claim(upload.id, "e")
    return Assignment(job_id=upload.id, execution="e")


def test_it_tells_how_a_job_goes(child: Child, storage: Storage) -> None:
    assert child.is_warm
    assert child.about["device"] == "stub"
    child.run(submit(storage, stub_video(0.2)))
    assert wait_for(child, "begun") == {"begun": "e"}
    assert wait_for(child, "progress")["progress"]["execution"] == "e"
    assert wait_for(child, "done")["done"] == "e"


def test_it_stops_when_it_is_asked(child: Child, storage: Storage) -> None:
    child.run(submit(storage, stub_video(30)))
    wait_for(child, "begun")
    child.cancel("another")
    child.cancel("e")
    assert wait_for(child, "stopped")["stopped"] == "e"


def test_one_that_hears_nothing_is_ended(child: Child, storage: Storage) -> None:
    child.run(submit(storage, stub_video(deaf=True)))
    wait_for(child, "begun")
    assert child.kill() == -9
    assert not child.is_alive
    assert not child.is_warm


def test_its_death_is_noticed_and_what_is_said_to_the_dead_is_no_error(child: Child, storage: Storage) -> None:
    child.run(submit(storage, stub_video(die=True)))
    with pytest.raises(EOFError):
        wait_for(child, "done")
    child.run(Assignment(job_id="a", execution="b"))
    child.cancel("b")
    with pytest.raises(EOFError):
        child.receive(0)


def test_it_knows_no_secret_of_the_service(child: Child) -> None:
    environment = Path(f"/proc/{child.pid}/environ").read_bytes()
    assert b"password" not in environment
    assert b"a secret" not in environment


def test_it_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists() and ") Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_starting_and_ending_leaks_nothing(child: Child) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for _ in range(5):
        child.start()
        wait_for(child, "ready")
    assert open_files() == before
