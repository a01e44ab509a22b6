"""POST /segment."""

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Request, Response

from service.api.dependencies import JobsDep, OwnerDep, SettingsDep
from service.api.problems import problems
from service.http.upload import params_of, receive, video_name
from service.jobs.webhooks import MAX_URL, check_url
from service.settings import Settings
from uvos.contract import JobView, SegmentParams
from uvos.errors import (
    EmptyUpload,
    IdempotencyConflict,
    InvalidParameters,
    NotAVideo,
    QueueFull,
    QueueUnavailable,
    RequestTooSlow,
    StorageFull,
    TooManyJobs,
    UnknownModel,
    UploadTooLarge,
)

router = APIRouter(tags=["segment"])

POLL_AFTER_S = 1
CALLBACK_URL = {
    "type": "string",
    "maxLength": MAX_URL,
    "examples": ["https://example.com/hooks/uvos"],
    "description": "Where to POST how the job ended (Standard Webhooks); only where the service sends webhooks.",
}


def form_schema() -> dict[str, Any]:
    """The multipart form for OpenAPI: the contract's parameters and the video."""
    schema = SegmentParams.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    properties = {name: _inlined(field, definitions) for name, field in schema["properties"].items()}
    video = {"type": "string", "format": "binary", "description": "The video file."}
    return {
        "type": "object",
        "required": ["video"],
        "additionalProperties": False,
        "properties": {"video": video, **properties, "callback_url": CALLBACK_URL},
    }


def _inlined(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A field's schema with its enums written out, and without the null that a form cannot send."""
    if "anyOf" in field:
        kept = [option for option in field["anyOf"] if option.get("type") != "null"]
        field = {key: value for key, value in field.items() if key not in ("anyOf", "default")} | kept[0]
    if "$ref" in field:
        name = field.pop("$ref").rsplit("/", 1)[1]
        field = {"type": "string", "enum": definitions[name]["enum"]} | field
    if "items" in field and "$ref" in field["items"]:
        name = field["items"]["$ref"].rsplit("/", 1)[1]
        field["items"] = {"type": "string", "enum": definitions[name]["enum"]}
    return field


@router.post(
    "/segment",
    status_code=202,
    response_model_exclude_none=True,
    responses={
        202: {
            "description": "Accepted; poll `Location`.",
            "headers": {
                "Location": {"description": "Where the job is.", "schema": {"type": "string"}},
                "Retry-After": {
                    "description": "Seconds until the first look is worth it.",
                    "schema": {"type": "integer"},
                },
            },
        },
        **problems(
            InvalidParameters,
            UnknownModel,
            EmptyUpload,
            IdempotencyConflict,
            NotAVideo,
            UploadTooLarge,
            StorageFull,
            QueueUnavailable,
            QueueFull,
            RequestTooSlow,
            TooManyJobs,
        ),
    },
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema()}}}},
)
async def segment(
    request: Request,
    response: Response,
    jobs: JobsDep,
    settings: SettingsDep,
    owner: OwnerDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="The same key with the same content gives the same job.",
            examples=["my-clip-1"],
        ),
    ] = None,
) -> JobView:
    """Send a video; get a job that ends with the masks of its objects."""
    form = await receive(request, jobs.storage, max_upload_bytes=settings.max_upload_bytes)
    assert form.upload is not None
    with form.upload as upload:
        callback_url = _callback_url(form.fields, settings)
        params = params_of([field for field in form.fields if field[0] != "callback_url"])
        sha256 = await to_thread.run_sync(upload.finish)
        job = await to_thread.run_sync(
            lambda: jobs.submit(
                upload,
                params,
                video_name=video_name(form.filename),
                sha256=sha256,
                owner=owner,
                idempotency_key=idempotency_key,
                callback_url=callback_url,
            )
        )
    response.headers["Location"] = job.links.self
    response.headers["Retry-After"] = str(POLL_AFTER_S)
    return job


def _callback_url(fields: list[tuple[str, str]], settings: Settings) -> str | None:
    """Whom to tell.

    Raises:
        InvalidParameters: no webhooks are sent, or not to such a URL.
    """
    urls = [value for name, value in fields if name == "callback_url"]
    if not urls:
        return None
    if settings.webhook_secret is None:
        raise InvalidParameters("callback_url: this service sends no webhooks (UVOS_WEBHOOK_SECRET is not set)")
    if len(urls) > 1:
        raise InvalidParameters("callback_url: given twice", limit=1, actual=len(urls))
    return check_url(urls[0])
