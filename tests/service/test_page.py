"""The page in Chromium: upload, progress, playback, levels, downloads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from starlette.testclient import TestClient

from tests.service.browser import FRAMES, JOB_MS, drop, needs_browser, opened, options, painted, scrub, take_downloads
from tests.videos import Shape, make_scene, write_video

FOLDER = Path(__file__).parents[2] / "service" / "page"


@pytest.fixture
def page(browser: Browser, service_url: str) -> Iterator[Page]:
    with opened(browser, service_url) as page:
        yield page


@pytest.fixture
def result(page: Page, video: Path) -> Page:
    """The page with a result: two levels, all formats."""
    options(page)
    drop(page, video)
    expect(page.locator("#result")).to_be_visible(timeout=JOB_MS)
    expect(page.locator("#legend button").first).to_be_visible()
    expect(page.locator("#grain")).to_be_visible()
    return page


@needs_browser
def test_upload_playback_levels_and_downloads(result: Page, tmp_path: Path) -> None:
    expect(result.locator("#result-title")).to_have_text("my clip")
    expect(result.locator("#facts")).to_contain_text(f"128×96 · {FRAMES} frames")
    assert painted(result) > 0

    for frame in (0, 5, FRAMES - 1):
        scrub(result, frame)
        expect(result.locator("#clock")).to_contain_text(f"{frame}/{FRAMES - 1}")
        shown_s = result.evaluate("document.querySelector('#video').currentTime")
        assert frame / 16 <= shown_s < (frame + 1) / 16

    requests: list[str] = []
    result.on("request", lambda request: requests.append(request.url))
    names = set()
    for stop in range(int(result.get_attribute("#level", "max") or 0) + 1):
        result.locator("#level").fill(str(stop))
        names.add(result.inner_text("#level-name"))
    assert {name.split(" · ")[0] for name in names} == {"τ 0.3", "τ 1"}
    assert requests == []

    take_downloads(result, tmp_path)


@needs_browser
def test_the_keyboard_plays_steps_and_hides_objects(result: Page) -> None:
    result.focus("#stage")
    for key, frame in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Shift+ArrowRight", 11)]:
        result.keyboard.press(key)
        expect(result.locator("#scrub")).to_have_value(str(frame))
    result.keyboard.press(" ")
    expect(result.locator("#play")).to_have_attribute("aria-label", "Pause")
    result.wait_for_timeout(400)
    result.keyboard.press(" ")
    expect(result.locator("#play")).to_have_attribute("aria-label", "Play")
    result.wait_for_timeout(200)
    frame = int(result.input_value("#scrub"))
    shown_s = result.evaluate("document.querySelector('#video').currentTime")
    assert abs(shown_s - frame / 16) < 1.6 / 16  # masks match the presented frame

    scrub(result, 3)
    before = painted(result)
    hidden = result.locator("#legend button").first
    result.focus("#stage")
    result.keyboard.press("1")
    expect(hidden).to_have_attribute("aria-pressed", "false")
    assert painted(result) < before
    result.keyboard.press("1")
    assert painted(result) == before


@needs_browser
def test_the_curl_command_submits_the_same_job(result: Page, service_url: str) -> None:
    result.click("summary:has-text('command line')")
    command = result.inner_text("#curl")
    for part in (f"{service_url}/segment", "video=@my clip.mp4", "tau=1 ", "tau=0.3", "background=keep", "model="):
        assert part in command


@needs_browser
@pytest.mark.usefixtures("result")
def test_a_job_from_the_list_shows_its_masks_without_the_video(browser: Browser, service_url: str, video: Path) -> None:
    context = browser.new_context(base_url=service_url, color_scheme="dark", viewport={"width": 360, "height": 740})
    other = context.new_page()
    other.goto("/")
    other.locator("#jobs a").first.click()
    expect(other.locator("#legend button").first).to_be_visible()
    assert painted(other) > 0
    assert other.evaluate("document.documentElement.scrollWidth") <= 360
    other.locator("#attach input").set_input_files(video)
    expect(other.locator("#video")).to_be_visible()
    context.close()


@needs_browser
def test_a_job_can_be_canceled(page: Page, tmp_path: Path) -> None:
    frames = make_scene([Shape("disc", 48, (48, 30), (0, 0.2))], frames=400).frames
    drop(page, write_video(tmp_path / "long.mp4", frames))
    expect(page.locator("#where")).to_contain_text("frame", timeout=JOB_MS)
    expect(page.locator("#left")).not_to_be_empty()
    page.click("#cancel")
    expect(page.locator("#problem")).to_contain_text("Canceled")
    expect(page.locator("#start")).to_be_visible()


@needs_browser
def test_a_rejected_file_is_explained(page: Page) -> None:
    page.locator("#file").set_input_files({"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"not a video at all"})
    expect(page.locator("#problem")).to_contain_text("Not a video")


@needs_browser
def test_all_controls_have_an_accessible_name(result: Page) -> None:
    unnamed = result.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a, canvas[role], video")]
            .filter((node) => node.tagName !== "VIDEO" && !(node.getAttribute("aria-label") || node.labels?.length
                || node.textContent.trim() || node.closest("label")))
            .map((node) => node.outerHTML)"""
    )
    assert unnamed == []


def test_the_page_is_small_and_has_a_strict_content_security_policy(http: TestClient) -> None:
    files = [path for path in FOLDER.iterdir() if path.suffix != ".mp4"]
    assert sum(path.stat().st_size for path in files if path.stem != "docs") <= 60_000
    for path in ["/", *(f"/page/{path.name}" for path in files)]:
        response = http.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
    assert "http" not in "".join(path.read_text() for path in files).replace("http://www.w3.org/2000/svg", "")


def test_the_sample_is_served(http: TestClient) -> None:
    response = http.get("/page/sample.mp4")
    assert response.headers["content-type"] == "video/mp4"
    assert response.content == (FOLDER / "sample.mp4").read_bytes()


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e/app.py", "app.py", ".", "a" * 100])
def test_other_files_are_not_served(http: TestClient, name: str) -> None:
    assert http.get(f"/page/{name}").status_code in (404, 422)


@needs_browser
def test_the_api_documentation_lists_all_operations(page: Page) -> None:
    page.goto("/docs")
    paths = page.request.get("/openapi.json").json()["paths"]
    expect(page.locator(".operation")).to_have_count(sum(len(methods) for methods in paths.values()))
    page.locator(".operation", has_text="/segment").locator("summary").click()
    expect(page.locator("#segment")).to_contain_text("key_ratio")
    page.fill("#find", "events")
    expect(page.locator("#follow_job")).to_be_visible()
    expect(page.locator("#livez")).to_be_hidden()
