"""Liveness, readiness, metrics, and the list of models."""

import redis
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import Field

from service.api.dependencies import JobsDep, SettingsDep
from service.jobs.jobs import Jobs
from service.jobs.metrics import render
from service.jobs.queue import WORKER_TTL_S
from service.jobs.workers import install_command
from uvos.contract import Schema, WorkerInfo
from uvos.errors import QueueUnavailable
from uvos.models import MODELS, ModelEntry

router = APIRouter()


class Alive(Schema):
    alive: bool = True
    """Always true."""


class Ready(Schema):
    """Whether a job would be accepted and run."""

    ready: bool
    """`accepts_jobs` and `runs_jobs`; the status is 200 if true, 503 if false."""
    accepts_jobs: bool
    """Whether POST /segment would accept a job: queue and storage are available."""
    runs_jobs: bool
    """Whether a live worker would run it. Accepted jobs wait while there is none."""
    queue: bool
    """Whether Redis responds."""
    storage: bool
    """Whether the data folder can be written."""
    workers: list[WorkerInfo]
    """Workers with a recent heartbeat."""
    reasons: list[str] = Field(examples=[["no worker is alive: start one with `uvos-worker run`"]])
    """Why the service is not ready; empty if it is."""


class Model(ModelEntry):
    """A model of the registry, and whether it can run here."""

    installed: bool
    """Whether a live worker has the weights; without a live worker, whether this machine has them."""
    install: str | None = Field(None, examples=["uvos-worker weights fetch dino-vits8"])
    """Command that installs the weights on the machine of a worker; None if they are installed."""


class ModelPage(Schema):
    default: str = Field(examples=["tiny"])
    """Default model of jobs."""
    models: list[Model]
    """All models."""


@router.get("/healthz", tags=["health"], name="healthz")
@router.get("/livez", tags=["health"])
async def livez() -> Alive:  # not in a thread, because all threads may be busy
    """Liveness: the process responds."""
    return Alive()


@router.get("/readyz", tags=["health"], responses={503: {"model": Ready, "description": "Not ready; see `reasons`."}})
def readyz(jobs: JobsDep, response: Response) -> Ready:
    """Readiness: a job would be accepted, and a worker would run it."""
    state = _readiness(jobs)
    response.status_code = 200 if state.ready else 503
    return state


def _readiness(jobs: Jobs) -> Ready:
    reasons = []
    queue = storage = True
    workers: list[WorkerInfo] = []
    try:
        workers = jobs.broker.workers()
    except redis.RedisError as error:
        queue = False
        reasons.append(f"the queue does not respond: {error}")
    try:
        jobs.storage.check()
    except OSError as error:
        storage = False
        reasons.append(f"the data folder cannot be written: {error}")
    if queue and not workers:
        reasons.append(
            f"no worker has sent a heartbeat in the last {WORKER_TTL_S} s; accepted jobs wait. Start one with "
            "`uvos-worker run` (`uvos up` starts one with the service)"
        )
    runs_jobs = any(worker.problem is None for worker in workers)
    if not runs_jobs:
        reasons += [f"worker {worker.name}: {worker.problem}" for worker in workers]
    return Ready(
        ready=queue and storage and runs_jobs,
        accepts_jobs=queue and storage,
        runs_jobs=runs_jobs,
        queue=queue,
        storage=storage,
        workers=workers,
        reasons=reasons,
    )


@router.get("/models", tags=["models"], response_model_exclude_none=True)
def models(settings: SettingsDep, jobs: JobsDep) -> ModelPage:
    """The models that a job may use: defaults, licences, sources of the weights, and whether these are installed."""
    installed = jobs.workers.installed_models()
    return ModelPage(
        default=settings.default_model,
        models=[
            Model(
                **entry.model_dump(),
                installed=name in installed,
                install=None if name in installed else install_command(name),
            )
            for name, entry in MODELS.items()
        ],
    )


@router.get("/metrics", tags=["health"], response_class=Response)
def metrics(jobs: JobsDep) -> Response:
    """Prometheus metrics of the whole service, workers included: scrape one API process."""
    try:
        return Response(render(jobs.broker), media_type=CONTENT_TYPE_PLAIN_0_0_4)
    except redis.RedisError as error:
        raise QueueUnavailable("the queue does not respond", retry_after_s=5) from error
