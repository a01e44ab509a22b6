"""An API in a process of its own, as `uvos serve` starts it; one that asks for keys; a browser."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from pydantic import SecretStr

from service.http.api_keys import digest_of, new_key
from service.jobs.embedded import EmbeddedServer
from service.settings import Settings
from tests.service.browser import ARGS, CHROMIUM, FRAMES
from tests.service.live import running_api
from tests.videos import Shape, make_scene, write_video


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


@dataclass(frozen=True)
class Guarded:
    """A service that asks for keys."""

    url: str
    ada: str
    bob: str


@pytest.fixture(scope="session")
def guarded(service_url: str, service_data: Path) -> Iterator[Guarded]:
    """A second API over the queue and the worker of the first: this one asks for keys."""
    assert service_url  # it has started
    ada, bob = new_key(), new_key()
    settings = Settings(
        redis_url=SecretStr(EmbeddedServer(service_data / "queue").url),
        data_dir=service_data,
        api_keys=SecretStr(f"ada:{digest_of(ada)},bob:{digest_of(bob)}"),
    )
    with running_api(settings) as url:
        yield Guarded(url, ada, bob)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scene = make_scene([Shape("disc", 48, (48, 30), (0, 4))], frames=FRAMES)
    return write_video(tmp_path_factory.mktemp("video") / "my clip.mp4", scene.frames, fps=16)
