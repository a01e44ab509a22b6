"""Send videos, show where each of them is, save what comes back, and sum up: `uvos segment`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from uvos.client import Client, RequestFailed
from uvos.contract import VIDEO_SUFFIXES, JobView, Problem, Status

AT_ONCE = 4  # videos sent and followed at the same time; the queue puts them in order


@dataclass(frozen=True)
class Outcome:
    """What became of one video."""

    video: Path
    out: Path
    job: JobView | None = None
    objects: tuple[int, ...] = ()
    """At each level."""
    files: int = 0
    problem: Problem | None = None


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders for the videos in them, `.txt` files for the paths in their lines.

    Raises:
        ValueError: a path leads nowhere, or there is no video at all.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(
                each for each in path.rglob("*") if each.is_file() and each.suffix.lower() in VIDEO_SUFFIXES
            )
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            found += find_videos([path.parent / line for line in lines if line and not line.startswith("#")])
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"there is no file or folder {path}")
    if not found:
        raise ValueError(f"no videos in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(found))


def out_folders(videos: Sequence[Path], out: Path) -> list[Path]:
    """Where each result goes: `out` itself for a single one, else a folder by the video's name in it."""
    if len(videos) == 1:
        return [out]
    names: dict[str, int] = {}
    folders = []
    for video in videos:
        count = names[video.stem] = names.get(video.stem, 0) + 1
        folders.append(out / (video.stem if count == 1 else f"{video.stem}-{count}"))
    return folders


def run(client: Client, videos: Sequence[Path], out: Path, params: dict[str, Any], console: Console) -> list[Outcome]:
    """Segment videos, a bar for each; Ctrl-C cancels those that have not ended."""
    active: dict[Path, JobView] = {}
    with _bars(console) as bars, ThreadPoolExecutor(AT_ONCE) as pool:
        tasks = [bars.add_task(f"{video.name}: waits", total=1.0, visible=len(videos) == 1) for video in videos]
        waiting = [
            pool.submit(_one, client, video, folder, params, bars, task, active)
            for video, folder, task in zip(videos, out_folders(videos, out), tasks, strict=True)
        ]
        try:
            return [each.result() for each in waiting]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for job in list(active.values()):
                client.cancel(job)  # whoever follows it is told of its end
            raise


def _one(
    client: Client,
    video: Path,
    out: Path,
    params: dict[str, Any],
    bars: Progress,
    task: TaskID,
    active: dict[Path, JobView],
) -> Outcome:
    def show(job: JobView) -> None:
        bars.update(task, completed=job.fraction, description=f"{video.name}: {describe(job)}")

    bars.update(task, description=f"{video.name}: sending", visible=True)
    job: JobView | None = None
    try:
        job = active[video] = client.submit(video, **params)
        result = client.result(client.wait(job, on_change=show))
        bars.update(task, completed=1.0, description=f"{video.name}: saving")
        files = result.save(out)
        bars.update(task, description=f"{video.name}: done")
        objects = tuple(len(level.objects) for level in result.manifest.levels)
        return Outcome(video, out, result.job, objects, len(files))
    except RequestFailed as error:
        bars.update(task, description=f"{video.name}: failed")
        return Outcome(video, out, job, problem=error.problem)
    except httpx.ConnectError:
        raise  # nobody is there: one sentence for all videos
    except (httpx.HTTPError, OSError) as error:
        return Outcome(video, out, job, problem=_problem("Broken off", str(error)))
    finally:
        active.pop(video, None)


def describe(job: JobView) -> str:
    """Where a job is, in a few words."""
    if job.status == Status.queued:
        words = f"queued, {job.position} before it" if job.position else "queued"
    elif job.stage is None:
        return job.status.value
    else:
        frames = f" {job.frames_done}/{job.frames_total}" if job.frames_total else ""
        words = f"{job.stage.value}{frames}"
    return f"{words}, {job.eta_s.low:.0f}–{job.eta_s.high:.0f} s left" if job.eta_s else words


def table(outcomes: Sequence[Outcome]) -> Table:
    """One row a video."""
    found = Table(box=None, header_style="bold")
    for name in ("video", "status", "frames", "objects", "seconds", "result"):
        found.add_column(name, justify="right" if name in ("frames", "objects", "seconds") else "left")
    for each in outcomes:
        job = each.job
        if each.problem is not None:
            found.add_row(each.video.name, "[red]failed[/]", "", "", "", f"{each.problem.title}: {each.problem.detail}")
        elif job is not None and job.started_at is not None and job.ended_at is not None:
            seconds = (job.ended_at - job.started_at).total_seconds()
            objects = ", ".join(map(str, each.objects))
            found.add_row(
                each.video.name, "[green]done[/]", str(job.frames_total), objects, f"{seconds:.1f}", str(each.out)
            )
    return found


def _bars(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description:<44}"), BarColumn(), TimeElapsedColumn(), console=console
    )


def _problem(title: str, detail: str) -> Problem:
    return Problem(type="about:blank", title=title, status=0, detail=detail)
