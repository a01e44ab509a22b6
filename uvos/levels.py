"""Levels and formats of a result by name, and conversions of its masks."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
import numpy as np
from numpy.typing import NDArray

from uvos import rle
from uvos.contract import Format, JobView, LevelLinks, Problem, RleDocument, Status
from uvos.transport import RequestFailed

if TYPE_CHECKING:
    import supervision

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


def succeeded(job: JobView) -> JobView:
    """The job, unless it has no result.

    Raises:
        RequestFailed: the job did not succeed.
    """
    if job.error is not None:
        raise RequestFailed(job.error)
    if job.status != Status.succeeded:
        detail = f"job {job.id} is {job.status.value} and has no result"
        raise RequestFailed(Problem(type="about:blank", title="No result", status=409, detail=detail))
    return job


class Levels:
    """The levels of a job that has succeeded."""

    def __init__(self, job: JobView) -> None:
        self.job = succeeded(job)

    @property
    def taus(self) -> list[float]:
        """Tau of each level."""
        return [level.tau for level in self.job.links.levels]

    def file_name(self, format: ExportFormat, tau: float | None = None) -> str:
        """Name of the file of a format: "coco.json"."""
        return httpx.URL(self._link(format, tau)).path.rpartition("/")[2]

    def _link(self, format: ExportFormat, tau: float | None, **options: str) -> str:
        """Link of a format.

        Raises:
            ValueError: the job has no such level or format.
        """
        link: str | None = getattr(self._level(tau), format)
        if link is None:
            raise ValueError(
                f"this job has no {format}; request it with the parameter `format` when you submit a video"
            )
        return str(httpx.URL(link).copy_merge_params(options)) if options else link

    def _level(self, tau: float | None) -> LevelLinks:
        levels = self.job.links.levels
        for level in levels:
            if tau is None or f"{level.tau:g}" == f"{tau:g}":
                return level
        raise ValueError(f"tau must be one of the levels {self.taus} of this job, got {tau:g}")

    def _objects_link(self, tau: float | None) -> str:
        link = self._level(tau).objects
        assert link is not None
        return link

    def _stored_files(self) -> list[tuple[str, Path]]:
        """Link and relative path of the manifest and of the requested formats of every level."""
        assert self.job.links.manifest is not None
        files = [(self.job.links.manifest, Path("manifest.json"))]
        for level in self.job.links.levels:
            links = {"rle.json": level.rle, "masks.zip": level.masks_zip, "frames.zip": level.frames}
            if Format.overlay in self.job.params.format:
                links["overlay.mp4"] = level.overlay
            folder = Path("levels") / f"{level.tau:g}"
            files += [(link, folder / name) for name, link in links.items() if link is not None]
        return files


def label_maps(document: RleDocument) -> NDArray[np.uint16]:
    """Label maps of a level, shape (T, H, W): object ids, constant over time, 0 for background."""
    return np.stack([rle.label_map(frame, document.size) for frame in document.frames])


def detections(document: RleDocument) -> "list[supervision.Detections]":
    """Objects of each frame as `supervision.Detections`: boxes, masks, names, and the object id as `tracker_id`.

    Raises:
        ImportError: the package `supervision` is not installed.
    """
    import supervision

    frames = []
    for frame in document.frames:
        if not frame.objects:
            frames.append(supervision.Detections.empty())
            continue
        masks = np.stack([rle.mask(item.rle) for item in frame.objects])
        names = [document.names.get(item.id, "object") for item in frame.objects]
        frames.append(
            supervision.Detections(
                xyxy=supervision.mask_to_xyxy(masks).astype(np.float32),
                mask=masks,
                class_id=np.zeros(len(masks), int),
                tracker_id=np.array([item.id for item in frame.objects]),
                data={"class_name": np.array(names)},
            )
        )
    return frames
