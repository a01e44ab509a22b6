"""A user's way through the page with real files: drop, result, rename and merge, export, reload, link."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.service.browser import JOB_MS, drop, needs_browser, opened, options, painted

pytestmark = [needs_browser, pytest.mark.data]

GIF = "videos/imageio+imageio-binaries/newtonscradle.gif"
AVI = "videos/zllrunning+video-object-removal/bag.avi"
PORTRAIT = "videos/dmlc+decord/video_90.mov"
CORRUPT = "videos/dmlc+decord/corrupted.mp4"


def names(page: Page) -> list[str]:
    return page.locator("#legend .name").all_inner_texts()


def show_result(page: Page) -> None:
    expect(page.locator("#legend .object").first).to_be_visible(timeout=JOB_MS)
    page.wait_for_function("() => document.querySelector('#video').videoWidth > 0")
    assert painted(page) > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]


def edit(page: Page, button: str) -> None:
    with page.expect_response(lambda response: "/objects" in response.url and response.ok):
        page.locator("#edits button", has_text=button).click()


@pytest.mark.parametrize(
    ("width", "file", "tau"), [(1280, GIF, "0.5"), (360, PORTRAIT, "1.4")], ids=["gif", "portrait"]
)
def test_a_dropped_file_becomes_an_edited_result_that_a_link_shows(
    browser: Browser, service_url: str, data: Path, width: int, file: str, tau: str
) -> None:
    with opened(browser, service_url, width=width) as page:
        options(page, tau=tau)
        page.fill("[name=end]", "0.3")
        drop(page, data / file)
        show_result(page)
        before = names(page)
        assert len(before) > 2

        page.locator("#legend .object").nth(0).click()
        page.locator("#edits button", has_text="Select more").click()
        page.locator("#legend .object").nth(1).click()
        edit(page, "Merge 2")
        expect(page.locator("#legend .object")).to_have_count(len(before) - 1)
        page.locator("#edits").get_by_label("Name").fill("cradle")
        edit(page, "Rename")
        edit(page, "Only this one")
        expect(page.locator("#of-level")).to_have_text("as edited")
        with page.expect_download() as download:
            page.locator("#downloads a", has_text="COCO").click()
        exported = json.loads(download.value.path().read_text())
        assert {item["name"] for item in exported["categories"]} == {"cradle"}
        assert len({item["track_id"] for item in exported["annotations"]}) == 1

        page.reload()
        show_result(page)
        assert "cradle" in names(page)
        visible = painted(page)
        link = page.url
    with opened(browser, service_url, width=width, dark=True) as other:
        other.goto(link)
        show_result(other)
        assert painted(other) == visible
        edit(other, "Undo")
        expect(other.locator("#legend .off")).to_have_count(0)


def test_every_container_shows_its_video_and_a_damaged_one_its_good_part(
    browser: Browser, service_url: str, data: Path
) -> None:
    with opened(browser, service_url) as page:
        options(page, tau="1")
        page.fill("[name=end]", "0.2")
        drop(page, data / AVI, data / PORTRAIT)
        expect(page.locator("#batch-title")).to_have_text("2 of 2 videos done", timeout=JOB_MS)
        page.click("#batch a:has-text('bag.avi')")
        show_result(page)

        page.click(".brand")
        page.fill("[name=end]", "")
        page.fill("[name=fps]", "3")
        drop(page, data / CORRUPT)
        expect(page.locator("#message-text")).to_contain_text("end=2.700 selects the part before", timeout=JOB_MS)
        page.click("#message-actions button:has-text('end=2.7')")
        show_result(page)
        expect(page.locator("#curl")).to_contain_text("end=2.7")
