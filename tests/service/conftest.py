"""An API in a process of its own, as `uvos serve` starts it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from service.embedded import EmbeddedServer


@pytest.fixture(scope="session")
def port(valkey: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where it listens; there is no worker."""
    folder = tmp_path_factory.mktemp("api")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    environment = os.environ | {"UVOS_REDIS_URL": valkey.url, "UVOS_DATA_DIR": str(folder / "data")}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(number)]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, env=environment, stderr=log) as process:
        _wait_for(number, process)
        yield number
        process.terminate()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the API did not start")
