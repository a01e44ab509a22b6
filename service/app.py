"""The application: settings in, FastAPI app out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from service.api import events, health, jobs, page, problems, results, segment
from service.api import problem_types as kinds
from service.http.admission import Admission
from service.http.api_keys import LOOPBACK, Keys
from service.jobs.events import Listener
from service.jobs.jobs import Jobs
from service.jobs.queue import Broker, connect
from service.jobs.webhooks import Webhooks
from service.settings import Settings
from service.storage.folder import Storage
from uvos.contract import Problem
from uvos.errors import ForeignPage, HostNotAllowed, KeyRequired

DESCRIPTION = """Turns any video into object masks, with no labels and no clicks.

Send a video to `POST /segment`, poll `GET /jobs/{job_id}` until its status is `succeeded`, follow its links.
Every failure is an RFC 9457 problem with a stable `type`, the limit and the actual value.

The method is *Betrayed by Attention* (Ding et al., ECCV 2024, arXiv:2311.17893)."""

BEARER = HTTPBearer(auto_error=False, description="An API key, where the service asks for one.")  # `Admission` checks


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
    keys = _keys(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        connection = connect(redis_url)
        listener = Listener(redis_url, lambda: app.state.is_stopping())
        storage = Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
        found = Jobs(storage, Broker(connection, job_timeout_s=settings.job_timeout_s), settings)
        webhooks = _webhooks(settings, found)
        try:
            yield State(settings=settings, jobs=found, listener=listener)
        finally:
            if webhooks is not None:
                webhooks.stop()
            await listener.close()
            connection.close()

    app = FastAPI(
        title="uvos",
        summary="Unsupervised video object segmentation as a service",
        description=DESCRIPTION,
        version=version("uvos"),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        docs_url=None,  # /docs is a page of ours: FastAPI's loads scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # the names of functions in generated clients
    )
    app.state.is_stopping = lambda: False  # the command line tells when its server is
    problems.install(app)
    app.add_middleware(
        Admission,
        max_upload_bytes=settings.max_upload_bytes,
        keys=keys,
        allowed_hosts=settings.allowed_hosts,
        max_queued_per_key=settings.max_queued_per_key,
    )
    for routes in (segment, jobs, events, results):
        refused = problems.problems(KeyRequired, HostNotAllowed, ForeignPage)
        app.include_router(routes.router, responses=refused, dependencies=[Security(BEARER)])
    for routes in (health, kinds, page):
        app.include_router(routes.router, responses=problems.problems(HostNotAllowed))
    _name_problem_schema(app)
    return app


def _keys(settings: Settings) -> Keys | None:
    """Who may ask; None where nobody needs a key.

    Raises:
        ValueError: a key is needed and there is none.
    """
    listed = settings.api_keys.get_secret_value() if settings.api_keys else None
    keys = Keys(listed, settings.keys_file)
    required = settings.require_key
    if required is None:
        required = bool(keys) or settings.host not in LOOPBACK
    if required and not keys:
        raise ValueError(
            f"on {settings.host} the service needs API keys: make one with `uvos keys new NAME`, or set "
            "UVOS_REQUIRE_KEY=false where everyone who can reach it may use it"
        )
    return keys if required else None


def _webhooks(settings: Settings, jobs: Jobs) -> Webhooks | None:
    """Delivers what is to be told, where webhooks are on."""
    if settings.webhook_secret is None:
        return None
    webhooks = Webhooks(
        jobs.storage,
        secret=settings.webhook_secret.get_secret_value(),
        networks=settings.webhook_networks,
        view=lambda job_id: jobs.view(jobs.storage.record(job_id)),
    )
    webhooks.start()
    return webhooks


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
