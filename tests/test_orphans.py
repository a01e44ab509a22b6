"""`uvos up` killed outright: nothing that it started stays behind, and a job that was open ends under its successor."""

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

from tests.videos import make_scene, write_video
from uvos.client import Client
from uvos.contract import Status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

START_WITHIN_S = 120.0
GONE_WITHIN_S = 15.0  # 5 s to hand a job back, and a machine with other work to do


@contextmanager
def up(folder: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Client]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service.cli", "up", "--port", str(port), "--data", str(folder)]
    with (folder / "log").open("ab") as log, Client(f"http://127.0.0.1:{port}") as client:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(lambda: is_ready(client), START_WITHIN_S)
            yield process, client
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def is_ready(client: Client) -> bool:
    with suppress(httpx.HTTPError):
        return client.is_ready()
    return False


def wait_for(condition: Callable[[], bool], within_s: float) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < within_s
        time.sleep(0.05)
    return time.monotonic() - start


def descendants(pid: int) -> list[int]:
    """All processes below one, whichever of its threads started them."""
    children = [
        int(child) for each in Path(f"/proc/{pid}/task").glob("*/children") for child in each.read_text().split()
    ]
    return children + [one for child in children for one in descendants(child)]


def lives(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def test_nothing_outlives_a_service_that_was_killed_and_its_successor_ends_its_jobs(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(frames=8).frames)
    with up(tmp_path) as (process, client):
        jobs = [client.submit(video) for _ in range(3)]
        wait_for(lambda: client.job(jobs[0].id).status != Status.queued, 60)
        below = descendants(process.pid)
        assert len(below) >= 3, "the queue, a worker, its child"
        process.kill()
        process.wait()
        took = wait_for(lambda: not any(map(lives, below)), GONE_WITHIN_S)
        print(f"{len(below)} processes were gone after {took:.1f} s")
    assert (tmp_path / "open" / jobs[-1].id).exists()
    with up(tmp_path) as (_, client):
        for job in jobs:
            assert client.wait(client.job(job.id)).status == Status.succeeded
            claims = (tmp_path / "jobs" / job.id / "claims").iterdir()
            assert sum(one.read_text().startswith("{") for one in claims if one.name.isdigit()) == 1
