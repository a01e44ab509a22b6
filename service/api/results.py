"""Results of a job: masks, RLE, overlay, manifest, and the formats rendered from the RLE."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

from service.api.dependencies import LatestLevel, PublishedLevel, PublishedResult
from service.api.problems import problems
from service.export import coco, cvat, label_studio, mots, png, yolo, youtube_vis
from service.export.archive import stream_archive
from service.jobs.results import ResultLevel
from uvos.contract import Manifest, RleDocument, RoundsDocument
from uvos.errors import InvalidParameters, JobNotFound, ResultNotFound, ResultNotReady

router = APIRouter(
    prefix="/jobs/{job_id}",
    tags=["results"],
    responses=problems(JobNotFound, InvalidParameters, ResultNotFound, ResultNotReady),
)

IfNoneMatchHeader = Annotated[
    str | None,
    Header(alias="If-None-Match", description="ETag of the cached response.", examples=['"1f3870be274f6c49"']),
]
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
REVALIDATED = {"Cache-Control": "private, no-cache"}  # a response that edits of the objects change


PARTIAL: dict[int | str, dict[str, Any]] = {
    206: {"description": "The requested range."},
    416: {"description": "The requested range is not satisfiable."},
}


CURRENT: dict[int | str, dict[str, Any]] = {304: {"description": "The cached response is current."}}


def document(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a JSON file."""
    return {200: {"description": "The document.", "model": model}, **PARTIAL}


def binary(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a binary file."""
    schema = {"type": "string", "format": "binary"}
    return {200: {"description": "The file.", "content": {media_type: {"schema": schema}}}, **PARTIAL}


def rendered(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a format that is rendered from the RLE."""
    return {200: {"description": f"{description}.", "content": {media_type: {}}}, **CURRENT}


@router.get("/manifest.json", response_class=FileResponse, responses=document(Manifest))
def manifest(result: PublishedResult) -> FileResponse:
    """Parameters, model, versions and objects of the result before any edits: everything needed to reproduce it."""
    return FileResponse(result.manifest_path, media_type="application/json", headers=IMMUTABLE)


@router.get("/rle.json", response_class=Response, responses=document(RleDocument) | CURRENT)
def rle(level: PublishedLevel, if_none_match: IfNoneMatchHeader = None) -> Response:
    """COCO RLE of every object in every frame."""
    return _file(
        level,
        "rle.json",
        lambda: level.document.model_dump_json(exclude_none=True),
        "application/json",
        if_none_match,
    )


@router.get("/rounds.json", response_class=FileResponse, responses=document(RoundsDocument))
def rounds(level: LatestLevel) -> FileResponse:
    """Clusters after the first round of Algorithm 1; the manifest lists the merges of the later rounds."""
    return FileResponse(level.file("rounds.json"), media_type="application/json", headers=IMMUTABLE)


@router.get("/masks.zip", response_class=Response, responses=binary("application/zip") | CURRENT)
def masks_zip(level: PublishedLevel, if_none_match: IfNoneMatchHeader = None) -> Response:
    """All masks as palette PNGs in the DAVIS layout: `<video name>/00000.png …`, and names in `objects.json`."""
    name = level.result.job.video_name
    return _file(
        level,
        "masks.zip",
        lambda: stream_archive(png.masks(level.document, level.summary, name)),
        "application/zip",
        if_none_match,
        filename=f"{name}.zip",
    )


@router.get("/masks/{frame}.png", response_class=Response, responses=binary("image/png") | CURRENT)
def mask(
    level: PublishedLevel,
    frame: Annotated[int, Path(ge=0, le=10_000_000, description="Frame index, from 0.", examples=[0])],
    if_none_match: IfNoneMatchHeader = None,
) -> Response:
    """Mask of one frame: palette PNG, 0 is background."""
    return _file(
        level,
        f"masks/{frame:05d}.png",
        lambda: png.render(level.document.frames[frame], level.document, level.summary),
        "image/png",
        if_none_match,
    )


@router.get("/source.mp4", response_class=FileResponse, responses=binary("video/mp4"))
def source(result: PublishedResult) -> FileResponse:
    """Video of exactly the segmented frames, at most 640 pixels on its longer side (H.264); it starts at 0 s."""
    return FileResponse(result.shared_file("source.mp4"), media_type="video/mp4", headers=IMMUTABLE)


@router.get("/thumbnail.jpg", response_class=FileResponse, responses=binary("image/jpeg"))
def thumbnail(result: PublishedResult) -> FileResponse:
    """The middle frame, at most 320 pixels on its longer side."""
    return FileResponse(result.shared_file("thumbnail.jpg"), media_type="image/jpeg", headers=IMMUTABLE)


@router.get("/frames.zip", response_class=Response, responses=rendered("application/zip", "Frames and masks"))
def frames_zip(level: PublishedLevel, if_none_match: IfNoneMatchHeader = None) -> Response:
    """Segmented frames as JPEG in the size of the video, with their masks as palette PNG: `JPEGImages/00000.jpg …`,
    `Annotations/00000.png …`."""
    images = level.result.images()
    return _render(
        level,
        "frames",
        lambda: stream_archive(png.frames_and_masks(level.document, level.summary, images)),
        "application/zip",
        if_none_match,
    )


@router.get("/youtube-vis.json", response_class=Response, responses=rendered("application/json", "YouTube-VIS results"))
def youtube_vis_json(level: PublishedLevel, if_none_match: IfNoneMatchHeader = None) -> Response:
    """YouTube-VIS results: one entry per object, one RLE or null per frame."""
    return _render(
        level,
        "youtube-vis",
        lambda: youtube_vis.render(level.document, level.summary),
        "application/json",
        if_none_match,
    )


@router.get("/coco.json", response_class=Response, responses=rendered("application/json", "COCO instances"))
def coco_json(level: PublishedLevel, if_none_match: IfNoneMatchHeader = None) -> Response:
    """COCO instances: one annotation per mask, with the object id as `track_id`."""
    return _render(
        level,
        "coco",
        lambda: coco.render(level.document, level.manifest, level.summary),
        "application/json",
        if_none_match,
    )


@router.get("/cvat.xml", response_class=Response, responses=rendered("application/xml", "CVAT for video 1.1"))
def cvat_xml(
    level: PublishedLevel,
    tracks: Annotated[
        cvat.Tracks,
        Query(description="What a track holds: one mask, all masks of an object, or all its outlines as polygons."),
    ] = cvat.Tracks.mask,
    if_none_match: IfNoneMatchHeader = None,
) -> Response:
    """CVAT for video 1.1: tracks of masks or polygons."""
    return _render(
        level,
        f"cvat-{tracks}",
        lambda: cvat.render(level.document, level.manifest, tracks=tracks),
        "application/xml",
        if_none_match,
    )


@router.get("/cvat-images.xml", response_class=Response, responses=rendered("application/xml", "CVAT for images 1.1"))
def cvat_images_xml(
    level: PublishedLevel,
    shapes: Annotated[cvat.Shapes, Query(description="How a mask is written.")] = cvat.Shapes.mask,
    if_none_match: IfNoneMatchHeader = None,
) -> Response:
    """CVAT for images 1.1: the masks or polygons of each frame."""
    return _render(
        level,
        f"cvat-images-{shapes}",
        lambda: cvat.render_images(level.document, level.manifest, shapes=shapes),
        "application/xml",
        if_none_match,
    )


@router.get("/labelstudio.json", response_class=Response, responses=rendered("application/json", "Label Studio tasks"))
def labelstudio_json(level: PublishedLevel, if_none_match: IfNoneMatchHeader = None) -> Response:
    """Label Studio tasks: one per frame, with the masks as brush predictions."""
    return _render(
        level,
        "labelstudio",
        lambda: label_studio.render(level.document, level.manifest, level.summary),
        "application/json",
        if_none_match,
    )


@router.get("/yolo.zip", response_class=Response, responses=rendered("application/zip", "YOLO segmentation labels"))
def yolo_zip(level: PublishedLevel, if_none_match: IfNoneMatchHeader = None) -> Response:
    """YOLO segmentation labels: one text file per frame, one polygon per object."""
    return _render(
        level,
        "yolo",
        lambda: yolo.render(level.document, level.manifest),
        "application/zip",
        if_none_match,
    )


@router.get("/mots.zip", response_class=Response, responses=rendered("application/zip", "MOTS PNGs"))
def mots_zip(level: PublishedLevel, if_none_match: IfNoneMatchHeader = None) -> Response:
    """MOTS: one 16-bit PNG per frame, 1000 * class + object id."""
    return _render(
        level,
        "mots",
        lambda: mots.render(level.document, level.manifest),
        "application/zip",
        if_none_match,
    )


def _file(
    level: ResultLevel,
    name: str,
    render: Callable[[], str | bytes | Iterator[bytes]],
    media_type: str,
    if_none_match: str | None,
    filename: str | None = None,
) -> Response:
    """The response with a stored file of a level, or with what `render` makes of the edited masks."""
    path, tag = level.file(name), level.tag(name)
    if level.is_edited or is_current(tag, if_none_match):
        response = _render(level, name, render, media_type, if_none_match)
        if filename is not None:
            response.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(filename)}"
        return response
    return FileResponse(path, media_type=media_type, filename=filename, headers=caching(level) | {"ETag": tag})


def _render(
    level: ResultLevel,
    name: str,
    render: Callable[[], str | bytes | Iterator[bytes]],
    media_type: str,
    if_none_match: str | None,
) -> Response:
    """The response with a document rendered from the masks of a level, or 304 if the client has it."""
    tag = level.tag(name)
    headers = caching(level) | {"ETag": tag}
    if is_current(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    content = render()
    if isinstance(content, str | bytes):
        return Response(content, media_type=media_type, headers=headers)
    return StreamingResponse(content, media_type=media_type, headers=headers)


def caching(level: ResultLevel) -> dict[str, str]:
    """Cache-Control of a level: of the original for ever, else to be revalidated, as edits change it."""
    return IMMUTABLE if level.original else REVALIDATED


def is_current(tag: str, if_none_match: str | None) -> bool:
    """Whether the client has the response with this ETag."""
    return if_none_match is not None and tag in (etag.strip().removeprefix("W/") for etag in if_none_match.split(","))
