"""A stand-in for the hub on loopback: serves one file with the headers of the real one, or fails as configured."""

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMIT = "c" * 40


def point_hub_at(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE do for a new process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


class StandInHub(http.server.BaseHTTPRequestHandler):
    """Attributes of the class decide the answers.

    Attributes:
        content: The file.
        status: Of every answer.
        cuts: Bytes after which the next GETs close the connection.
        delay_s: Pause before each quarter of the file.
        ranges: First byte of each GET.
        paths: Path of each request.
    """

    content = b""
    status = 200
    cuts: list[int]
    delay_s = 0.0
    ranges: list[int]
    paths: list[str]

    def do_HEAD(self) -> None:
        self._head(0)

    def do_GET(self) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.ranges.append(first)
        self._head(first)
        body = self.content[first:]
        if self.cuts:
            self.wfile.write(body[: self.cuts.pop(0)])
            self.close_connection = True
            return
        quarter = len(body) // 4 + 1
        for start in range(0, len(body), quarter):
            time.sleep(self.delay_s)
            self.wfile.write(body[start : start + quarter])

    def _head(self, first: int) -> None:
        self.paths.append(self.path)
        self.send_response(206 if first and self.status == 200 else self.status)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(self.content) - first if self.status == 200 else 0))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        if self.status != 200:
            codes = {401: "GatedRepo", 403: "GatedRepo", 404: "EntryNotFound"}
            self.send_header("X-Error-Code", codes.get(self.status, ""))
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[tuple[type[StandInHub], str]]:
    """The class whose attributes decide the answers, and the address."""
    handler = type("OwnHub", (StandInHub,), {"ranges": [], "paths": [], "cuts": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
