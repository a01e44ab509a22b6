"""The service from Python, over HTTP alone."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from service.contract import JobPage, JobView, Problem, Status

CONNECT_TIMEOUT_S = 5.0
POLL_S = 0.25


class RequestFailed(Exception):
    """The service said no: its problem, as it told it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class Client:
    """A service at `url`."""

    def __init__(self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=httpx.Timeout(60, connect=CONNECT_TIMEOUT_S), trust_env=False
        )

    def is_ready(self) -> bool:
        """Whether a job would be accepted now, and a worker has a model in memory to work on it."""
        response = self._http.get("/readyz")
        return response.status_code == 200 and any(worker["models"] for worker in response.json()["workers"])

    def submit(self, video: Path, **params: Any) -> JobView:
        """Send a video; the job that was accepted. Parameters are those of POST /segment, lists repeat a field."""
        fields: Mapping[str, Any] = {
            name: [str(one) for one in value] if isinstance(value, list | tuple) else str(value)
            for name, value in params.items()
            if value is not None
        }
        with video.open("rb") as file:
            response = self._http.post("/segment", data=fields, files={"video": (video.name, file)})
        return JobView.model_validate(_checked(response).json())

    def job(self, job_id: str) -> JobView:
        return JobView.model_validate(_checked(self._http.get(f"/jobs/{job_id}")).json())

    def jobs(self, status: Status | None = None) -> Iterator[JobView]:
        """One's jobs, newest first, fetched a page at a time."""
        cursor: str | None = None
        while True:
            asked = {"cursor": cursor, "status": status.value if status else None}
            response = self._http.get("/jobs", params={name: value for name, value in asked.items() if value})
            page = JobPage.model_validate(_checked(response).json())
            yield from page.jobs
            if page.next is None:
                return
            cursor = page.next

    def wait(self, job: JobView, *, on_change: Callable[[JobView], None] | None = None) -> JobView:
        """Poll until the job has ended."""
        while not job.status.is_terminal:
            time.sleep(POLL_S)
            job = self.job(job.id)
            if on_change is not None:
                on_change(job)
        return job

    def cancel(self, job: JobView) -> JobView:
        return JobView.model_validate(_checked(self._http.post(job.links.cancel)).json())

    def download(self, link: str, path: Path) -> Path:
        """Save what a link of a job leads to."""
        with self._http.stream("GET", link) as response:
            if response.is_error:
                response.read()
            _checked(response)
            with path.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
        return path

    def download_all(self, job: JobView, out: Path) -> Iterator[Path]:
        """Save everything a job that succeeded has: the manifest, and for each level what it was asked for."""
        assert job.status == Status.succeeded
        assert job.links.manifest is not None
        out.mkdir(parents=True, exist_ok=True)
        yield self.download(job.links.manifest, out / "manifest.json")
        for level in job.links.levels:
            folder = out / "levels" / f"{level.tau:g}"
            folder.mkdir(parents=True, exist_ok=True)
            names = {"rle.json": level.rle, "masks.zip": level.masks_zip, "overlay.mp4": level.overlay}
            for name, link in names.items():
                if link is not None:
                    yield self.download(link, folder / name)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


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
