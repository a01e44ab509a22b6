"""The application: settings in, FastAPI app out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

from fastapi import FastAPI

from service import problems
from service.admission import Admission
from service.broker import Broker, connect
from service.contract import Problem
from service.events import Listener
from service.jobs import Jobs
from service.routes import events, health, jobs, page, results, segment
from service.settings import Settings
from service.storage import Storage

DESCRIPTION = """Turns any video into object masks, with no labels and no clicks.

Send a video to `POST /segment`, poll `GET /jobs/{job_id}` until its status is `succeeded`, follow its links.
Every failure is an RFC 9457 problem with a stable `type`, the limit and the actual value.

The method is *Betrayed by Attention* (Ding et al., ECCV 2024, arXiv:2311.17893)."""


class State(TypedDict):
    """What the lifespan opens and requests use."""

    settings: Settings
    jobs: Jobs
    listener: Listener


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service for these settings; `redis_url` must be given, since an API alone starts no queue."""
    settings = settings or Settings()
    if settings.redis_url is None:
        raise ValueError("the API needs UVOS_REDIS_URL; `uvos up` starts a queue of its own")
    redis_url = settings.redis_url.get_secret_value()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        connection = connect(redis_url)
        listener = Listener(redis_url)
        storage = Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
        try:
            yield State(
                settings=settings,
                jobs=Jobs(storage, Broker(connection, job_timeout_s=settings.job_timeout_s), settings),
                listener=listener,
            )
        finally:
            await listener.close()
            connection.close()

    app = FastAPI(
        title="uvos",
        summary="Unsupervised video object segmentation as a service",
        description=DESCRIPTION,
        version=version("uvos"),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(Admission, max_upload_bytes=settings.max_upload_bytes)
    for routes in (segment, jobs, events, results, health, page):
        app.include_router(routes.router)
    _name_problem_schema(app)
    return app


def _name_problem_schema(app: FastAPI) -> None:
    """Put the schema of problems into OpenAPI, where every endpoint refers to it."""
    made = app.openapi

    def openapi() -> dict[str, object]:
        schema = made()
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
