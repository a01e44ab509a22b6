"""`uvos up` killed with SIGKILL: no orphan process stays, and the next `uvos up` ends the open jobs."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from service.storage.claims import ClaimLog, EndClaim
from tests.videos import make_scene, write_video
from uvos.client import Client
from uvos.contract import Status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

START_TIMEOUT_S = 120.0
EXIT_TIMEOUT_S = 15.0  # 5 s to hand a job back, on a shared machine


@contextmanager
def up(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Client]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service.cli", "up", "--port", str(port), "--data", str(folder)]
    with (folder / "log").open("ab") as log, Client(f"http://127.0.0.1:{port}") as client:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: is_ready(client), START_TIMEOUT_S)
            yield process, client
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def is_ready(client: Client) -> bool:
    with suppress(httpx.HTTPError):
        return client.is_ready()
    return False


def wait_for(condition: Callable[[], bool], timeout_s: float) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s
        time.sleep(0.05)
    return time.monotonic() - start


def descendants(pid: int) -> list[int]:
    """All descendants of a process, whichever of its threads started them."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()
    ]
    return children + [pid for child in children for pid in descendants(child)]


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_a_killed_service_leaves_no_orphans_and_the_next_one_ends_its_jobs(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=8).frames)
    with up(tmp_path) as (process, client):
        jobs = [client.submit(video) for _ in range(3)]
        wait_for(lambda: client.job(jobs[0].id).status != Status.queued, 60)
        processes = descendants(process.pid)
        assert len(processes) >= 3, "the queue, a worker, its child"
        process.kill()
        process.wait()
        took = wait_for(lambda: not any(map(is_running, processes)), EXIT_TIMEOUT_S)
        print(f"{len(processes)} processes exited within {took:.1f} s")
    assert (tmp_path / "open" / jobs[-1].id).exists()
    with up(tmp_path) as (_, client):
        for job in jobs:
            assert client.wait(client.job(job.id)).status == Status.succeeded
            claims = ClaimLog(tmp_path / "jobs" / job.id / "claims").entries()
            assert sum(isinstance(claim, EndClaim) for claim in claims) == 1
