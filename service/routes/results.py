"""What a job made: masks, run lengths, overlay, manifest, and the text formats made from the run lengths."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import FileResponse

from service.dependencies import PublishedResult
from service.errors import InvalidParameters, JobNotFound, ResultNotFound, ResultNotReady
from service.problems import problems

router = APIRouter(
    prefix="/jobs/{job_id}",
    tags=["results"],
    responses=problems(JobNotFound, InvalidParameters, ResultNotFound, ResultNotReady),
)

TauQuery = Annotated[
    float | None,
    Query(gt=0, le=1000, allow_inf_nan=False, description="Which level; default: the first.", examples=[1.0]),
]
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}


@router.get("/manifest.json", response_class=FileResponse)
def manifest(result: PublishedResult) -> FileResponse:
    """What was done, with what, and what came out: enough to do it again."""
    return FileResponse(result.manifest_path, media_type="application/json", headers=IMMUTABLE)


@router.get("/rle.json", response_class=FileResponse)
def rle(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """COCO run lengths of every object in every frame."""
    return FileResponse(result.file(tau, "rle.json"), media_type="application/json", headers=IMMUTABLE)


@router.get("/masks.zip", response_class=FileResponse)
def masks_zip(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """All masks as palette PNGs in the layout of DAVIS: `<video name>/00000.png …`."""
    return FileResponse(
        result.file(tau, "masks.zip"),
        media_type="application/zip",
        filename=f"{result.job.video_name}.zip",
        headers=IMMUTABLE,
    )


@router.get("/masks/{frame}.png", response_class=FileResponse)
def mask(
    result: PublishedResult,
    frame: Annotated[int, Path(ge=0, le=10_000_000, description="Index of the frame, from 0.")],
    tau: TauQuery = None,
) -> FileResponse:
    """The mask of one frame: palette PNG, 0 is background."""
    return FileResponse(result.file(tau, f"masks/{frame:05d}.png"), media_type="image/png", headers=IMMUTABLE)


@router.get("/overlay.mp4", response_class=FileResponse)
def overlay(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """The video with coloured masks over it (H.264)."""
    return FileResponse(result.file(tau, "overlay.mp4"), media_type="video/mp4", headers=IMMUTABLE)
