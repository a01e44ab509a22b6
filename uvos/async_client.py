"""Python client of the service for asyncio, with the methods of `uvos.client.Client`.

async with AsyncClient("http://127.0.0.1:8000") as client:
    result = await client.segment("clip.mp4", tau=1.0)
    masks = await result.masks()
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
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


class AsyncClient:
    """Client of the service at `url`; retries as `Client` does."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, retry_for_s: float = RETRY_FOR_S
    ) -> None:
        self._retry_for_s = retry_for_s
        self._has_responded = False
        self._http = httpx.AsyncClient(
            base_url=base_url(url), headers=authorization(api_key), timeout=TIMEOUT, trust_env=False
        )

    async def is_ready(self) -> bool:
        """Whether the service accepts jobs and a worker has loaded a model."""
        response = await self._http.get("/readyz")
        return response.status_code == 200 and any(worker["models"] for worker in response.json()["workers"])

    async def segment(
        self,
        video: VideoSource,
        *,
        name: str | None = None,
        on_change: Callable[[JobView], None] | None = None,
        **options: Unpack[SegmentOptions],
    ) -> "AsyncResult":
        """Send a video, wait for the job, and return its result, as `Client.segment`."""
        return self.result(await self.wait(await self.submit(video, name=name, **options), on_change=on_change))

    def result(self, job: JobView) -> "AsyncResult":
        """Result of a job that has ended.

        Raises:
            RequestFailed: the job did not succeed.
        """
        return AsyncResult(self, succeeded(job))

    # --- jobs

    async def submit(
        self,
        video: VideoSource,
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
        **options: Unpack[SegmentOptions],
    ) -> JobView:
        """Send a video and return the accepted job, as `Client.submit`."""
        upload, fields = Upload(video, name), form(options)
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}

        async def post() -> httpx.Response:
            with upload.content() as content:
                return await self._http.post(
                    "/segment", data=fields, files={"video": (upload.name, content)}, headers=headers
                )

        return JobView.model_validate((await self._try(post)).json())

    async def job(self, job_id: str) -> JobView:
        """Current state of a job."""
        return JobView.model_validate((await self._get(f"/jobs/{job_id}")).json())

    async def jobs(self, status: Status | None = None, *, tag: str | None = None) -> AsyncIterator[JobView]:
        """The caller's jobs, newest first, fetched page by page."""
        cursor: str | None = None
        while True:
            query = {"cursor": cursor, "status": status.value if status else None, "tag": tag}
            response = await self._get("/jobs", params={name: value for name, value in query.items() if value})
            page = JobPage.model_validate(response.json())
            for job in page.jobs:
                yield job
            if page.next is None:
                return
            cursor = page.next

    async def wait(self, job: JobView, *, on_change: Callable[[JobView], None] | None = None) -> JobView:
        """Follow the events of a job until it has ended, as `Client.wait`."""
        last: str | None = None
        retry = Retry(self._retry_for_s, has_responded=True)
        while not job.status.is_terminal:
            try:
                async for event, job in self._events(job.links.events, last):  # noqa: B020  # the latest state
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
            await asyncio.sleep(pause_s)
        return job

    async def cancel(self, job: JobView) -> JobView:
        """Cancel a queued or running job."""
        response = await self._try(lambda: self._http.post(job.links.cancel))
        return JobView.model_validate(response.json())

    async def delete(self, job: JobView) -> None:
        """Delete a job with its video and results."""
        await self._try(lambda: self._http.delete(job.links.self))

    async def download(self, link: str, path: Path) -> Path:
        """Save the file behind a link of a job, as `Client.download`."""
        part = PartFile(path)
        retry = Retry(self._retry_for_s, has_responded=True)
        while True:
            try:
                async with self._http.stream("GET", link, headers=part.headers()) as response:
                    if response.is_error:
                        await response.aread()
                    pause_s = retry.after_response(response)
                    if pause_s is None:
                        checked(response)
                        with part.open(response) as file:
                            async for chunk in response.aiter_bytes():
                                file.write(chunk)
                        return part.complete()
            except httpx.TransportError as error:
                pause_s = retry.after_error(error)
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # --- HTTP

    async def _get(self, link: str, **options: Any) -> httpx.Response:
        return await self._try(lambda: self._http.get(link, **options))

    async def _try(self, request: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Send a request and retry transient failures."""
        retry = Retry(self._retry_for_s, has_responded=self._has_responded)
        while True:
            try:
                response = await request()
                self._has_responded = True
                pause_s = retry.after_response(response)
                if pause_s is None:
                    return checked(response)
            except httpx.TransportError as error:
                pause_s = retry.after_error(error)
            await asyncio.sleep(pause_s)

    async def _events(self, link: str, last: str | None) -> AsyncIterator[tuple[str | None, JobView]]:
        """Server-sent events after the id `last`, as pairs of id and job."""
        async with self._http.stream("GET", link, headers=event_headers(last), timeout=EVENT_TIMEOUT) as response:
            if response.is_error:
                await response.aread()
            checked(response)
            lines = EventLines()
            async for line in response.aiter_lines():
                event = lines.feed(line)
                if event is not None:
                    yield event


class AsyncResult(Levels):
    """Result of a job, with the methods of `uvos.client.Result`."""

    def __init__(self, client: AsyncClient, job: JobView) -> None:
        super().__init__(job)
        self._client = client
        self._documents: dict[str, RleDocument] = {}

    async def manifest(self) -> Manifest:
        """Manifest of the result."""
        assert self.job.links.manifest is not None
        return Manifest.model_validate_json((await self._client._get(self.job.links.manifest)).content)

    async def rle(self, tau: float | None = None) -> RleDocument:
        """COCO RLE of a level, with the edits of its objects; default: the first level."""
        link = self._link("rle", tau)
        if link not in self._documents:
            self._documents[link] = RleDocument.model_validate_json((await self._client._get(link)).content)
        return self._documents[link]

    async def masks(self, tau: float | None = None) -> NDArray[np.uint16]:
        """Label maps of a level, shape (T, H, W): object ids, constant over time, 0 for background."""
        return label_maps(await self.rle(tau))

    async def objects(self, tau: float | None = None) -> EditedObjects:
        """Objects of a level with their edits, and the version of these."""
        return EditedObjects.model_validate((await self._client._get(self._objects_link(tau))).json())

    async def edit(self, *operations: Operation, tau: float | None = None, version: int | None = None) -> EditedObjects:
        """Edit the objects of a level, as `Result.edit`."""
        body = ObjectPatch(operations=list(operations)).model_dump(mode="json")
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        response = checked(await self._client._http.patch(self._objects_link(tau), json=body, headers=headers))
        self._documents.clear()
        return EditedObjects.model_validate(response.json())

    async def to_supervision(self, tau: float | None = None) -> "list[supervision.Detections]":
        """Objects of each frame as `supervision.Detections`, as `Result.to_supervision`."""
        return detections(await self.rle(tau))

    async def to_coco(self, tau: float | None = None) -> dict[str, Any]:
        """A COCO data set, as `Result.to_coco`."""
        dataset: dict[str, Any] = (await self._client._get(self._link("coco", tau))).json()
        return dataset

    async def export(
        self, format: ExportFormat, out: "str | os.PathLike[str]", *, tau: float | None = None, **options: str
    ) -> Path:
        """Save one format of a level as a file and return its path, as `Result.export`."""
        return await self._client.download(self._link(format, tau, **options), Path(out))

    async def save(self, out: "str | os.PathLike[str]") -> list[Path]:
        """Save all files of the result in a folder and return their paths."""
        paths = []
        for link, name in self._stored_files():
            path = Path(out) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            paths.append(await self._client.download(link, path))
        return paths
