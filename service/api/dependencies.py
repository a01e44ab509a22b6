"""Dependencies of the endpoints: `async`, because FastAPI runs others in a thread each."""

from typing import Annotated

from anyio import to_thread
from fastapi import Depends, Path, Query, Request

from service.jobs.events import Listener
from service.jobs.jobs import Jobs
from service.jobs.renders import Renders
from service.jobs.results import Result, ResultLevel
from service.settings import Settings
from service.storage.folder import StoredJob
from uvos.contract import JobRecord, Status
from uvos.errors import ResultNotFound, ResultNotReady


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.state.jobs
    return jobs


async def _listener(request: Request) -> Listener:
    listener: Listener = request.state.listener
    return listener


async def _settings(request: Request) -> Settings:
    settings: Settings = request.state.settings
    return settings


async def _owner(request: Request) -> str | None:
    owner: str | None = request.scope.get("uvos.owner")
    return owner


async def _renders(request: Request) -> Renders:
    renders: Renders = request.state.renders
    return renders


JobsDep = Annotated[Jobs, Depends(_jobs)]
ListenerDep = Annotated[Listener, Depends(_listener)]
SettingsDep = Annotated[Settings, Depends(_settings)]
RendersDep = Annotated[Renders, Depends(_renders)]
OwnerDep = Annotated[str | None, Depends(_owner)]
JobId = Annotated[
    str, Path(pattern="^[0-9a-z]{1,64}$", description="Job id.", examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
]


async def _stored_job(job_id: JobId, jobs: JobsDep, owner: OwnerDep) -> StoredJob:
    return await to_thread.run_sync(jobs.find, job_id, owner)


StoredJobDep = Annotated[StoredJob, Depends(_stored_job)]


async def _existing_job(job: StoredJobDep) -> JobRecord:
    return job.record


ExistingJob = Annotated[JobRecord, Depends(_existing_job)]


async def _published(job: StoredJobDep, jobs: JobsDep) -> Result:
    record, end = job.record, job.end
    if end is None:
        raise ResultNotReady(f"job {record.id} has not ended", limit="succeeded", actual="queued or running")
    if end.status != Status.succeeded:
        raise ResultNotFound(f"job {record.id} is {end.status.value} and has no result", actual=end.status.value)
    return Result(jobs.storage.result_dir(record.id, end), record, jobs.storage)


PublishedResult = Annotated[Result, Depends(_published)]

TauQuery = Annotated[
    float | None,
    Query(
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="Tau of the level. Default: the first level.",
        examples=[1.0],
    ),
]


async def _latest_level(result: PublishedResult, tau: TauQuery = None) -> ResultLevel:
    return await to_thread.run_sync(result.level, tau)


async def _level(
    result: PublishedResult,
    tau: TauQuery = None,
    original: Annotated[bool, Query(description="Without the edits of the objects.")] = False,
) -> ResultLevel:
    return await to_thread.run_sync(lambda: result.level(tau, original=original))


LatestLevel = Annotated[ResultLevel, Depends(_latest_level)]
PublishedLevel = Annotated[ResultLevel, Depends(_level)]
