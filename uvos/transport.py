"""HTTP of the clients, without sending: uploads, retries, problems, server-sent events."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

import httpx

from uvos.contract import JobView, Problem

CONNECT_TIMEOUT_S = 5.0
EVENT_TIMEOUT_S = 40.0  # the service sends a keep-alive comment every 15 s
RETRY_FOR_S = 60.0  # covers a restart of the service
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0
RETRY_STATUSES = {429, 502, 503, 504}
TIMEOUT = httpx.Timeout(60, connect=CONNECT_TIMEOUT_S)
EVENT_TIMEOUT = httpx.Timeout(EVENT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)

VideoSource = str | os.PathLike[str] | bytes | BinaryIO
"""A path, the bytes of a file, or a file opened in binary mode."""


class RequestFailed(Exception):
    """The service rejected a request, or the job did not succeed; `problem` is the problem that it returned."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Upload:
    """A video that can be sent again after a failed attempt."""

    def __init__(self, video: VideoSource, name: str | None) -> None:
        self._path: Path | None = None
        self._content: BinaryIO | bytes = b""
        given = "video"
        if isinstance(video, str | os.PathLike):
            self._path = Path(video)
            given = self._path.name
        elif isinstance(video, bytes | bytearray | memoryview):
            self._content = bytes(video)
        else:
            self._content = video if video.seekable() else video.read()
            self._start = video.tell() if video.seekable() else 0
            given = PurePath(str(getattr(video, "name", given))).name
        self.name = name or given

    @contextmanager
    def content(self) -> Iterator[BinaryIO | bytes]:
        """The content from its beginning."""
        if self._path is not None:
            with self._path.open("rb") as file:
                yield file
            return
        if not isinstance(self._content, bytes):
            self._content.seek(self._start)
        yield self._content


class Backoff:
    """Exponentially growing pauses until a deadline."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._pause_s = FIRST_PAUSE_S

    def has_time_left(self) -> bool:
        return time.monotonic() < self._until

    def next_pause_s(self, wanted_s: float | None = None) -> float:
        """The next pause, never beyond the deadline."""
        pause_s = min(self._pause_s if wanted_s is None else wanted_s, max(0.0, self._until - time.monotonic()))
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        return pause_s


class Retry:
    """Decides whether a request is sent again; all requests of the clients are idempotent."""

    def __init__(self, seconds: float, *, has_responded: bool) -> None:
        self._backoff = Backoff(seconds)
        self._has_responded = has_responded

    def after_response(self, response: httpx.Response) -> float | None:
        """Pause before the next attempt in seconds; None if the response is final."""
        if response.status_code not in RETRY_STATUSES or not self._backoff.has_time_left():
            return None
        return self._backoff.next_pause_s(retry_after_s(response))

    def after_error(self, error: httpx.TransportError) -> float:
        """Pause before the next attempt in seconds; raises the error if there is none."""
        is_absent = isinstance(error, httpx.ConnectError) and not self._has_responded
        if is_absent or not self._backoff.has_time_left():
            raise error
        return self._backoff.next_pause_s()

    def after_problem(self, error: RequestFailed) -> float:
        """Pause after a broken stream of events; raises the error if it is final."""
        if error.problem.status not in RETRY_STATUSES or not self._backoff.has_time_left():
            raise error
        return self._backoff.next_pause_s()


class EventLines:
    """Assembles server-sent events, as pairs of id and job, from their lines."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> tuple[str | None, JobView] | None:
        """The event that the line completes, if any."""
        if line:
            name, _, value = line.partition(": ")
            self._fields[name] = value
            return None
        fields, self._fields = self._fields, {}
        return (fields.get("id"), JobView.model_validate_json(fields["data"])) if "data" in fields else None


def event_headers(last: str | None) -> dict[str, str]:
    return {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})


def base_url(url: str) -> str:
    """The URL of a service, with http:// if it has no scheme: "localhost:8000"."""
    return url if "://" in url else f"http://{url}"


def authorization(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


def checked(response: httpx.Response) -> httpx.Response:
    """The response, unless it is an error.

    Raises:
        RequestFailed: with the problem of the response.
    """
    if response.is_error:
        try:
            problem = Problem.model_validate(response.json())
        except ValueError:
            problem = Problem(
                type="about:blank",
                title=response.reason_phrase,
                status=response.status_code,
                detail=response.text[:200] or response.reason_phrase,
            )
        raise RequestFailed(problem)
    return response


class PartFile:
    """A file that is downloaded in several attempts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._part.unlink(missing_ok=True)
        self._tag = ""

    def headers(self) -> dict[str, str]:
        """Headers of the next attempt: the rest, if the file has not changed."""
        offset = self._part.stat().st_size if self._part.exists() and self._tag else 0
        return {"Range": f"bytes={offset}-", "If-Range": self._tag} if offset else {}

    def open(self, response: httpx.Response) -> BinaryIO:
        """The file, at the position of the response's first byte."""
        self._tag = response.headers.get("etag", "")
        return self._part.open("ab" if response.status_code == 206 else "wb")

    def complete(self) -> Path:
        self._part.replace(self._path)
        return self._path
