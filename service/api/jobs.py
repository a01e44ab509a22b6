"""Show, list, cancel and delete jobs."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Response

from service.api.dependencies import JobId, JobsDep, ListenerDep, OwnerDep, StoredJobDep
from service.api.problems import problems
from service.jobs.events import wait_for_end
from uvos.contract import JobPage, JobView, Status
from uvos.errors import InvalidParameters, JobNotFound, QueueUnavailable, ResultNotFound

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get(
    "/{job_id}",
    operation_id="get_job",
    response_model_exclude_none=True,
    responses=problems(JobNotFound, InvalidParameters, QueueUnavailable),
)
async def show(
    job_id: JobId,
    jobs: JobsDep,
    owner: OwnerDep,
    listener: ListenerDep,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=60,
            allow_inf_nan=False,
            description="Long poll: respond once the job has ended, or after this many seconds.",
        ),
    ] = 0,
) -> JobView:
    """Show a job: status, progress, position in the queue, and links to the result once it has succeeded."""
    if wait > 0:
        job = await to_thread.run_sync(jobs.find, job_id, owner)
        await wait_for_end(jobs, listener, job.record, wait)
    return await to_thread.run_sync(jobs.show, job_id, owner)  # all of it in one thread: a change costs 0.1 ms


@router.get(
    "",
    operation_id="list_jobs",
    response_model_exclude_none=True,
    responses=problems(InvalidParameters, QueueUnavailable),
)
def index(
    jobs: JobsDep,
    owner: OwnerDep,
    cursor: Annotated[
        str | None,
        Query(
            pattern="^[0-9a-z]{1,64}$",
            description="`next` of the previous page.",
            examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"],
        ),
    ] = None,
    status: Annotated[Status | None, Query(description="Only jobs with this status.")] = None,
    tag: Annotated[str | None, Query(max_length=64, description="Only jobs with this tag.", examples=["night"])] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs per page.")] = 50,
) -> JobPage:
    """List the caller's jobs, newest first."""
    return jobs.page(owner=owner, before=cursor, status=status, tag=tag, size=limit)


@router.get(
    "/{job_id}/preview.jpg",
    operation_id="preview_job",
    response_class=Response,
    responses={
        200: {
            "description": "The picture.",
            "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(JobNotFound, InvalidParameters, ResultNotFound, QueueUnavailable),
    },
)
def preview(job: StoredJobDep, jobs: JobsDep) -> Response:
    """First coarse result of a running job: a few frames, and below them the same frames with coloured objects."""
    picture = jobs.preview(job.record).read_bytes()
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    response_model_exclude_none=True,
    responses=problems(JobNotFound, InvalidParameters, QueueUnavailable),
)
def cancel(job: StoredJobDep, jobs: JobsDep) -> JobView:
    """Cancel a queued or running job; has no effect on a job that has ended."""
    return jobs.cancel(job)


@router.delete(
    "/{job_id}",
    operation_id="delete_job",
    status_code=204,
    responses=problems(JobNotFound, InvalidParameters, QueueUnavailable),
)
def delete(job: StoredJobDep, jobs: JobsDep) -> None:
    """Cancel a job and delete it with its video and result."""
    jobs.delete(job)
