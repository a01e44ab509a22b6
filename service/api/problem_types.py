"""What the type of a problem means: its path, asked for, tells what helps."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.exceptions import HTTPException

from service.api.problems import problems
from uvos import errors
from uvos.contract import Schema
from uvos.errors import InvalidParameters, UvosError

router = APIRouter(tags=["problems"])

KINDS = {
    kind.type().rsplit("/", 1)[1]: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, UvosError) and kind is not UvosError
}


class Kind(Schema):
    """One type of problem."""

    type: str = Field(examples=["/problems/too-many-frames"])
    """As problems carry it."""
    title: str = Field(examples=["Too many frames"])
    """In words."""
    status: int = Field(examples=[422])
    """The HTTP status that comes with it."""
    remedy: str = Field(examples=["Send a part of the video with `start` and `end`."])
    """What helps."""


@router.get(
    "/problems/{name}",
    responses={404: {"description": "There is no such type of problem."}, **problems(InvalidParameters)},
)
def problem(
    name: Annotated[str, Path(max_length=64, description="The end of a problem's `type`.", examples=["not-a-video"])],
) -> Kind:
    """What a type of problem means, and what helps."""
    if name not in KINDS:
        raise HTTPException(404, f"there is no problem {name}")
    kind = KINDS[name]
    return Kind(type=kind.type(), title=kind.title, status=kind.status, remedy=kind.remedy)
