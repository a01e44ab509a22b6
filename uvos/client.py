"""Python client of the service, over HTTP; `uvos.async_client` is the same for asyncio.

from uvos import Client

result = Client("http://127.0.0.1:8000").segment("clip.mp4", tau=[0.5, 1.0])
result.masks(tau=1.0)  # (T, H, W) uint16, 0 is background
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import httpx
import numpy as np
from numpy.typing import NDArray

from uvos.contract import JobPage, JobView, Manifest, RleDocument, Status
from uvos.edits import EditedObjects, ObjectPatch, Operation
from uvos.levels import ExportFormat, Levels, detections, label_maps, succeeded
from uvos.params import SegmentOptions, form
from uvos.transport import (
    EVENT_TIMEOUT,
    RETRY_FOR_S,
    TIMEOUT,
    EventLines,
    PartFile,
    RequestFailed,
    Retry,
    Upload,
    VideoSource,
    authorization,
    base_url,
    checked,
    event_headers,
)

if TYPE_CHECKING:
    import supervision

__all__ = ["Client", "ExportFormat", "RequestFailed", "Result"]


class Client:
    """Client of the service at `url`.

    Transient failures (dropped connections, a full queue, a restart) are retried for `retry_for_s` seconds. A retried
    submit creates one job, because all attempts carry the same Idempotency-Key.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, retry_for_s: float = RETRY_FOR_S
    ) -> None:
        self._retry_for_s = retry_for_s
        self._has_responded = False
        self._http = httpx.Client(
            base_url=base_url(url), headers=authorization(api_key), timeout=TIMEOUT, trust_env=False
        )

    def is_ready(self) -> bool:
        """Whether the service accepts jobs and a worker has loaded a model."""
        response = self._http.get("/readyz")
        return response.status_code == 200 and any(worker["models"] for worker in response.json()["workers"])

    def segment(
        self,
        video: VideoSource,
        *,
        name: str | None = None,
        on_change: Callable[[JobView], None] | None = None,
        **options: Unpack[SegmentOptions],
    ) -> "Result":
        """Send a video, wait for the job, and return its result. Parameters are those of POST /segment.

        Raises:
            RequestFailed: the video was rejected, or the job failed or was canceled.
        """
        return self.result(self.wait(self.submit(video, name=name, **options), on_change=on_change))

    def result(self, job: JobView) -> "Result":
        """Result of a job that has ended.

        Raises:
            RequestFailed: the job did not succeed.
        """
        return Result(self, succeeded(job))

    # --- jobs

    def submit(
        self,
        video: VideoSource,
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[SegmentOptions],
    ) -> JobView:
        """Send a video and return the accepted job. Parameters are those of POST /segment; a list repeats a field.

        Args:
            video: A path, the bytes of a file, or a file opened in binary mode.
            name: Name of the video. Default: the name of the file, if it has one.
            idempotency_key: Requests with the same key create one job. Default: a random key for each call.
            options: Parameters of the job.

        Raises:
            RequestFailed: the service rejected the request.
        """
        upload, fields = Upload(video, name), form(options)
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}

        def post() -> httpx.Response:
            with upload.content() as content:
                return self._http.post(
                    "/segment", data=fields, files={"video": (upload.name, content)}, headers=headers
                )

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
        last: str | None = None
        retry = Retry(self._retry_for_s, has_responded=True)
        while not job.status.is_terminal:
            try:
                for event, job in self._events(job.links.events, last):  # noqa: B020  # the latest state
                    last = event
                    retry = Retry(self._retry_for_s, has_responded=True)
                    if on_change is not None:
                        on_change(job)
                    if job.status.is_terminal:
                        return job
                pause_s = 0.0
            except httpx.TransportError as error:
                pause_s = retry.after_error(error)
            except RequestFailed as error:
                pause_s = retry.after_problem(error)
            time.sleep(pause_s)
        return job

    def cancel(self, job: JobView) -> JobView:
        """Cancel a queued or running job."""
        return JobView.model_validate(self._try(lambda: self._http.post(job.links.cancel)).json())

    def delete(self, job: JobView) -> None:
        """Delete a job with its video and results."""
        self._try(lambda: self._http.delete(job.links.self))

    # --- files

    def download(self, link: str, path: Path) -> Path:
        """Save the file behind a link of a job; resumes after a broken connection, waits for one being rendered."""
        part = PartFile(path)
        retry = Retry(self._retry_for_s, has_responded=True)
        while True:
            try:
                with self._http.stream("GET", link, headers=part.headers()) as response:
                    if response.is_error:
                        response.read()
                    pause_s = retry.after_response(response)
                    if pause_s is None:
                        checked(response)
                        with part.open(response) as file:
                            for chunk in response.iter_bytes():
                                file.write(chunk)
                        return part.complete()
            except httpx.TransportError as error:
                pause_s = retry.after_error(error)
            time.sleep(pause_s)

    def download_all(self, job: JobView, out: Path) -> Iterator[Path]:
        """Save the manifest and the requested formats of every level of a succeeded job."""
        for link, name in Levels(job)._stored_files():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            yield self.download(link, out / name)

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
        """Send a request and retry transient failures."""
        retry = Retry(self._retry_for_s, has_responded=self._has_responded)
        while True:
            try:
                response = request()
                self._has_responded = True
                pause_s = retry.after_response(response)
                if pause_s is None:
                    return checked(response)
            except httpx.TransportError as error:
                pause_s = retry.after_error(error)
            time.sleep(pause_s)

    def _events(self, link: str, last: str | None) -> Iterator[tuple[str | None, JobView]]:
        """Server-sent events after the id `last`, as pairs of id and job."""
        with self._http.stream("GET", link, headers=event_headers(last), timeout=EVENT_TIMEOUT) as response:
            if response.is_error:
                response.read()
            checked(response)
            lines = EventLines()
            for line in response.iter_lines():
                event = lines.feed(line)
                if event is not None:
                    yield event


class Result(Levels):
    """Result of a job; files are fetched on first use."""

    def __init__(self, client: Client, job: JobView) -> None:
        super().__init__(job)
        self._client = client
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

    def rle(self, tau: float | None = None) -> RleDocument:
        """COCO RLE of a level, with the edits of its objects; default: the first level."""
        link = self._link("rle", tau)
        if link not in self._documents:
            self._documents[link] = RleDocument.model_validate_json(self._client._get(link).content)
        return self._documents[link]

    def masks(self, tau: float | None = None) -> NDArray[np.uint16]:
        """Label maps of a level, shape (T, H, W): object ids, constant over time, 0 for background."""
        return label_maps(self.rle(tau))

    def objects(self, tau: float | None = None) -> EditedObjects:
        """Objects of a level with their edits, and the version of these."""
        return EditedObjects.model_validate(self._client._get(self._objects_link(tau)).json())

    def edit(self, *operations: Operation, tau: float | None = None, version: int | None = None) -> EditedObjects:
        """Edit the objects of a level: `uvos.edits` has the operations. All later exports contain the edits.

        Args:
            operations: Applied together, or not at all.
            tau: Level; default: the first.
            version: Version that the objects must have. Default: any.

        Raises:
            RequestFailed: an object does not exist, or the objects have another version.
        """
        body = ObjectPatch(operations=list(operations)).model_dump(mode="json")
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        link = self._objects_link(tau)
        response = checked(self._client._http.patch(link, json=body, headers=headers))
        self._documents.clear()
        return EditedObjects.model_validate(response.json())

    def to_supervision(self, tau: float | None = None) -> "list[supervision.Detections]":
        """Objects of each frame as `supervision.Detections`: boxes, masks, names, and the object id as `tracker_id`.

        Raises:
            ImportError: the package `supervision` is not installed: `pip install 'uvos[supervision]'`.
        """
        return detections(self.rle(tau))

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
        return self._client.download(self._link(format, tau, **options), Path(out))

    def save(self, out: "str | os.PathLike[str]") -> list[Path]:
        """Save all files of the result in a folder and return their paths."""
        return list(self._client.download_all(self.job, Path(out)))
