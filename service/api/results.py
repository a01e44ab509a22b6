"""Results of a job: masks, RLE, overlay, manifest, and the formats rendered from the RLE."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

from service.api.dependencies import PublishedResult
from service.api.problems import problems
from service.export import coco, cvat, frames, label_studio, mots, yolo, youtube_vis
from service.export.archive import stream_archive
from uvos.contract import Manifest, RleDocument, RoundsDocument
from uvos.errors import InvalidParameters, JobNotFound, ResultNotFound, ResultNotReady

router = APIRouter(
    prefix="/jobs/{job_id}",
    tags=["results"],
    responses=problems(JobNotFound, InvalidParameters, ResultNotFound, ResultNotReady),
)

TauQuery = Annotated[
    float | None,
    Query(
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="Tau of the level. Default: the first level.",
        examples=[1.0],
    ),
]
IfNoneMatchHeader = Annotated[
    str | None,
    Header(alias="If-None-Match", description="ETag of the cached response.", examples=['"1f3870be274f6c49"']),
]
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}


PARTIAL: dict[int | str, dict[str, Any]] = {
    206: {"description": "The requested range."},
    416: {"description": "The requested range is not satisfiable."},
}


def document(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a JSON file."""
    return {200: {"description": "The document.", "model": model}, **PARTIAL}


def binary(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a binary file."""
    schema = {"type": "string", "format": "binary"}
    return {200: {"description": "The file.", "content": {media_type: {"schema": schema}}}, **PARTIAL}


def rendered(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a format that is rendered from the RLE."""
    return {
        200: {"description": f"{description}.", "content": {media_type: {}}},
        304: {"description": "The cached response is current."},
    }


@router.get("/manifest.json", response_class=FileResponse, responses=document(Manifest))
def manifest(result: PublishedResult) -> FileResponse:
    """Parameters, model, versions and objects of the result: everything needed to reproduce it."""
    return FileResponse(result.manifest_path, media_type="application/json", headers=IMMUTABLE)


@router.get("/rle.json", response_class=FileResponse, responses=document(RleDocument))
def rle(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """COCO RLE of every object in every frame."""
    return FileResponse(result.file(tau, "rle.json"), media_type="application/json", headers=IMMUTABLE)


@router.get("/rounds.json", response_class=FileResponse, responses=document(RoundsDocument))
def rounds(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """Clusters after the first round of Algorithm 1; the manifest lists the merges of the later rounds."""
    return FileResponse(result.file(tau, "rounds.json"), media_type="application/json", headers=IMMUTABLE)


@router.get("/masks.zip", response_class=FileResponse, responses=binary("application/zip"))
def masks_zip(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """All masks as palette PNGs in the DAVIS layout: `<video name>/00000.png …`."""
    return FileResponse(
        result.file(tau, "masks.zip"),
        media_type="application/zip",
        filename=f"{result.job.video_name}.zip",
        headers=IMMUTABLE,
    )


@router.get("/masks/{frame}.png", response_class=FileResponse, responses=binary("image/png"))
def mask(
    result: PublishedResult,
    frame: Annotated[int, Path(ge=0, le=10_000_000, description="Frame index, from 0.", examples=[0])],
    tau: TauQuery = None,
) -> FileResponse:
    """Mask of one frame: palette PNG, 0 is background."""
    return FileResponse(result.file(tau, f"masks/{frame:05d}.png"), media_type="image/png", headers=IMMUTABLE)


@router.get("/overlay.mp4", response_class=FileResponse, responses=binary("video/mp4"))
def overlay(result: PublishedResult, tau: TauQuery = None) -> FileResponse:
    """Video with coloured masks drawn over it (H.264)."""
    return FileResponse(result.file(tau, "overlay.mp4"), media_type="video/mp4", headers=IMMUTABLE)


@router.get("/source.mp4", response_class=FileResponse, responses=binary("video/mp4"))
def source(result: PublishedResult) -> FileResponse:
    """Video of exactly the segmented frames, at most 640 pixels on its longer side (H.264); it starts at 0 s."""
    return FileResponse(result.shared_file("source.mp4"), media_type="video/mp4", headers=IMMUTABLE)


@router.get("/thumbnail.jpg", response_class=FileResponse, responses=binary("image/jpeg"))
def thumbnail(result: PublishedResult) -> FileResponse:
    """The middle frame, at most 320 pixels on its longer side."""
    return FileResponse(result.shared_file("thumbnail.jpg"), media_type="image/jpeg", headers=IMMUTABLE)


@router.get("/frames.zip", response_class=Response, responses=rendered("application/zip", "Frames and masks"))
def frames_zip(result: PublishedResult, tau: TauQuery = None, if_none_match: IfNoneMatchHeader = None) -> Response:
    """Segmented frames as JPEG in the size of the video, with their masks as palette PNG: `JPEGImages/00000.jpg …`,
    `Annotations/00000.png …`."""
    images = result.images()
    return _render(
        result.tag(tau, "frames"),
        lambda: stream_archive(frames.entries(result.rle(tau), result.manifest_level(tau), images)),
        "application/zip",
        if_none_match,
    )


@router.get("/youtube-vis.json", response_class=Response, responses=rendered("application/json", "YouTube-VIS results"))
def youtube_vis_json(
    result: PublishedResult, tau: TauQuery = None, if_none_match: IfNoneMatchHeader = None
) -> Response:
    """YouTube-VIS results: one entry per object, one RLE or null per frame."""
    return _render(
        result.tag(tau, "youtube-vis"),
        lambda: youtube_vis.render(result.rle(tau), result.manifest_level(tau)),
        "application/json",
        if_none_match,
    )


@router.get("/coco.json", response_class=Response, responses=rendered("application/json", "COCO instances"))
def coco_json(result: PublishedResult, tau: TauQuery = None, if_none_match: IfNoneMatchHeader = None) -> Response:
    """COCO instances: one annotation per mask, with the object id as `track_id`."""
    return _render(
        result.tag(tau, "coco"),
        lambda: coco.render(result.rle(tau), result.manifest, result.manifest_level(tau)),
        "application/json",
        if_none_match,
    )


@router.get("/cvat.xml", response_class=Response, responses=rendered("application/xml", "CVAT for video 1.1"))
def cvat_xml(
    result: PublishedResult,
    tau: TauQuery = None,
    tracks: Annotated[
        cvat.Tracks,
        Query(description="What a track holds: one mask, all masks of an object, or all its outlines as polygons."),
    ] = cvat.Tracks.mask,
    if_none_match: IfNoneMatchHeader = None,
) -> Response:
    """CVAT for video 1.1: tracks of masks or polygons."""
    return _render(
        result.tag(tau, f"cvat-{tracks}"),
        lambda: cvat.render(result.rle(tau), result.manifest, tracks=tracks),
        "application/xml",
        if_none_match,
    )


@router.get("/cvat-images.xml", response_class=Response, responses=rendered("application/xml", "CVAT for images 1.1"))
def cvat_images_xml(
    result: PublishedResult,
    tau: TauQuery = None,
    shapes: Annotated[cvat.Shapes, Query(description="How a mask is written.")] = cvat.Shapes.mask,
    if_none_match: IfNoneMatchHeader = None,
) -> Response:
    """CVAT for images 1.1: the masks or polygons of each frame."""
    return _render(
        result.tag(tau, f"cvat-images-{shapes}"),
        lambda: cvat.render_images(result.rle(tau), result.manifest, shapes=shapes),
        "application/xml",
        if_none_match,
    )


@router.get("/labelstudio.json", response_class=Response, responses=rendered("application/json", "Label Studio tasks"))
def labelstudio_json(
    result: PublishedResult, tau: TauQuery = None, if_none_match: IfNoneMatchHeader = None
) -> Response:
    """Label Studio tasks: one per frame, with the masks as brush predictions."""
    return _render(
        result.tag(tau, "labelstudio"),
        lambda: label_studio.render(result.rle(tau), result.manifest, result.manifest_level(tau)),
        "application/json",
        if_none_match,
    )


@router.get("/yolo.zip", response_class=Response, responses=rendered("application/zip", "YOLO segmentation labels"))
def yolo_zip(result: PublishedResult, tau: TauQuery = None, if_none_match: IfNoneMatchHeader = None) -> Response:
    """YOLO segmentation labels: one text file per frame, one polygon per object."""
    return _render(
        result.tag(tau, "yolo"),
        lambda: yolo.render(result.rle(tau), result.manifest),
        "application/zip",
        if_none_match,
    )


@router.get("/mots.zip", response_class=Response, responses=rendered("application/zip", "MOTS PNGs"))
def mots_zip(result: PublishedResult, tau: TauQuery = None, if_none_match: IfNoneMatchHeader = None) -> Response:
    """MOTS: one 16-bit PNG per frame, 1000 * class + object id."""
    return _render(
        result.tag(tau, "mots"),
        lambda: mots.render(result.rle(tau), result.manifest),
        "application/zip",
        if_none_match,
    )


def _render(
    tag: str, render: Callable[[], str | bytes | Iterator[bytes]], media_type: str, if_none_match: str | None
) -> Response:
    headers = IMMUTABLE | {"ETag": tag}
    if if_none_match is not None and tag in (etag.strip().removeprefix("W/") for etag in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    content = render()
    if isinstance(content, str | bytes):
        return Response(content, media_type=media_type, headers=headers)
    return StreamingResponse(content, media_type=media_type, headers=headers)
