"""`uvos up` as a process of its own, for tests that kill parts of it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from uvos.client import Client

START_TIMEOUT_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "service.cli", "up", "--port", str(port), "--data", str(folder)]


@contextmanager
def running_service(
    folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple["subprocess.Popen[bytes]", Client]]:
    """A service that is ready; its log is `folder/log`."""
    port = free_port()
    with (folder / "log").open("ab") as log, Client(f"http://127.0.0.1:{port}") as client:
        process = subprocess.Popen(
            command(folder, port), stdout=log, stderr=log, env=os.environ | dict(environment or {})
        )
        try:
            wait_for(lambda: is_ready(client) or process.poll() is not None, START_TIMEOUT_S)
            assert process.poll() is None, (folder / "log").read_text()
            yield process, client
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def is_ready(client: Client) -> bool:
    with suppress(httpx.HTTPError):
        return client.is_ready()
    return False


def wait_for(condition: Callable[[], bool], timeout_s: float) -> float:
    """Wait until the condition holds; the seconds that took."""
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
