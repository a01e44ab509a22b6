"""Uploads stream to storage: memory stays constant, and incomplete uploads are removed."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.jobs.embedded import EmbeddedServer

SIZE = int(os.environ.get("UVOS_TEST_UPLOAD_BYTES", 300 * 2**20))
GROWTH = 20 * 2**20
HEAD = b'--x\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n\0\0\0\x18ftypmp42'
HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}


class Api:
    def __init__(self, pid: int, port: int, data: Path) -> None:
        self.pid = pid
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.data = data

    def peak_bytes(self) -> int:
        """Peak resident memory since the last `reset_peak`."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def reset_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def stored(self) -> list[str]:
        return [name for folder in ("uploads", "jobs", "open") for name in os.listdir(self.data / folder)]


@pytest.fixture(scope="module")
def api(valkey: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    data = tmp_path_factory.mktemp("uploads")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "UVOS_REDIS_URL": valkey.url, "UVOS_DATA_DIR": str(data), "UVOS_MAX_UPLOAD_BYTES": str(2**34),
    }  # fmt: skip
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    with (data / "log").open("wb") as log, subprocess.Popen(command, env=environment, stderr=log) as running:
        api = Api(running.pid, port, data)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{api.url}/livez", trust_env=False)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield api
        running.terminate()


def body(size: int) -> Iterator[bytes]:
    yield HEAD
    chunk = bytes(2**18)
    for _ in range(size // len(chunk)):
        yield chunk
    yield b"\r\n--x--\r\n"


def test_memory_does_not_grow_with_the_upload(api: Api) -> None:
    with httpx.Client(base_url=api.url, timeout=120, trust_env=False) as http:
        small = http.post("/segment", content=body(2**22), headers=HEADERS).json()["id"]
        api.reset_peak()
        before = api.peak_bytes()
        job = http.post("/segment", content=body(SIZE), headers=HEADERS).json()
        growth = api.peak_bytes() - before
        assert job["video"]["bytes"] == SIZE + 12
        print(f"{SIZE / 2**20:.0f} MB: grew by {growth / 2**20:.1f} MB")
        assert growth < GROWTH, f"grew by {growth / 2**20:.1f} MB for {SIZE / 2**20:.0f} MB"
        for job_id in (small, job["id"]):
            http.delete(f"/jobs/{job_id}")
    assert api.stored() == []


def test_an_interrupted_upload_is_removed(api: Api) -> None:
    start = (
        b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 100000000\r\n\r\n" + HEAD
    )
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(start + bytes(2**22))
        _wait(lambda: api.stored() != [])
    _wait(lambda: api.stored() == [])


def test_an_upload_that_is_rejected_at_its_end_is_removed(api: Api) -> None:
    two = HEAD + bytes(2**22) + b"\r\n" + HEAD + b"\r\n--x--\r\n"
    response = httpx.post(f"{api.url}/segment", content=two, headers=HEADERS, timeout=60, trust_env=False)
    assert response.status_code == 422
    assert api.stored() == []


def _wait(condition):  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
