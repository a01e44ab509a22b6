"""What a job made: masks, run lengths, overlay, manifest, and the text formats made from the run lengths."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from service.api.dependencies import PublishedResult
from service.api.problems import problems
from service.export import cvat, youtube_vis
from uvos.contract import Manifest, RleDocument, RoundsDocument
from uvos.errors import InvalidParameters, JobNotFound, ResultNotFound, ResultNotReady

router = APIRouter(
    prefix="/jobs/{job_id}",
    tags=["results"],
    responses=problems(JobNotFound, InvalidParameters, ResultNotFound, ResultNotReady),
)

TauQuery = Annotated[
    float | None,
    Query(gt=0, le=1000, allow_inf_nan=False, description="Which level; default: the first.", examples=[1.0]),
]
IfNoneMatchHeader = Annotated[
    str | None,
    Header(alias="If-None-Match", description="ETag of what the client has.", examples=['"1f3870be274f6c49"']),
]
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}


PARTIAL: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that `Range` asked for."},
    416: {"description": "`Range` asks for what is not there."},
}


def document(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a JSON file."""
    return {200: {"description": "The document.", "model": model}, **PARTIAL}


def binary(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a file of bytes."""
    schema = {"type": "string", "format": "binary"}
    return {200: {"description": "The file.", "content": {media_type: {"schema": schema}}}, **PARTIAL}


def made(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a format that is made from the run lengths."""
    return {
        200: {"description": f"{description}.", "content": {media_type: {}}},
        304: {"description": "The client has it already."},
    }


@router.get("/manifest.json", response_class=FileResponse, responses=document(Manifest))
def manifest(result: PublishedResult) -> FileResponse:
    """What was done, with what, and what came out: enough to do it again."""
    return FileResponse(result.manifest_path, media_type="application/json", headers=IMMUTABLE)


@router.get("/rle.json", response_class=FileResponse, responses=document(RleDocument))
def rle(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """COCO run lengths of every object in every frame."""
    return FileResponse(result.file(tau, "rle.json"), media_type="application/json", headers=IMMUTABLE)


@router.get("/rounds.json", response_class=FileResponse, responses=document(RoundsDocument))
def rounds(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """The groups of patches after the first round of the clustering; the manifest tells how they merged."""
    return FileResponse(result.file(tau, "rounds.json"), media_type="application/json", headers=IMMUTABLE)


@router.get("/masks.zip", response_class=FileResponse, responses=binary("application/zip"))
def masks_zip(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """All masks as palette PNGs in the layout of DAVIS: `<video name>/00000.png …`."""
    return FileResponse(
        result.file(tau, "masks.zip"),
        media_type="application/zip",
        filename=f"{result.job.video_name}.zip",
        headers=IMMUTABLE,
    )


@router.get("/masks/{frame}.png", response_class=FileResponse, responses=binary("image/png"))
def mask(
    result: PublishedResult,
    frame: Annotated[int, Path(ge=0, le=10_000_000, description="Index of the frame, from 0.", examples=[0])],
    tau: TauQuery = None,
) -> FileResponse:
    """The mask of one frame: palette PNG, 0 is background."""
    return FileResponse(result.file(tau, f"masks/{frame:05d}.png"), media_type="image/png", headers=IMMUTABLE)


@router.get("/overlay.mp4", response_class=FileResponse, responses=binary("video/mp4"))
def overlay(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """The video with coloured masks over it (H.264)."""
    return FileResponse(result.file(tau, "overlay.mp4"), media_type="video/mp4", headers=IMMUTABLE)


@router.get("/youtube-vis.json", response_class=Response, responses=made("application/json", "YouTube-VIS results"))
def youtube_vis_json(
    result: PublishedResult, tau: TauQuery = None, if_none_match: IfNoneMatchHeader = None
) -> Response:
    """The objects as YouTube-VIS results: one entry an object, one run length or null a frame."""
    return _make(
        result.tag(tau, "youtube-vis"),
        lambda: youtube_vis.render(result.rle(tau), result.manifest_level(tau)),
        "application/json",
        if_none_match,
    )


@router.get("/cvat.xml", response_class=Response, responses=made("application/xml", "CVAT for video 1.1"))
def cvat_xml(
    result: PublishedResult,
    tau: TauQuery = None,
    tracks: Annotated[
        cvat.Tracks,
        Query(description="What a track is: an object, as the format means it; or a mask, all that CVAT imports."),
    ] = cvat.Tracks.object,
    if_none_match: IfNoneMatchHeader = None,
) -> Response:
    """The objects as CVAT for video 1.1: tracks of masks, run lengths row by row inside their box."""
    return _make(
        result.tag(tau, f"cvat-{tracks.value}"),
        lambda: cvat.render(result.rle(tau), result.manifest, tracks=tracks),
        "application/xml",
        if_none_match,
    )


def _make(tag: str, render: Callable[[], str], media_type: str, if_none_match: str | None) -> Response:
    headers = IMMUTABLE | {"ETag": tag}
    if if_none_match is not None and tag in (one.strip().removeprefix("W/") for one in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(render(), media_type=media_type, headers=headers)
