"""`uvos segment`: send videos, show their progress, save their results, print a summary."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from uvos.client import Client, RequestFailed
from uvos.contract import VIDEO_SUFFIXES, JobView, Problem, Status
from uvos.progress import CommandProgress

CONCURRENT = 4  # videos sent and followed at the same time


@dataclass(frozen=True)
class Outcome:
    """Outcome of one video."""

    video: Path
    out: Path
    job: JobView | None = None
    objects: tuple[int, ...] = ()
    """Number of objects per level."""
    files: int = 0
    problem: Problem | None = None


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """Expand paths: files as given, folders to the videos in them, `.txt` files to the paths they list.

    Raises:
        ValueError: a path does not exist, or there are no videos.
    """
    videos: list[Path] = []
    for path in paths:
        if path.is_dir():
            videos += sorted(
                file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in VIDEO_SUFFIXES
            )
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            videos += find_videos([path.parent / line for line in lines if line and not line.startswith("#")])
        elif path.is_file():
            videos.append(path)
        else:
            raise ValueError(f"no file or folder at {path}")
    if not videos:
        raise ValueError(f"no videos in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(videos))


def out_folders(videos: Sequence[Path], out: Path) -> list[Path]:
    """Output folder of each video: `out` for a single video, otherwise a subfolder named after the video."""
    if len(videos) == 1:
        return [out]
    names: dict[str, int] = {}
    folders = []
    for video in videos:
        count = names[video.stem] = names.get(video.stem, 0) + 1
        folders.append(out / (video.stem if count == 1 else f"{video.stem}-{count}"))
    return folders


def run(client: Client, videos: Sequence[Path], out: Path, params: dict[str, Any], console: Console) -> list[Outcome]:
    """Segment videos and show their progress; on KeyboardInterrupt, cancel the unfinished jobs."""
    with CommandProgress(console=console) as progress, ThreadPoolExecutor(CONCURRENT) as pool:
        batch = _Batch(client, params, progress)
        outcomes = [
            pool.submit(batch.segment, video, folder)
            for video, folder in zip(videos, out_folders(videos, out), strict=True)
        ]
        try:
            return [outcome.result() for outcome in outcomes]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            batch.cancel()
            raise


class _Batch:
    """Videos that share a client, parameters and a progress display."""

    def __init__(self, client: Client, params: dict[str, Any], progress: CommandProgress) -> None:
        self._client = client
        self._params = params
        self._progress = progress
        self._active: dict[Path, JobView] = {}

    def segment(self, video: Path, out: Path) -> Outcome:
        """Segment one video and save its result in `out`.

        Raises:
            httpx.ConnectError: there is no service; the same for all videos.
        """
        self._show(video, "sending")
        job: JobView | None = None
        try:
            job = self._active[video] = self._client.submit(video, **self._params)
            job = self._client.wait(job, on_change=lambda job: self._show(video, describe(job), job.fraction))
            result = self._client.result(job)
            self._show(video, "saving", 1.0)
            files = result.save(out)
            self._show(video, "done", 1.0)
            return Outcome(video, out, job, tuple(len(level.objects) for level in result.manifest.levels), len(files))
        except RequestFailed as error:
            self._show(video, "failed")
            return Outcome(video, out, job, problem=error.problem)
        except httpx.ConnectError:
            raise
        except (httpx.HTTPError, OSError) as error:
            problem = Problem(type="about:blank", title="Connection failed", status=0, detail=str(error))
            return Outcome(video, out, job, problem=problem)
        finally:
            self._active.pop(video, None)

    def cancel(self) -> None:
        """Cancel the unfinished jobs, which also ends the threads that follow them."""
        for job in list(self._active.values()):
            self._client.cancel(job)

    def _show(self, video: Path, state: str, fraction: float = 0.0) -> None:
        self._progress.update(str(video), fraction, 1.0, detail=state)


def describe(job: JobView) -> str:
    """State of a job in a few words."""
    if job.status == Status.queued:
        state = f"queued, {job.position} ahead" if job.position else "queued"
    elif job.stage is None:
        return job.status.value
    else:
        frames = f" {job.frames_done}/{job.frames_total}" if job.frames_total else ""
        state = f"{job.stage.value}{frames}"
    return f"{state}, {job.eta_s.low:.0f}–{job.eta_s.high:.0f} s left" if job.eta_s else state


def print_table(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print one row per video, and below the table the reason of each failure."""
    table = Table(box=None, header_style="bold")
    for name in ("video", "status", "frames", "objects", "seconds", "result"):
        justify: Literal["left", "right"] = "right" if name in ("frames", "objects", "seconds") else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for outcome in outcomes:
        job, video = outcome.job, escape(outcome.video.name)
        if outcome.problem is not None:
            table.add_row(video, "[red]failed[/]", "", "", "", escape(outcome.problem.title))
        elif job is not None and job.started_at is not None and job.ended_at is not None:
            seconds = f"{(job.ended_at - job.started_at).total_seconds():.1f}"
            objects = ", ".join(map(str, outcome.objects))
            table.add_row(video, "[green]done[/]", str(job.frames_total), objects, seconds, escape(str(outcome.out)))
    console.print(table)
    for outcome in outcomes:
        if outcome.problem is not None:
            console.print(f"{escape(outcome.video.name)}: {escape(outcome.problem.detail)}", soft_wrap=True)
