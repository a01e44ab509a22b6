"""POST /segment with `video_url`: fetched from allowed addresses only, with limits, at every redirect."""

import ipaddress
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.http.fetch import fetch
from service.settings import Settings
from uvos.errors import VideoUrlFailed

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
VIDEO = b"GIF89a" + bytes(5000)


class Handler(BaseHTTPRequestHandler):
    """Serves a video, redirects, and answers that never end or end early."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        targets = {
            "/moved": "/my%20clip.gif?a=1",
            "/inside": f"http://127.0.0.2:{port}/my%20clip.gif",
            "/loop": "/loop",
        }
        if self.path in targets:
            self.send_response(302)
            self.send_header("Location", targets[self.path])
            self.end_headers()
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(VIDEO) + (self.path in ("/short", "/slow"))))
        self.end_headers()
        self.wfile.write(VIDEO)
        if self.path == "/slow":
            time.sleep(2)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def open_http(settings: Settings) -> Iterator[TestClient]:
    """An API that may fetch from 127.0.0.1."""
    allowed = settings.model_copy(update={"fetch_networks": [ipaddress.ip_network("127.0.0.1/32")]})
    with TestClient(create_app(allowed), raise_server_exceptions=False) as client:
        yield client


def post(http: TestClient, url: str):  # type: ignore[no-untyped-def]
    return http.post("/segment", files={"video_url": (None, url)})


def test_a_video_is_fetched_through_redirects_with_its_name(open_http: TestClient, url: str) -> None:
    job = post(open_http, f"{url}/my%20clip.gif").json()
    assert (job["video"]["name"], job["video"]["bytes"]) == ("my clip.gif", len(VIDEO))
    assert post(open_http, f"{url}/moved").json()["video"]["sha256"] == job["video"]["sha256"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/inside", "not a public address"),
        ("/loop", "redirects"),
        ("/missing", "404"),
        ("/short", "5006 of 5007 bytes"),
    ],
)
def test_a_failed_fetch_is_a_problem_and_leaves_nothing(
    open_http: TestClient, settings: Settings, url: str, path: str, reason: str
) -> None:
    response = post(open_http, url + path)
    assert (response.status_code, response.json()["type"]) == (422, "/problems/video-url-failed")
    assert reason in response.json()["detail"]
    assert not any(list((settings.data_dir / name).iterdir()) for name in ("uploads", "jobs"))


def test_addresses_of_this_machine_and_other_schemes_are_refused(http: TestClient, url: str) -> None:
    assert "not a public address" in post(http, f"{url}/my%20clip.gif").json()["detail"]
    assert post(http, "file:///etc/passwd").json()["type"] == "/problems/invalid-parameters"
    both = http.post("/segment", files={"video": ("a.gif", VIDEO), "video_url": (None, url)})
    assert both.json()["type"] == "/problems/invalid-parameters"


def test_a_slow_answer_ends_at_the_time_limit(url: str) -> None:
    received = bytearray()
    began = time.monotonic()
    with pytest.raises(VideoUrlFailed, match=r"longer than 0\.3 s"):
        fetch(f"{url}/slow", received.extend, max_bytes=10**6, networks=[LOOPBACK], timeout_s=0.3)
    assert time.monotonic() - began < 1.5


def test_a_fetched_video_must_be_within_the_limit_of_uploads(settings: Settings, url: str) -> None:
    small = settings.model_copy(update={"max_upload_bytes": 1000, "fetch_networks": [LOOPBACK]})
    with TestClient(create_app(small), raise_server_exceptions=False) as client:
        response = post(client, f"{url}/my%20clip.gif")
    assert (response.status_code, response.json()["limit"], response.json()["actual"]) == (413, 1000, len(VIDEO))
