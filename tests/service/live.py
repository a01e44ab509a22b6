"""Servers in a thread, for tests that hold connections open or stop the API."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from service.app import create_server
from service.http.timeouts import Timeouts
from service.settings import Settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(server: uvicorn.Server) -> Iterator[None]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def running_api(settings: Settings, port: int | None = None, *, timeouts: Timeouts | None = None) -> Iterator[str]:
    """URL of an API with these settings."""
    settings = settings.model_copy(update={"host": "127.0.0.1", "port": port or free_port()})
    url = f"http://127.0.0.1:{settings.port}"
    with running_server(create_server(settings, timeouts=timeouts or Timeouts())):
        assert httpx.get(f"{url}/livez").status_code == 200
        yield url
