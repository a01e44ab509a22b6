"""Errors as application/problem+json (RFC 9457), the only form in which this service answers a failure."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from uvos.contract import FieldProblem, Problem
from uvos.errors import InternalError, InvalidParameters, UvosError

MEDIA_TYPE = "application/problem+json"


def respond(error: UvosError, errors: list[FieldProblem] | None = None) -> Response:
    """The response that tells of an expected failure."""
    problem = error.problem()
    problem.errors = errors
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
    return _render(problem, headers)


def problems(*kinds: type[UvosError]) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of an endpoint that may raise these."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        response = found.setdefault(
            kind.status, {"description": "", "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA, "examples": {}}}}
        )
        response["description"] += f"{', ' if response['description'] else ''}{kind.title}"
        response["content"][MEDIA_TYPE]["examples"][kind.__name__] = {
            "summary": kind.remedy,
            "value": {"type": kind.type(), "title": kind.title, "status": kind.status, "detail": kind.remedy},
        }
    return found


PROBLEM_SCHEMA = {"$ref": "#/components/schemas/Problem"}


def install(app: FastAPI) -> None:
    """Render every failure of `app` as a problem."""

    @app.exception_handler(UvosError)
    async def expected(_: Request, error: UvosError) -> Response:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return respond_invalid(error.errors())

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        problem = Problem(
            type="about:blank", title=str(error.detail), status=error.status_code, detail=str(error.detail)
        )
        return _render(problem, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def bug(_: Request, __: Exception) -> Response:  # the server logs the traceback; nobody else sees it
        return respond(InternalError("something went wrong in the service; it has been logged"))


def respond_invalid(errors: Any) -> Response:
    """One answer that names every field that is wrong, with what was given."""
    fields = [
        FieldProblem(
            field=".".join(str(part) for part in item["loc"] if part not in ("body", "query", "path")) or "body",
            message=item["msg"].removeprefix("Value error, "),
            actual=_shown(item.get("input")),
            limit=_limit(item.get("ctx") or {}),
        )
        for item in errors
    ]
    first = fields[0]
    detail = f"{first.field}: {first.message}" + (f" (and {len(fields) - 1} more)" if len(fields) > 1 else "")
    return respond(InvalidParameters(detail, limit=first.limit, actual=first.actual), fields)


def _shown(value: object) -> str | None:
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
