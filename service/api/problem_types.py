"""GET /problems/{name}: the description of a problem type. The `type` of a problem is this path."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.exceptions import HTTPException

from service.api.problems import problems
from uvos import errors
from uvos.contract import Schema
from uvos.errors import InvalidParameters, UvosError

router = APIRouter(tags=["problems"])

PROBLEM_TYPES = {
    error.type().rsplit("/", 1)[1]: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, UvosError) and error is not UvosError
}


class ProblemType(Schema):
    """A problem type."""

    type: str = Field(examples=["/problems/too-many-frames"])
    """Type URI, as in `type` of a problem."""
    title: str = Field(examples=["Too many frames"])
    """Problem type in words."""
    status: int = Field(examples=[422])
    """HTTP status of responses with this problem."""
    remedy: str = Field(examples=["Shorten the part with `start` and `end`."])
    """How to resolve the problem."""


@router.get(
    "/problems/{name}",
    responses={404: {"description": "There is no such problem type."}, **problems(InvalidParameters)},
)
def problem(
    name: Annotated[str, Path(max_length=64, description="Last part of the type URI.", examples=["not-a-video"])],
) -> ProblemType:
    """Describe a problem type and its remedy."""
    if name not in PROBLEM_TYPES:
        raise HTTPException(404, f"there is no problem type {name}")
    error = PROBLEM_TYPES[name]
    return ProblemType(type=error.type(), title=error.title, status=error.status, remedy=error.remedy)
