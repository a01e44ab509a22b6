"""Results with pixels of the video: overlay, cut-outs with an alpha channel, GIF preview."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse

from service.api.dependencies import PublishedLevel, RendersDep
from service.api.problems import problems
from service.api.results import CURRENT, IfNoneMatchHeader, binary, caching, is_current
from service.jobs.renders import Renders
from service.jobs.results import ResultLevel
from service.rendering.request import Product
from uvos.errors import InvalidParameters, JobNotFound, RenderPending, ResultNotFound, ResultNotReady, StorageFull

router = APIRouter(
    prefix="/jobs/{job_id}",
    tags=["results"],
    responses=problems(JobNotFound, InvalidParameters, ResultNotFound, ResultNotReady, RenderPending, StorageFull),
)

ObjectQuery = Annotated[
    int | None, Query(alias="object", ge=1, le=65535, description="Object id. Default: all objects.", examples=[1])
]
MEDIA_TYPES = {
    Product.cutout_webm: "video/webm",
    Product.cutout_mov: "video/quicktime",
    Product.preview_gif: "image/gif",
    Product.overlay_mp4: "video/mp4",
}


@router.get("/overlay.mp4", response_class=FileResponse, responses=binary("video/mp4") | CURRENT)
async def overlay(
    level: PublishedLevel, renders: RendersDep, object_id: ObjectQuery = None, if_none_match: IfNoneMatchHeader = None
) -> Response:
    """Video with coloured masks drawn over it (H.264).

    The worker writes it in the size of the video for `format=overlay`; without it, and after edits, it is rendered from
    the frames that the job keeps.
    """
    return await _respond(level, renders, Product.overlay_mp4, object_id, if_none_match)


@router.get("/cutout.webm", response_class=FileResponse, responses=binary("video/webm") | CURRENT)
async def cutout_webm(
    level: PublishedLevel, renders: RendersDep, object_id: ObjectQuery = None, if_none_match: IfNoneMatchHeader = None
) -> Response:
    """The objects on a transparent background: VP9 with an alpha channel, for browsers."""
    return await _respond(level, renders, Product.cutout_webm, object_id, if_none_match)


@router.get("/cutout.mov", response_class=FileResponse, responses=binary("video/quicktime") | CURRENT)
async def cutout_mov(
    level: PublishedLevel, renders: RendersDep, object_id: ObjectQuery = None, if_none_match: IfNoneMatchHeader = None
) -> Response:
    """The objects on a transparent background: ProRes 4444, for video editors."""
    return await _respond(level, renders, Product.cutout_mov, object_id, if_none_match)


@router.get("/preview.gif", response_class=FileResponse, responses=binary("image/gif") | CURRENT)
async def preview_gif(
    level: PublishedLevel, renders: RendersDep, object_id: ObjectQuery = None, if_none_match: IfNoneMatchHeader = None
) -> Response:
    """Animated GIF of the overlay: at most 320 pixels on its longer side, 60 frames, 10 frames a second."""
    return await _respond(level, renders, Product.preview_gif, object_id, if_none_match)


async def _respond(
    level: ResultLevel, renders: Renders, product: Product, object_id: int | None, if_none_match: str | None
) -> Response:
    """The response with a file, or 304 if the client has it."""
    tag = level.tag(f"{product}-{object_id}")
    headers = caching(level) | {"ETag": tag}
    if is_current(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    path = None
    if product is Product.overlay_mp4 and object_id is None and not level.is_edited:
        path = await to_thread.run_sync(level.stored, str(product))
    path = path or await renders.file(level, product, object_id)
    return FileResponse(path, media_type=MEDIA_TYPES[product], headers=headers)
