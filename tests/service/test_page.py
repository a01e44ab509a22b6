"""The page in Chromium: upload, progress, playback, levels, downloads."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.settings import Settings
from tests.service.browser import FRAMES, JOB_MS, drop, needs_browser, opened, options, painted, scrub, take_downloads
from tests.service.live import running_api
from tests.videos import Shape, make_scene, write_video
from uvos.client import Client
from uvos.contract import JobView

FOLDER = Path(__file__).parents[2] / "service" / "page"


@pytest.fixture
def page(browser: Browser, service_url: str) -> Iterator[Page]:
    with opened(browser, service_url) as page:
        yield page


@pytest.fixture(scope="module")
def job(service_url: str, video: Path) -> JobView:
    """A job with two levels and all formats."""
    with Client(service_url) as client:
        formats = ["png", "rle", "overlay"]
        return client.wait(client.submit(video, tau=[1.0, 0.3], background="keep", format=formats))


@pytest.fixture
def result(page: Page, job: JobView) -> Page:
    """The page with a result."""
    page.goto(f"/#/jobs/{job.id}")
    show_result(page)
    return page


def show_result(page: Page) -> None:
    expect(page.locator("#result")).to_be_visible(timeout=JOB_MS)
    expect(page.locator("#legend .object").first).to_be_visible()
    page.wait_for_load_state("networkidle")  # the other levels


@needs_browser
def test_upload_playback_levels_and_downloads(page: Page, video: Path, tmp_path: Path) -> None:
    options(page)
    drop(page, video)
    show_result(page)
    result = page
    expect(result.locator("#result-title")).to_have_text("my clip.mp4")
    expect(result.locator("#facts")).to_contain_text(f"128×96 · {FRAMES} frames")
    assert painted(result) > 0

    for frame in (0, 5, FRAMES - 1):
        scrub(result, frame)
        expect(result.locator("#clock")).to_contain_text(f"{frame}/{FRAMES - 1}")
        shown_s = result.evaluate("document.querySelector('#video').currentTime")
        assert frame / 16 <= shown_s < (frame + 1) / 16

    requests: list[str] = []
    result.on("request", lambda request: requests.append(request.url))
    for stop, name in enumerate(["τ 0.3", "τ 1"]):
        result.locator("#level").fill(str(stop))
        expect(result.locator("#level-name")).to_contain_text(f"{name} · ")
        expect(result.locator("#of-level")).to_have_text(f"of {name}")
    assert result.get_attribute("#level", "max") == "1"
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
    hidden = result.locator("#legend .swatch").first
    result.focus("#stage")
    with result.expect_response("**/objects*"):
        result.keyboard.press("1")
    expect(hidden).to_have_attribute("aria-pressed", "false")
    assert painted(result) < before
    with result.expect_response("**/objects*"):
        result.keyboard.press("1")
    expect(hidden).to_have_attribute("aria-pressed", "true")
    assert painted(result) == before


@needs_browser
def test_the_curl_command_submits_the_same_job(result: Page, service_url: str) -> None:
    result.click("summary:has-text('command line')")
    command = result.inner_text("#curl")
    for part in (f"{service_url}/segment", "video=@my clip.mp4", "tau=1 ", "tau=0.3", "background=keep", "model="):
        assert part in command


@needs_browser
def test_a_click_on_an_object_selects_it(result: Page) -> None:
    box = result.locator("#stage").bounding_box()
    assert box is not None
    result.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    expect(result.locator("#legend .object[aria-pressed=true]")).to_have_count(1)


@needs_browser
def test_two_levels_stand_side_by_side_and_rounds_behind_advanced(result: Page) -> None:
    result.select_option("#compare", label=result.locator("#compare option", has_text="τ 0.3").first.inner_text())
    expect(result.locator("#second-name")).to_contain_text("τ 0.3")
    scrub(result, 4)
    assert painted(result, "#second-canvas") > 0
    assert painted(result, "#second-picture") > 0
    expect(result.locator("#round")).to_be_hidden()
    result.click("#advanced summary")
    expect(result.locator("#round-name")).to_contain_text("result")
    result.locator("#round").fill("0")
    expect(result.locator("#round-name")).to_contain_text("round 1")
    expect(result.locator("#objects-title")).to_have_text("Groups")


@needs_browser
def test_a_result_opens_on_a_level_in_which_something_stands_apart(page: Page, video: Path) -> None:
    options(page, tau="1000, 1")
    drop(page, video)
    expect(page.locator("#level-name")).to_contain_text("τ 1 · ", timeout=JOB_MS)
    expect(page.locator("#nothing")).to_be_hidden()
    page.locator("#level").fill("1")
    expect(page.locator("#nothing")).to_contain_text("Nothing stands apart at τ 1000.")
    page.click("#nothing button")
    expect(page.locator("#level-name")).to_contain_text("τ 1 · ")


@needs_browser
@pytest.mark.usefixtures("job")
def test_a_job_from_the_list_shows_video_and_masks(browser: Browser, service_url: str) -> None:
    context = browser.new_context(base_url=service_url, color_scheme="dark", viewport={"width": 360, "height": 740})
    other = context.new_page()
    other.goto("/")
    assert other.locator("#jobs img").first.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 128
    other.locator("#jobs a").first.click()
    expect(other.locator("#legend .object").first).to_be_visible()
    expect(other.locator("#video")).to_be_visible()
    expect(other.locator("#clock")).to_have_text(f"0.00 s · 0/{FRAMES - 1}")
    assert painted(other) > 0
    assert other.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


@needs_browser
def test_a_job_can_be_canceled(page: Page, tmp_path: Path) -> None:
    frames = make_scene([Shape("disc", 48, (48, 30), (0, 0.2))], frames=400).frames
    drop(page, write_video(tmp_path / "long.mp4", frames))
    expect(page.locator("#where")).to_contain_text("frame", timeout=JOB_MS)
    expect(page.locator("#left")).not_to_be_empty()
    expect(page.locator("#preview")).to_be_visible()
    page.click("#cancel")
    expect(page.locator("#message.note")).to_contain_text("Canceled")
    expect(page.locator("#start")).to_be_visible()
    expect(page).to_have_title("uvos: any video to object masks")


@needs_browser
def test_a_problem_shows_its_remedy_and_one_click_applies_it(page: Page, video: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.mp4"
    text.write_bytes(b"not a video at all")
    drop(page, text)
    expect(page.locator("#message-text")).to_contain_text("not a video")
    expect(page.locator("#message-remedy")).to_contain_text("Send an MP4")

    options(page)
    page.fill("[name=start]", "60")
    drop(page, video)
    expect(page.locator("#message")).to_contain_text("No frames", timeout=JOB_MS)
    page.click("#message-actions button:has-text('whole video')")
    expect(page.locator("#message")).to_be_hidden()
    expect(page.locator("#legend .object").first).to_be_visible(timeout=JOB_MS)


@needs_browser
def test_several_videos_become_a_batch(page: Page, video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video at all")
    drop(page, video, broken)
    expect(page.locator("#batch-title")).to_have_text("1 of 2 videos done, 1 failed", timeout=JOB_MS)
    expect(page.locator("#batch li.failed")).to_contain_text("Not a video")
    page.click("#batch a:has-text('my clip')")
    expect(page.locator("#legend .object").first).to_be_visible()


@needs_browser
def test_without_a_worker_the_page_says_so(browser: Browser, redis_url: str, video: Path, tmp_path: Path) -> None:
    settings = Settings(redis_url=SecretStr(redis_url), data_dir=tmp_path / "data", model="tiny")
    with running_api(settings) as url, opened(browser, url) as page:
        expect(page.locator("#service")).to_contain_text("No worker is running.", timeout=5000)
        expect(page.locator("#service")).to_contain_text("uvos up")
        drop(page, video)
        expect(page.locator("#where")).to_have_text("waiting for a worker")


@needs_browser
def test_all_controls_have_an_accessible_name(result: Page) -> None:
    unnamed = result.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a, canvas[role]")]
            .filter((node) => !(node.getAttribute("aria-label") || node.labels?.length
                || node.textContent.trim() || node.closest("label")))
            .map((node) => node.outerHTML)"""
    )
    assert unnamed == []


def test_the_page_is_small_and_has_a_strict_content_security_policy(http: TestClient) -> None:
    files = [path for path in FOLDER.iterdir() if path.suffix != ".mp4"]
    assert sum(path.stat().st_size for path in files if not path.stem.startswith("docs")) <= 90_000
    for path in ["/", *(f"/page/{path.name}" for path in files)]:
        response = http.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
    assert "://" not in "".join(path.read_text() for path in files).replace("http://www.w3.org/2000/svg", "")


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


@needs_browser
def test_the_api_documentation_sends_requests_and_shows_code_that_sends_the_same(page: Page, job: JobView) -> None:
    page.goto("/docs#get_job")
    operation = page.locator("#get_job")
    operation.locator("button", has_text="Send").click()
    expect(operation.locator(".answer")).to_have_text("Enter job_id first.")
    operation.get_by_label("job_id").fill(job.id)
    operation.locator("button", has_text="Send").click()
    expect(operation.locator(".answer")).to_contain_text("200 application/json")
    expect(operation.locator(".answer pre")).to_contain_text('"status": "succeeded"')
    answers = []
    for language, command in [("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])]:
        operation.get_by_label("Language").select_option(language)
        code = operation.locator("pre").last.inner_text()
        answers.append(subprocess.run([*command, code], capture_output=True, text=True, check=True, timeout=30).stdout)
    assert json.loads(answers[0])["id"] == ast.literal_eval(answers[1])["id"] == job.id
    page.locator("#segment").locator("summary").click()
    page.locator("#segment").get_by_label("tau", exact=True).fill("1, 0.5")
    code = page.locator("#segment pre").last.inner_text()
    for part in ("-F video=@clip.mp4", "-F tau=1 ", "-F tau=0.5 ", page.url.split("/docs")[0] + "/segment"):
        assert part in code
