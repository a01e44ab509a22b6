"""Server-sent events of a job."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.sse import EventSourceResponse, format_sse_event

from service.api.dependencies import ExistingJob, JobsDep, ListenerDep
from service.api.problems import problems
from service.jobs.events import THE_END, Listener, follow
from service.jobs.jobs import Jobs
from uvos.contract import JobRecord
from uvos.errors import InvalidParameters, JobNotFound

router = APIRouter(prefix="/jobs", tags=["jobs"])

RETRY_MS = 1000
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
EXAMPLE = """\
event: job
id: 1763810000000-0
data: {"id":"019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c","status":"running","stage":"attention","frames_done":12, ...}

: keep-alive

event: end
id: end
data: {"id":"019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c","status":"succeeded", ...}
"""


@router.get(
    "/{job_id}/events",
    operation_id="follow_job",
    response_class=Response,
    responses={
        200: {
            "description": "An event `job` with the job as JSON on every change, then one event `end`, after which "
            "the connection closes. Comments keep the connection alive.",
            "content": {"text/event-stream": {"example": EXAMPLE}},
        },
        204: {"description": "The client has received the end (`Last-Event-ID: end`); there are no further events."},
        **problems(JobNotFound, InvalidParameters),
    },
)
async def events(
    job: ExistingJob,
    jobs: JobsDep,
    listener: ListenerDep,
    last_event_id: Annotated[
        str | None,
        Header(
            max_length=64,
            description="`id` of the last received event; later events are sent first. Browsers set it.",
            examples=["1763810000000-0"],
        ),
    ] = None,
) -> Response:
    """Follow a job by server-sent events."""
    if last_event_id == THE_END:
        return Response(status_code=204)
    return EventSourceResponse(_stream(jobs, listener, job, _known(last_event_id)), headers=HEADERS)


async def _stream(jobs: Jobs, listener: Listener, job: JobRecord, last: str | None) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RETRY_MS)
    async for event in follow(jobs, listener, job, last):
        if event is None:
            yield format_sse_event(comment="keep-alive")
        else:
            yield format_sse_event(
                event="end" if event.id == THE_END else "job",
                id=event.id,
                data_str=event.data,
            )


def _known(last_event_id: str | None) -> str | None:
    """The id if it has the form of an event id (milliseconds-number); None, from the start, for any other value."""
    first, _, second = (last_event_id or "").partition("-")
    return last_event_id if first.isdecimal() and second.isdecimal() and len(first + second) < 30 else None
