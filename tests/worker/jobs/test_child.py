"""The child process as the worker sees it: its messages, cancellation, and that it never outlives the worker."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import SecretStr

from service.settings import Settings
from service.storage.folder import Storage
from tests.chaos.stub_child import TIMING, stub_video
from uvos.contract import JobParams, JobRecord, Motion
from worker.jobs.child import Child
from worker.jobs.messages import Begun, Done, Message, ProgressUpdate, Ready, Run, Stopped

MessageT = TypeVar("MessageT", bound=Message)
TIMEOUT_S = 30.0
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
    wait_for(child, Ready)
    yield child
    child.kill()


def wait_for(child: Child, kind: type[MessageT]) -> MessageT:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        message = child.receive(0.1)
        if isinstance(message, kind):
            return message
    raise AssertionError(f"the child sent no {kind.__name__} within {TIMEOUT_S} s")


def submit(storage: Storage, video: bytes) -> Run:
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
    return Run(job_id=upload.id, execution="e", started_at=datetime.now(UTC))


def is_running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_child_reports_the_course_of_a_job(child: Child, storage: Storage) -> None:
    assert child.is_warm
    assert child.state.device == "stub"
    run = submit(storage, stub_video(0.2))
    child.run(run)
    assert wait_for(child, Begun).execution == "e"
    progress = wait_for(child, ProgressUpdate).progress
    assert (progress.execution, progress.started_at) == ("e", run.started_at)
    assert wait_for(child, Done) == Done(execution="e", timing=TIMING)


def test_cancel_stops_only_the_named_execution(child: Child, storage: Storage) -> None:
    child.run(submit(storage, stub_video(30)))
    wait_for(child, Begun)
    child.cancel("another")
    child.cancel("e")
    assert wait_for(child, Stopped).execution == "e"


def test_kill_ends_a_child_that_hangs(child: Child, storage: Storage) -> None:
    child.run(submit(storage, stub_video(hang=True)))
    wait_for(child, Begun)
    pid = child.pid
    assert pid is not None
    assert child.kill() == -9
    assert not is_running(pid)
    assert not child.is_warm


def test_receive_reports_death_and_sending_to_a_dead_child_is_no_error(child: Child, storage: Storage) -> None:
    run = submit(storage, stub_video(crash=True))
    child.run(run)
    with pytest.raises(EOFError):
        wait_for(child, Done)
    child.run(run)
    child.cancel("e")
    with pytest.raises(EOFError):
        child.receive(0)


def test_environment_of_the_child_holds_no_secret(child: Child) -> None:
    environment = Path(f"/proc/{child.pid}/environ").read_bytes()
    assert b"password" not in environment
    assert b"a secret" not in environment


def test_child_exits_when_its_parent_is_killed(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_restarts_leak_no_file_descriptors(child: Child) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        child.start()
        wait_for(child, Ready)
    assert len(os.listdir("/proc/self/fd")) == before
