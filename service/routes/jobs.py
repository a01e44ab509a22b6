"""A job: look at it, list one's own, cancel it, remove it."""

import time
from typing import Annotated

from fastapi import APIRouter, Query

from service.contract import JobPage, JobView, Status
from service.dependencies import ExistingJob, JobsDep, OwnerDep
from service.errors import InvalidParameters, JobNotFound, QueueUnavailable
from service.problems import problems

router = APIRouter(prefix="/jobs", tags=["jobs"])

LONG_POLL_STEP_S = 0.2


@router.get(
    "/{job_id}", response_model_exclude_none=True, responses=problems(JobNotFound, InvalidParameters, QueueUnavailable)
)
def show(
    job: ExistingJob,
    jobs: JobsDep,
    wait: Annotated[
        float,
        Query(ge=0, le=60, allow_inf_nan=False, description="Answer when the job has ended, or after so many seconds."),
    ] = 0,
) -> JobView:
    """Where a job is: status, stage, frames done, position, and links to its result once it has succeeded."""
    deadline = time.monotonic() + wait
    while not jobs.storage.has_ended(job.id) and time.monotonic() < deadline:
        time.sleep(LONG_POLL_STEP_S)
    return jobs.view(jobs.find(job.id, job.owner))


@router.get("", response_model_exclude_none=True, responses=problems(InvalidParameters, QueueUnavailable))
def index(
    jobs: JobsDep,
    owner: OwnerDep,
    cursor: Annotated[str | None, Query(pattern="^[0-9a-z]{1,64}$", description="`next` of the page before.")] = None,
    status: Annotated[Status | None, Query(description="Only jobs with this status.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs a page.")] = 50,
) -> JobPage:
    """One's own jobs, newest first."""
    return jobs.page(owner=owner, before=cursor, status=status, size=limit)


@router.post(
    "/{job_id}/cancel",
    response_model_exclude_none=True,
    responses=problems(JobNotFound, InvalidParameters, QueueUnavailable),
)
def cancel(job: ExistingJob, jobs: JobsDep) -> JobView:
    """Cancel a job, queued or running; a job that has ended stays as it ended."""
    return jobs.cancel(job)


@router.delete("/{job_id}", status_code=204, responses=problems(JobNotFound, InvalidParameters, QueueUnavailable))
def delete(job: ExistingJob, jobs: JobsDep) -> None:
    """Cancel a job and remove its video, its result and the job itself."""
    jobs.delete(job)
