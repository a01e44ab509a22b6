"""The objects of a level and their edits: rename, merge, hide, show, delete, undo."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Response

from service.api.dependencies import LatestLevel, PublishedLevel
from service.api.problems import problems
from service.api.results import REVALIDATED, IfNoneMatchHeader, is_current
from uvos.edits import EditedObjects, ObjectPatch
from uvos.errors import (
    EditConflict,
    InvalidEdit,
    InvalidParameters,
    JobNotFound,
    ResultNotFound,
    ResultNotReady,
    UploadTooLarge,
)

router = APIRouter(
    prefix="/jobs/{job_id}",
    tags=["objects"],
    responses=problems(JobNotFound, InvalidParameters, ResultNotFound, ResultNotReady),
)

IfMatchHeader = Annotated[
    str | None,
    Header(
        alias="If-Match",
        description="Version that the client knows, as ETag; another version is an error. Default: any version.",
        examples=['"2"'],
    ),
]
TAGGED: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"ETag": {"description": "Version of the edits.", "schema": {"type": "string"}}}}
}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The cached response is current."}}


@router.get("/objects", operation_id="list_objects", responses=TAGGED | NOT_MODIFIED)
def objects(level: PublishedLevel, response: Response, if_none_match: IfNoneMatchHeader = None) -> Any:
    """The objects of a level after the edits, hidden ones included."""
    tag = f'"{level.edits.number}"'
    if is_current(tag, if_none_match):
        return Response(status_code=304, headers=REVALIDATED | {"ETag": tag})
    response.headers.update(REVALIDATED | {"ETag": tag})
    return level.objects()


@router.patch(
    "/objects", operation_id="edit_objects", responses=TAGGED | problems(EditConflict, InvalidEdit, UploadTooLarge)
)
def edit(level: LatestLevel, patch: ObjectPatch, response: Response, if_match: IfMatchHeader = None) -> EditedObjects:
    """Edit the objects of a level; all exports contain the edits, and `original=true` returns the original result."""
    edited = level.edit(patch, _version(if_match))
    response.headers.update(REVALIDATED | {"ETag": f'"{edited.edits.number}"'})
    return edited.objects()


def _version(if_match: str | None) -> int | None:
    """The version in If-Match; None if any will do.

    Raises:
        InvalidParameters: the value is not an ETag of GET /jobs/<id>/objects.
    """
    text = (if_match or "*").strip().removeprefix("W/").strip('"')
    if text == "*":
        return None
    if not text.isdecimal():
        raise InvalidParameters(f'If-Match must be the ETag of the objects, such as "2", got {if_match}')
    return int(text)
