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

from service.frames import frame_files, video_file
from uvos.client import Client, RequestFailed, Result
from uvos.contract import VIDEO_SUFFIXES, JobView, Problem, Status
from uvos.options import in_options
from uvos.progress import CommandProgress

CONCURRENT = 4  # videos sent and followed at the same time


@dataclass(frozen=True)
class Outcome:
    """Outcome of one video, or of one folder of frames."""

    video: Path
    out: Path
    job: JobView | None = None
    objects: tuple[int, ...] = ()
    """Number of objects per level."""
    files: int = 0
    model: str = ""
    overlay: Path | None = None
    """Overlay video of the first level."""
    problem: Problem | None = None


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """Expand paths: files as given, folders to the videos in them, `.txt` files to the paths they list.

    A folder that holds images and no video is one video of these frames.

    Raises:
        ValueError: a path does not exist, or there are no videos.
    """
    videos: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in VIDEO_SUFFIXES)
            videos += found or ([path] if frame_files(path) else [])
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            videos += find_videos([path.parent / line for line in lines if line and not line.startswith("#")])
        elif path.is_file():
            videos.append(path)
        else:
            raise ValueError(f"no file or folder at {path}")
    if not videos:
        raise ValueError(f"no videos and no frames in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(videos))


def check_out(out: Path) -> None:
    """Raise ValueError if results cannot be saved in this folder."""
    for folder in (out, *out.parents):
        if folder.exists():
            if not folder.is_dir():
                raise ValueError(f"--out: {folder} is a file; name a folder")
            return


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
        batch = _Batch(client, params, progress, console)
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

    def __init__(self, client: Client, params: dict[str, Any], progress: CommandProgress, console: Console) -> None:
        self._client = client
        self._params = params
        self._progress = progress
        self._console = console
        self._has_warned = False
        self._active: dict[Path, JobView] = {}

    def segment(self, video: Path, out: Path) -> Outcome:
        """Segment one video and save its result in `out`.

        Raises:
            httpx.ConnectError: there is no service; the same for all videos.
        """
        self._show(video, "sending")
        job: JobView | None = None
        try:
            with video_file(video) as file:
                job = self._active[video] = self._client.submit(file, **self._params)
            self._follow(video, job)
            job = self._client.wait(job, on_change=lambda job: self._follow(video, job))
            result = self._client.result(job)
            self._show(video, "saving", 1.0)
            files = result.save(out)
            overlay = self._save_overlay(result, out)
            self._show(video, "done", 1.0)
            return Outcome(
                video,
                out,
                job,
                objects=tuple(len(level.objects) for level in result.manifest.levels),
                files=len(files) + (overlay is not None and overlay not in files),
                model=result.manifest.model.name,
                overlay=overlay,
            )
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

    def _follow(self, video: Path, job: JobView) -> None:
        if job.waiting_for_worker and not self._has_warned:
            self._has_warned = True
            self._console.print(
                "no worker is running, so the jobs wait: start one with `uvos-worker run`, or the whole service with "
                "`uvos up`",
                highlight=False,
            )
        self._show(video, describe(job), job.fraction)

    def _save_overlay(self, result: Result, out: Path) -> Path | None:
        """Save the overlay of the first level; None if the job has no frames to draw it on."""
        path = out / "levels" / f"{result.taus[0]:g}" / "overlay.mp4"
        try:
            return path if path.exists() else result.export("overlay", path)
        except RequestFailed as error:
            self._console.print(f"no overlay: {escape(error.problem.detail)}", highlight=False)
            return None

    def cancel(self) -> None:
        """Cancel the unfinished jobs, which also ends the threads that follow them."""
        for job in list(self._active.values()):
            self._client.cancel(job)

    def _show(self, video: Path, state: str, fraction: float = 0.0) -> None:
        self._progress.update(str(video), fraction, 1.0, detail=state)


def describe(job: JobView) -> str:
    """State of a job in a few words."""
    if job.waiting_for_worker:
        state = "waiting for a worker"
    elif job.status == Status.queued:
        state = f"queued, {job.position} ahead" if job.position else "queued"
    elif job.stage is None:
        return job.status.value
    else:
        frames = f" {job.frames_done}/{job.frames_total}" if job.frames_total else ""
        state = f"{job.stage.value}{frames}"
    return f"{state}, about {job.eta_s.median:.0f} s left" if job.eta_s else state


def print_table(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print one row per video, and below the table the reason of each failure."""
    table = Table(box=None, header_style="bold")
    for name in ("video", "status", "frames", "objects", "model", "seconds", "result"):
        justify: Literal["left", "right"] = "right" if name in ("frames", "objects", "seconds") else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for outcome in outcomes:
        job, video = outcome.job, escape(outcome.video.name)
        if outcome.problem is not None:
            table.add_row(video, "[red]failed[/]", "", "", "", "", escape(outcome.problem.title))
        elif job is not None and job.started_at is not None and job.ended_at is not None:
            seconds = f"{(job.ended_at - job.started_at).total_seconds():.1f}"
            objects = ", ".join(map(str, outcome.objects))
            frames = str(job.frames_total)
            folder = escape(str(outcome.out))
            table.add_row(video, "[green]done[/]", frames, objects, outcome.model, seconds, folder)
    console.print(table)
    for outcome in outcomes:
        if outcome.problem is not None:
            console.print(f"{escape(outcome.video.name)}: {escape(in_options(outcome.problem))}", soft_wrap=True)
