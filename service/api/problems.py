"""Render errors as application/problem+json (RFC 9457); no other module renders errors."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from uvos.contract import FieldProblem, Problem
from uvos.errors import InternalError, InvalidParameters, StorageUnavailable, UvosError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
STORAGE_RETRY_AFTER_S = 10
PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}


def respond(error: UvosError, errors: list[FieldProblem] | None = None) -> Response:
    """The response to an expected failure."""
    problem = error.problem()
    problem.errors = errors
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
    return _render(problem, headers)


def problems(*problem_types: type[UvosError]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of an endpoint that may raise these errors."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in problem_types:
        content = {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA, "examples": {}}}
        response = responses.setdefault(error.status, {"description": "", "content": content})
        response["description"] += f"{', ' if response['description'] else ''}{error.title}"
        response["content"][MEDIA_TYPE]["examples"][error.__name__] = {
            "summary": error.remedy,
            "value": {"type": error.type(), "title": error.title, "status": error.status, "detail": error.remedy},
        }
    return responses


def install(app: FastAPI) -> None:
    """Render every error of `app` as a problem."""

    @app.exception_handler(UvosError)
    async def expected(_: Request, error: UvosError) -> Response:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return respond_invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # FastAPI's answer to bytes that are not UTF-8
            return respond(InvalidParameters("body: it cannot be parsed; send JSON in UTF-8", actual="other bytes"))
        problem = Problem(
            type="about:blank", title=str(error.detail), status=error.status_code, detail=str(error.detail)
        )
        return _render(problem, dict(error.headers or {}))

    @app.exception_handler(OSError)
    async def storage_error(_: Request, error: OSError) -> Response:
        log.error("the data folder cannot be read or written: %s", error)
        detail = f"the data folder cannot be read or written: {error.strerror}"
        return respond(StorageUnavailable(detail, retry_after_s=STORAGE_RETRY_AFTER_S))

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> Response:  # the server logs the traceback; the client must not see it
        return respond(InternalError("an unexpected error occurred in the service; the log has its traceback"))


def respond_invalid(errors: Any) -> Response:
    """One response that lists all invalid fields with their values."""
    fields = [
        FieldProblem(
            field=_field(item),
            message=item["msg"].removeprefix("Value error, "),
            actual=_shortened(item.get("input")),
            limit=_limit(item.get("ctx") or {}),
        )
        for item in errors
    ]
    first = fields[0]
    detail = f"{first.field}: {first.message}" + (f" (and {len(fields) - 1} more)" if len(fields) > 1 else "")
    return respond(InvalidParameters(detail, limit=first.limit, actual=first.actual), fields)


def _field(error: Any) -> str:
    if error["type"] == "json_invalid":  # the location is an offset in the body
        return "body"
    return ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path")) or "body"


def _shortened(value: object) -> str | None:
    return None if value is None else str(value)[:200]


def _limit(context: dict[str, Any]) -> float | int | str | None:
    for name in ("gt", "ge", "lt", "le", "max_length", "min_length", "pattern", "expected"):
        if name in context:
            limit: float | int | str = context[name]
            return limit
    return None


def _render(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(
        problem.model_dump(exclude_none=True), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers
    )
