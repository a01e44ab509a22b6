"""Python client of the service, over HTTP.

from uvos import Client

result = Client("http://127.0.0.1:8000").segment("clip.mp4", tau=[0.5, 1.0])
result.masks(tau=1.0)  # (T, H, W) uint16, 0 is background
"""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from uvos import rle
from uvos.contract import Format, JobPage, JobView, LevelLinks, Manifest, Problem, RleDocument, Status

if TYPE_CHECKING:
    import supervision

CONNECT_TIMEOUT_S = 5.0
EVENT_TIMEOUT_S = 40.0  # the service sends a keep-alive comment every 15 s
RETRY_FOR_S = 60.0  # covers a restart of the service
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 5.0
RETRY_STATUSES = {429, 502, 503, 504}

ExportFormat = Literal[
    "masks_zip",
    "rle",
    "overlay",
    "cutout_webm",
    "cutout_mov",
    "preview_gif",
    "frames",
    "coco",
    "youtube_vis",
    "cvat",
    "cvat_images",
    "label_studio",
    "yolo",
    "mots",
]


class RequestFailed(Exception):
    """The service rejected a request, or the job did not succeed; `problem` is the problem that it returned."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Client:
    """Client of the service at `url`.

    Transient failures (dropped connections, a full queue, a restart) are retried for `retry_for_s` seconds. A retried
    submit creates one job, because all attempts carry the same Idempotency-Key.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, retry_for_s: float = RETRY_FOR_S
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._retry_for_s = retry_for_s
        self._has_responded = False
        self._http = httpx.Client(
            base_url=base_url(url),
            headers=headers,
            timeout=httpx.Timeout(60, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
        )

    def is_ready(self) -> bool:
        """Whether the service accepts jobs and a worker has loaded a model."""
        response = self._http.get("/readyz")
        return response.status_code == 200 and any(worker["models"] for worker in response.json()["workers"])

    def segment(
        self, video: "str | os.PathLike[str]", *, on_change: Callable[[JobView], None] | None = None, **params: Any
    ) -> "Result":
        """Send a video, wait for the job, and return its result. Parameters are those of POST /segment.

        Raises:
            RequestFailed: the video was rejected, or the job failed or was canceled.
        """
        return self.result(self.wait(self.submit(video, **params), on_change=on_change))

    def result(self, job: JobView) -> "Result":
        """Result of a job that has ended.

        Raises:
            RequestFailed: the job did not succeed.
        """
        if job.error is not None:
            raise RequestFailed(job.error)
        if job.status != Status.succeeded:
            detail = f"job {job.id} is {job.status.value} and has no result"
            raise RequestFailed(Problem(type="about:blank", title="No result", status=409, detail=detail))
        return Result(self, job)

    # --- jobs

    def submit(self, video: "str | os.PathLike[str]", *, idempotency_key: str | None = None, **params: Any) -> JobView:
        """Send a video and return the accepted job. Parameters are those of POST /segment; a list repeats a field.

        Raises:
            RequestFailed: the service rejected the request.
        """
        path = Path(video)
        fields: Mapping[str, Any] = {name: _field(value) for name, value in params.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}

        def post() -> httpx.Response:
            with path.open("rb") as file:
                return self._http.post("/segment", data=fields, files={"video": (path.name, file)}, headers=headers)

        return JobView.model_validate(self._try(post).json())

    def job(self, job_id: str) -> JobView:
        """Current state of a job."""
        return JobView.model_validate(self._get(f"/jobs/{job_id}").json())

    def jobs(self, status: Status | None = None, *, tag: str | None = None) -> Iterator[JobView]:
        """The caller's jobs, newest first, fetched page by page."""
        cursor: str | None = None
        while True:
            query = {"cursor": cursor, "status": status.value if status else None, "tag": tag}
            response = self._get("/jobs", params={name: value for name, value in query.items() if value})
            page = JobPage.model_validate(response.json())
            yield from page.jobs
            if page.next is None:
                return
            cursor = page.next

    def wait(self, job: JobView, *, on_change: Callable[[JobView], None] | None = None) -> JobView:
        """Follow the events of a job until it has ended; resumes after a broken connection.

        Raises:
            RequestFailed: the job was deleted.
            httpx.TransportError: the service was unreachable for `retry_for_s`.
        """
        if job.status.is_terminal:
            return job
        last: str | None = None
        backoff = _Backoff(self._retry_for_s)
        while True:
            try:
                for event, job in self._events(job.links.events, last):  # noqa: B020  # the latest state
                    last = event
                    backoff = _Backoff(self._retry_for_s)
                    if on_change is not None:
                        on_change(job)
                    if job.status.is_terminal:
                        return job
            except httpx.TransportError:
                if not backoff.has_time_left():
                    raise
            except RequestFailed as error:
                if error.problem.status not in RETRY_STATUSES or not backoff.has_time_left():
                    raise
            backoff.pause()

    def cancel(self, job: JobView) -> JobView:
        """Cancel a queued or running job."""
        return JobView.model_validate(self._try(lambda: self._http.post(job.links.cancel)).json())

    def delete(self, job: JobView) -> None:
        """Delete a job with its video and results."""
        self._try(lambda: self._http.delete(job.links.self))

    # --- files

    def download(self, link: str, path: Path) -> Path:
        """Save the file behind a link of a job; resumes after a broken connection."""
        part = path.with_name(f"{path.name}.part")
        part.unlink(missing_ok=True)
        backoff = _Backoff(self._retry_for_s)
        tag = ""
        while True:
            offset = part.stat().st_size if part.exists() and tag else 0
            headers = {"Range": f"bytes={offset}-", "If-Range": tag} if offset else {}
            try:
                with self._http.stream("GET", link, headers=headers) as response:
                    if response.is_error:
                        response.read()
                    if response.status_code in RETRY_STATUSES and backoff.has_time_left():
                        backoff.pause(_retry_after_s(response))
                        continue
                    _checked(response)
                    tag = response.headers.get("etag", "")
                    with part.open("ab" if response.status_code == 206 else "wb") as file:
                        for chunk in response.iter_bytes():
                            file.write(chunk)
                part.replace(path)
                return path
            except httpx.TransportError:
                if not backoff.has_time_left():
                    raise
            backoff.pause()

    def download_all(self, job: JobView, out: Path) -> Iterator[Path]:
        """Save the manifest and the requested formats of every level of a succeeded job."""
        assert job.status == Status.succeeded
        assert job.links.manifest is not None
        out.mkdir(parents=True, exist_ok=True)
        yield self.download(job.links.manifest, out / "manifest.json")
        for level in job.links.levels:
            folder = out / "levels" / f"{level.tau:g}"
            folder.mkdir(parents=True, exist_ok=True)
            files = [("rle.json", level.rle), ("masks.zip", level.masks_zip), ("frames.zip", level.frames)]
            if Format.overlay in job.params.format:
                files.append(("overlay.mp4", level.overlay))
            for name, link in files:
                if link is not None:
                    yield self.download(link, folder / name)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- HTTP

    def _get(self, link: str, **options: Any) -> httpx.Response:
        return self._try(lambda: self._http.get(link, **options))

    def _try(self, request: Callable[[], httpx.Response]) -> httpx.Response:
        """Send a request and retry transient failures; all requests of this client are idempotent."""
        backoff = _Backoff(self._retry_for_s)
        while True:
            wait_s: float | None = None
            try:
                response = request()
                self._has_responded = True
                if response.status_code not in RETRY_STATUSES or not backoff.has_time_left():
                    return _checked(response)
                wait_s = _retry_after_s(response)
            except httpx.TransportError as error:
                is_absent = isinstance(error, httpx.ConnectError) and not self._has_responded
                if is_absent or not backoff.has_time_left():
                    raise
            backoff.pause(wait_s)

    def _events(self, link: str, last: str | None) -> Iterator[tuple[str | None, JobView]]:
        """Server-sent events after the id `last`, as pairs of id and job."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        timeout = httpx.Timeout(EVENT_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        with self._http.stream("GET", link, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
            _checked(response)
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    yield fields.get("id"), JobView.model_validate_json(fields["data"])
                    fields = {}


class Result:
    """Result of a job; files are fetched on first use."""

    def __init__(self, client: Client, job: JobView) -> None:
        self._client = client
        self.job = job
        self._documents: dict[str, RleDocument] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """Manifest of the result."""
        assert self.job.links.manifest is not None
        return Manifest.model_validate_json(self._client._get(self.job.links.manifest).content)

    @property
    def times_s(self) -> list[float]:
        """Presentation time of each frame, seconds."""
        return self.manifest.video.pts_s

    @property
    def taus(self) -> list[float]:
        """Tau of each level."""
        return [level.tau for level in self.job.links.levels]

    def rle(self, tau: float | None = None) -> RleDocument:
        """COCO RLE of a level; default: the first level."""
        link = self._link("rle", tau)
        if link not in self._documents:
            self._documents[link] = RleDocument.model_validate_json(self._client._get(link).content)
        return self._documents[link]

    def masks(self, tau: float | None = None) -> NDArray[np.uint16]:
        """Label maps of a level, shape (T, H, W): object ids, constant over time, 0 for background."""
        document = self.rle(tau)
        return np.stack([rle.label_map(frame, document.size) for frame in document.frames])

    def to_supervision(self, tau: float | None = None) -> "list[supervision.Detections]":
        """Objects of each frame as `supervision.Detections`: boxes, masks, and the object id as `tracker_id`.

        Raises:
            ImportError: the package `supervision` is not installed.
        """
        import supervision

        detections = []
        for frame in self.rle(tau).frames:
            if not frame.objects:
                detections.append(supervision.Detections.empty())
                continue
            masks = np.stack([rle.mask(item.rle) for item in frame.objects])
            detections.append(
                supervision.Detections(
                    xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
                    mask=masks,
                    class_id=np.zeros(len(masks), int),
                    tracker_id=np.array([item.id for item in frame.objects]),
                )
            )
        return detections

    def to_coco(self, tau: float | None = None) -> dict[str, Any]:
        """A COCO data set: one image per frame, one annotation per mask, the object id as `track_id`.

        Assign it to `dataset` of a `pycocotools.coco.COCO`. Image ids start at 1, as COCO requires.
        """
        dataset: dict[str, Any] = self._client._get(self._link("coco", tau)).json()
        return dataset

    def export(
        self, format: ExportFormat, out: "str | os.PathLike[str]", *, tau: float | None = None, **options: str
    ) -> Path:
        """Save one format of a level as a file and return its path.

        Args:
            format: Name of the format's link in the job.
            out: Path of the file.
            tau: Level; default: the first.
            options: Query parameters of the link, as `tracks="polygon"` of "cvat".

        Raises:
            ValueError: the job has no such level or format.
        """
        link = httpx.URL(self._link(format, tau)).copy_merge_params(options)
        return self._client.download(str(link), Path(out))

    def file_name(self, format: ExportFormat, tau: float | None = None) -> str:
        """Name of the file of a format: "coco.json"."""
        return httpx.URL(self._link(format, tau)).path.rpartition("/")[2]

    def save(self, out: "str | os.PathLike[str]") -> list[Path]:
        """Save all files of the result in a folder and return their paths."""
        return list(self._client.download_all(self.job, Path(out)))

    def _link(self, format: ExportFormat, tau: float | None) -> str:
        link: str | None = getattr(self._level(tau), format)
        if link is None:
            raise ValueError(
                f"this job has no {format}; request it with the parameter `format` when you submit a video"
            )
        return link

    def _level(self, tau: float | None) -> LevelLinks:
        levels = self.job.links.levels
        for level in levels:
            if tau is None or f"{level.tau:g}" == f"{tau:g}":
                return level
        raise ValueError(f"tau must be one of the levels {self.taus} of this job, got {tau:g}")


def base_url(url: str) -> str:
    """The URL of a service, with http:// if it has no scheme: "localhost:8000"."""
    return url if "://" in url else f"http://{url}"


def _field(value: Any) -> "str | list[str]":
    """A parameter as text of a form: lists repeat the field, mappings are JSON."""
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


class _Backoff:
    """Exponentially growing pauses until a deadline."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._pause_s = FIRST_PAUSE_S

    def has_time_left(self) -> bool:
        return time.monotonic() < self._until

    def pause(self, seconds: float | None = None) -> None:
        time.sleep(min(seconds if seconds is not None else self._pause_s, max(0.0, self._until - time.monotonic())))
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)


def _checked(response: httpx.Response) -> httpx.Response:
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
