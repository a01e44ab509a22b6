"""Shared fixtures: a real Valkey server, the API on it, and the whole service with a real worker."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.jobs.embedded import EmbeddedServer
from service.settings import Settings
from uvos.client import Client

DATA = Path(__file__).parents[2] / "shared" / "data"
START_TIMEOUT_S = 120.0


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real files; tests that use it have the marker `data`."""
    if not DATA.is_dir():
        pytest.skip(f"there is no {DATA.name} folder beside the project")
    return DATA


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(valkey: EmbeddedServer) -> str:
    """URL of an empty queue."""
    client = redis.Redis.from_url(valkey.url)
    client.flushall()
    client.close()
    return valkey.url


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings(
        redis_url=SecretStr(redis_url), data_dir=tmp_path / "data", allowed_hosts=["testserver"], model="tiny"
    )


@pytest.fixture
def http(settings: Settings) -> Iterator[TestClient]:
    """The API on a real queue, without a worker."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def service_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder of the whole service."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="session")
def service_url(service_data: Path) -> Iterator[str]:
    """URL of the whole service, started by `uvos up`: queue, API, worker with `tiny`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = service_data
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--port", str(port), "--data", str(data)],
            stdout=log,
            stderr=log,
            env=os.environ | {"UVOS_MODEL": "tiny", "UVOS_MAX_FRAMES": "600", "UVOS_MEMORY_BUDGET_BYTES": str(2**30)},
        )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(url, process, data / "log")
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture
def client(service_url: str) -> Iterator[Client]:
    with Client(service_url) as client:
        yield client


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with Client(url) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            try:
                if client.is_ready():
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
    raise AssertionError(f"the service did not become ready:\n{log.read_text()}")
