"""Dependencies of the endpoints."""

from typing import Annotated

from fastapi import Depends, Path, Request

from service.jobs.events import Listener
from service.jobs.jobs import Jobs
from service.jobs.results import Result
from service.settings import Settings
from uvos.contract import JobRecord, Status
from uvos.errors import ResultNotFound, ResultNotReady


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.state.jobs
    return jobs


def _listener(request: Request) -> Listener:
    listener: Listener = request.state.listener
    return listener


def _settings(request: Request) -> Settings:
    settings: Settings = request.state.settings
    return settings


def _owner(request: Request) -> str | None:
    owner: str | None = request.scope.get("uvos.owner")
    return owner


JobsDep = Annotated[Jobs, Depends(_jobs)]
ListenerDep = Annotated[Listener, Depends(_listener)]
SettingsDep = Annotated[Settings, Depends(_settings)]
OwnerDep = Annotated[str | None, Depends(_owner)]
JobId = Annotated[
    str, Path(pattern="^[0-9a-z]{1,64}$", description="Job id.", examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
]


def _existing_job(job_id: JobId, jobs: JobsDep, owner: OwnerDep) -> JobRecord:
    return jobs.find(job_id, owner)


ExistingJob = Annotated[JobRecord, Depends(_existing_job)]


def _published(job: ExistingJob, jobs: JobsDep) -> Result:
    end = jobs.storage.end(job.id)
    if end is None:
        raise ResultNotReady(f"job {job.id} has not ended", limit="succeeded", actual="queued or running")
    if end.status != Status.succeeded:
        raise ResultNotFound(f"job {job.id} is {end.status.value} and has no result", actual=end.status.value)
    return Result(jobs.storage.result_dir(job.id, end), job)


PublishedResult = Annotated[Result, Depends(_published)]
