"""User actions on the page in a Chromium from the system packages."""

import base64
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
FRAMES = 16
JOB_MS = 120_000

needs_browser = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("REQUIRE_BROWSER") != "1", reason="Chromium is not installed"
)

DOWNLOADS_PER_PAGE = 10  # Chromium asks the user before it starts an eleventh download from one page


@contextmanager
def opened(browser: Browser, url: str, *, width: int = 1200, dark: bool = False) -> Iterator[Page]:
    """Open the page; fails on script errors and on requests to other origins."""
    context = browser.new_context(
        base_url=url, viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    violations: list[str] = []
    page.on("pageerror", lambda error: violations.append(str(error)))
    page.on("console", lambda message: violations.append(message.text) if is_error(message) else None)
    page.on(
        "request",
        lambda request: violations.append(request.url) if not request.url.startswith((url, "blob:" + url)) else None,
    )
    page.goto("/")
    expect(page.locator("#start")).to_be_visible()
    expect(page.locator("[name=tau]")).not_to_have_value("")
    try:
        yield page
    finally:
        context.close()
    assert violations == [], violations


def is_error(message: ConsoleMessage) -> bool:
    """Whether a console message is a script error; rejected requests are shown on the page instead."""
    return message.type == "error" and not message.text.startswith("Failed to load resource: the server responded")


def drop(page: Page, *videos: Path) -> None:
    """Drop files on the page."""
    page.evaluate(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, data] of files) {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
            }
            document.querySelector("#drop").dispatchEvent(
                new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [[video.name, base64.b64encode(video.read_bytes()).decode()] for video in videos],
    )


def options(page: Page, tau: str = "1, 0.3") -> None:
    page.click("#start summary:has-text('Options')")
    page.fill("[name=tau]", tau)
    page.select_option("[name=background]", "keep")  # shows masks whatever the model finds


def painted(page: Page, canvas: str = "#canvas") -> int:
    """Number of pixels of a canvas that are not transparent."""
    count: int = page.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector);
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let count = 0;
            for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
            return count;
        }""",
        canvas,
    )
    return count


def scrub(page: Page, frame: int) -> None:
    page.locator("#scrub").fill(str(frame))
    page.wait_for_function("() => !document.querySelector('#video').seeking")


def take_downloads(page: Page, folder: Path) -> None:
    """Download the files of a result; none may be empty, and archives must contain every frame."""
    links = page.locator("#downloads a")
    stored = ["PNG masks", "RLE JSON", "Overlay MP4"]
    cutouts = ["Cut-out WebM", "Cut-out ProRes", "Preview GIF"]
    rendered = ["COCO", "YouTube-VIS", "CVAT video", "CVAT images", "Label Studio", "YOLO", "MOTS"]
    expect(links).to_have_text([*stored, *cutouts, *rendered, "Source MP4", "Manifest"])
    for label in [*stored, *rendered][:DOWNLOADS_PER_PAGE]:
        with page.expect_download() as download:
            links.get_by_text(label, exact=True).click()
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        assert path.stat().st_size > 100
        if path.suffix == ".zip":
            frames = [name for name in zipfile.ZipFile(path).namelist() if Path(name).stem.isdecimal()]
            assert len(frames) == FRAMES
