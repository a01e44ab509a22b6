"""POST /segment."""

from dataclasses import dataclass
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request, Response

from service.api.dependencies import JobsDep, OwnerDep, SettingsDep
from service.api.problems import problems
from service.http.upload import file_name, parse_fields, receive
from service.jobs.jobs import Submission
from service.jobs.public_address import MAX_URL, check_url
from service.settings import Settings
from service.storage.uploads import Upload
from uvos.contract import JobView, SegmentForm
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
    VideoUrlFailed,
    WeightsUnavailable,
)

router = APIRouter(tags=["segment"])

POLL_AFTER_S = 1
CALLBACK_URL = {
    "type": "string",
    "maxLength": MAX_URL,
    "examples": ["https://example.com/hooks/uvos"],
    "description": "Webhook URL for the end of the job (Standard Webhooks); only if the service has webhooks enabled.",
}


VIDEO_URL = {
    "type": "string",
    "maxLength": MAX_URL,
    "examples": ["https://example.com/clip.mp4"],
    "description": "Address of the video, instead of `video`; public addresses only.",
}


@dataclass(frozen=True)
class Received:
    """A received form, with its fields validated; the upload is removed unless it is submitted."""

    upload: Upload
    submission: Submission


async def receive_submission(request: Request, jobs: JobsDep, settings: SettingsDep) -> Received:
    """Receive the form and validate its fields.

    Raises:
        RequestValidationError: parameters are invalid.
        UvosError: as `receive` and `_callback_url` raise.
    """
    form = await receive(
        request, jobs.storage, max_upload_bytes=settings.max_upload_bytes, networks=settings.fetch_networks
    )
    assert form.upload is not None
    try:
        callback_url = _callback_url([value for name, value in form.fields if name == "callback_url"], settings)
        fields = parse_fields([field for field in form.fields if field[0] != "callback_url"])
        sha256 = await to_thread.run_sync(form.upload.finish)
    except BaseException:
        form.upload.__exit__()
        raise
    name = file_name(form.filename)
    return Received(form.upload, Submission(form=fields, file_name=name, sha256=sha256, callback_url=callback_url))


def form_schema() -> dict[str, Any]:
    """The multipart form for OpenAPI: the parameters of the contract and the video."""
    schema = SegmentForm.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    properties = {name: _inlined(field, definitions) for name, field in schema["properties"].items()}
    video = {"type": "string", "format": "binary", "description": "The video file, or a ZIP archive of frames."}
    metadata = {"type": "string", "description": schema["properties"]["metadata"]["description"]}
    properties["metadata"] = metadata | {"contentMediaType": "application/json", "examples": ['{"camera": "north"}']}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {"video": video, "video_url": VIDEO_URL, **properties, "callback_url": CALLBACK_URL},
    }


def _inlined(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Inline the enums of a field and drop null, which a form cannot send."""
    if "anyOf" in field:
        options = [option for option in field["anyOf"] if option.get("type") != "null"]
        field = {key: value for key, value in field.items() if key not in ("anyOf", "default")} | options[0]
    if "$ref" in field:
        name = field.pop("$ref").rsplit("/", 1)[1]
        field = {"type": "string", "enum": definitions[name]["enum"]} | field
    if "items" in field and "$ref" in field["items"]:
        name = field["items"]["$ref"].rsplit("/", 1)[1]
        field["items"] = {"type": "string", "enum": definitions[name]["enum"]}
    return field


ACCEPTED = {
    "description": "Accepted; poll the URL in `Location`.",
    "headers": {
        "Location": {"description": "URL of the job.", "schema": {"type": "string"}},
        "Retry-After": {"description": "Seconds to wait before polling.", "schema": {"type": "integer"}},
    },
}
PROBLEMS = problems(
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
    VideoUrlFailed,
    WeightsUnavailable,
)
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Requests with the same key and the same content return the same job.",
        examples=["my-clip-1"],
    ),
]
TraceParent = Annotated[
    str | None,
    Header(
        max_length=512,
        description="W3C Trace Context; logs of the job and its webhook continue this trace. Ignored if it is invalid.",
        examples=["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    ),
]


@router.post(
    "/segment",
    status_code=202,
    response_model_exclude_none=True,
    responses={202: ACCEPTED, **PROBLEMS},
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form_schema()}}}},
)
def segment(
    jobs: JobsDep,
    owner: OwnerDep,
    received: Annotated[Received, Depends(receive_submission)],
    response: Response,
    idempotency_key: IdempotencyKey = None,
    traceparent: TraceParent = None,
) -> JobView:
    """Submit a video; returns the job, whose result is the masks of the objects in the video."""
    with received.upload as upload:
        job = jobs.submit(
            upload, received.submission, owner=owner, idempotency_key=idempotency_key, traceparent=traceparent
        )
    response.headers.update({"Location": job.links.self, "Retry-After": str(POLL_AFTER_S)})
    return job


def _callback_url(urls: list[str], settings: Settings) -> str | None:
    """The webhook URL of a form.

    Raises:
        InvalidParameters: webhooks are off, or the URL is given twice or not allowed.
    """
    if not urls:
        return None
    if settings.webhook_secret is None:
        raise InvalidParameters("callback_url: webhooks are off on this service (UVOS_WEBHOOK_SECRET is not set)")
    if len(urls) > 1:
        raise InvalidParameters(f"callback_url: must be given once, got {len(urls)}", limit=1, actual=len(urls))
    return check_url(urls[0])
