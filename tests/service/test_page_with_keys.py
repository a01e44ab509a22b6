"""The page of a service that requires API keys, and the JavaScript of the documentation."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.service.browser import JOB_MS, drop, needs_browser, opened, options, painted, take_downloads
from tests.service.code_blocks import blocks
from tests.service.conftest import Guarded
from tests.videos import Shape, make_scene, write_video


@pytest.fixture
def page(browser: Browser, guarded: Guarded) -> Iterator[Page]:
    with opened(browser, guarded.url) as page:
        yield page


def enter_key(page: Page, key: str) -> None:
    page.locator("#key input").fill(key)
    page.click("#key button")


@needs_browser
def test_an_unknown_key_is_reported_and_a_valid_one_works(
    page: Page, guarded: Guarded, video: Path, tmp_path: Path
) -> None:
    expect(page.locator("#key")).to_be_visible()
    expect(page.locator("#key-error")).to_be_empty()
    enter_key(page, "uvos_unknown")
    expect(page.locator("#key-error")).to_have_text("The API key is unknown.")
    enter_key(page, guarded.ada)
    expect(page.locator("#key")).to_be_hidden()

    options(page)
    drop(page, video)
    expect(page.locator("#where")).not_to_be_empty()
    expect(page.locator("#result")).to_be_visible(timeout=JOB_MS)
    expect(page.locator("#legend .object").first).to_be_visible()
    assert painted(page) > 0

    take_downloads(page, tmp_path)

    page.wait_for_function("() => document.querySelector('#video').videoWidth > 0")
    page.click("summary:has-text('command line')")
    assert "Authorization: Bearer $UVOS_API_KEY" in page.inner_text("#curl")
    assert guarded.ada not in page.content()


@needs_browser
def test_an_owner_sees_and_cancels_only_their_own_jobs(
    page: Page, browser: Browser, guarded: Guarded, tmp_path: Path
) -> None:
    enter_key(page, guarded.bob)
    expect(page.locator("#key")).to_be_hidden()
    frames = make_scene([Shape("disc", 48, (48, 30), (0, 0.2))], frames=400).frames
    drop(page, write_video(tmp_path / "of bob.mp4", frames))
    expect(page.locator("#where")).to_contain_text("frame", timeout=JOB_MS)
    expect(page.locator("#left")).not_to_be_empty()
    link = page.url
    page.click("#cancel")
    expect(page.locator("#message")).to_contain_text("Canceled")
    expect(page.locator("#jobs a", has_text="of bob")).to_have_count(1)
    with opened(browser, guarded.url) as other:
        enter_key(other, guarded.ada)
        expect(other.locator("#key")).to_be_hidden()
        other.goto(link)
        expect(other.locator("#message")).to_contain_text("Job not found")
        expect(other.locator("#jobs a", has_text="of bob")).to_have_count(0)


WRAPPER = """async (given) => {
    const {service, key, name, data} = given;
    const file = new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name);
    %s
}"""


@needs_browser
@pytest.mark.parametrize(("which", "last"), [(0, "4 frames"), (1, "bytes")], ids=["by events", "with a key"])
def test_the_javascript_of_the_http_api_runs(
    browser: Browser, guarded: Guarded, service_url: str, tmp_path: Path, which: int, last: str
) -> None:
    video = write_video(tmp_path / "short.mp4", make_scene(frames=4).frames)
    url = (service_url, guarded.url)[which]
    data = base64.b64encode(video.read_bytes()).decode()
    given = {"service": url, "key": guarded.ada, "name": video.name, "data": data}
    code = blocks("http-api.md", "js")[which]
    with (
        opened(browser, url) as page,
        page.expect_console_message(lambda message: message.text.endswith(last), timeout=JOB_MS),
    ):
        page.evaluate(WRAPPER % code, given)
