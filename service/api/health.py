"""Is it alive, can it accept, what does it measure, which models does it know."""

import redis
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from pydantic import Field

from service.api.dependencies import JobsDep, SettingsDep
from uvos.contract import Schema, WorkerInfo
from uvos.errors import QueueUnavailable
from uvos.models import MODELS, ModelEntry

router = APIRouter()


class Alive(Schema):
    alive: bool = True
    """Always true: a process that is not does not answer."""


class Ready(Schema):
    """Whether a job would be accepted, and who would work on it."""

    ready: bool
    """Whether a job would be accepted now."""
    queue: bool
    """Redis answers."""
    storage: bool
    """The data folder can be written."""
    workers: list[WorkerInfo]
    """Live workers; none means that jobs wait, not that they are refused."""


class ModelPage(Schema):
    default: str = Field(examples=["tiny"])
    """The model of jobs that name none."""
    models: list[ModelEntry]
    """All that this service knows."""


@router.get("/livez", tags=["health"])
async def livez() -> Alive:  # not in a thread: those may all be busy
    """The process is alive."""
    return Alive()


@router.get("/readyz", tags=["health"], responses={503: {"model": Ready, "description": "A job would be refused now."}})
def readyz(jobs: JobsDep, response: Response) -> Ready:
    """Whether a job would be accepted now."""
    queue = storage = True
    workers: list[WorkerInfo] = []
    try:
        workers = jobs.broker.workers()
    except redis.RedisError:
        queue = False
    try:
        jobs.storage.check_writable()
    except OSError:
        storage = False
    response.status_code = 200 if queue and storage else 503
    return Ready(ready=queue and storage, queue=queue, storage=storage, workers=workers)


@router.get("/models", tags=["models"], response_model_exclude_none=True)
def models(settings: SettingsDep) -> ModelPage:
    """The models that a job may name, with their defaults, licences and where their weights come from."""
    return ModelPage(default=settings.default_model, models=list(MODELS.values()))


@router.get("/metrics", tags=["health"], response_class=Response)
def metrics(jobs: JobsDep) -> Response:
    """For Prometheus: jobs waiting, jobs not ended, workers alive."""
    registry = CollectorRegistry()
    Gauge("uvos_jobs_open", "Jobs that have not ended", registry=registry).set(len(jobs.storage.open_jobs()))
    try:
        Gauge("uvos_jobs_waiting", "Jobs in the queue", registry=registry).set(jobs.broker.length())
        Gauge("uvos_workers", "Live workers", registry=registry).set(len(jobs.broker.workers()))
    except redis.RedisError as error:
        raise QueueUnavailable("the queue does not answer", retry_after_s=5) from error
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
