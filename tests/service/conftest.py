"""An API that requires keys, and a browser."""

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


@dataclass(frozen=True)
class Guarded:
    """A service that requires API keys, with the keys of two owners."""

    url: str
    ada: str
    bob: str


@pytest.fixture(scope="session")
def guarded(service_url: str, service_data: Path) -> Iterator[Guarded]:
    """A second API on the queue and the worker of the first; it requires API keys."""
    assert service_url
    ada, bob = new_key(), new_key()
    settings = Settings(
        redis_url=SecretStr(EmbeddedServer(service_data / "queue").url),
        data_dir=service_data,
        model="tiny",
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
