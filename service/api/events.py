"""A job's events as they happen (server-sent events)."""

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

: still here

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
            "description": "Events `job`, each with the whole job as JSON, whenever it changes; at last one event "
            "`end`, after which the connection closes. Comments keep it open meanwhile.",
            "content": {"text/event-stream": {"example": EXAMPLE}},
        },
        204: {"description": "The client has seen the end (`Last-Event-ID: end`): nothing more will come."},
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
            description="The `id` of the last event seen: what was missed since is told first. Browsers send it.",
            examples=["1763810000000-0"],
        ),
    ] = None,
) -> Response:
    """Everything that happens to a job, as it happens."""
    if last_event_id == THE_END:
        return Response(status_code=204)
    return EventSourceResponse(_stream(jobs, listener, job, _known(last_event_id)), headers=HEADERS)


async def _stream(jobs: Jobs, listener: Listener, job: JobRecord, last: str | None) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RETRY_MS)
    async for event in follow(jobs, listener, job, last):
        if event is None:
            yield format_sse_event(comment="still here")
        else:
            yield format_sse_event(
                event="end" if event.id == THE_END else "job",
                id=event.id,
                data_str=event.job.model_dump_json(exclude_none=True),
            )


def _known(last_event_id: str | None) -> str | None:
    """The id where it is one of ours: milliseconds and a number; anything else begins anew."""
    first, _, second = (last_event_id or "").partition("-")
    return last_event_id if first.isdecimal() and second.isdecimal() and len(first + second) < 30 else None
