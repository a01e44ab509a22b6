"""The FastAPI application and its server, built from settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TypedDict

import uvicorn
from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from service.api import events, health, jobs, objects, page, pixels, problem_types, problems, results, segment
from service.http.admission import Admission
from service.http.api_keys import LOOPBACK, ApiKeys
from service.http.metrics import RequestMetrics
from service.http.timeouts import Timeouts, protocol
from service.http.versions import PREFIX, VersionPrefix
from service.jobs.events import Listener
from service.jobs.jobs import Jobs
from service.jobs.metrics import Instruments, Publisher
from service.jobs.queue import Broker, connect
from service.jobs.renders import Renders
from service.jobs.webhooks import Schedule, Webhooks
from service.settings import Settings
from service.storage.folder import Storage
from uvos.contract import Problem
from uvos.errors import ForeignPage, HostNotAllowed, KeyRequired

DESCRIPTION = """Turns any video into object masks, without labels and without clicks.

Send a video to `POST /segment`, poll `GET /jobs/{job_id}` until its status is `succeeded`, and follow its links.
Every error is an RFC 9457 problem with a stable `type`, the limit and the actual value.

The method is *Betrayed by Attention* (Ding et al., ECCV 2024, arXiv:2311.17893)."""

BEARER = HTTPBearer(auto_error=False, description="API key, if the service requires one.")  # `Admission` checks it
GRACEFUL_SHUTDOWN_S = 5


class State(TypedDict):
    """State that the lifespan opens and endpoints use."""

    settings: Settings
    jobs: Jobs
    listener: Listener
    renders: Renders


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application.

    Raises:
        ValueError: `redis_url` is missing, or the service requires API keys and has none.
    """
    settings = settings or Settings()
    if settings.redis_url is None:
        raise ValueError("UVOS_REDIS_URL is not set: set it, or run `uvos up`, which starts a Redis server")
    redis_url = settings.redis_url.get_secret_value()
    keys = _api_keys(settings)
    instruments = Instruments()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        connection = connect(redis_url)
        listener = Listener(redis_url, lambda: app.state.is_stopping())
        storage = Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
        broker = Broker(connection, job_timeout_s=settings.job_timeout_s)
        service = Jobs(storage, broker, settings, instruments)
        webhooks = _webhooks(settings, service)
        publisher = Publisher(instruments, connection)
        publisher.start()
        renders = Renders()
        try:
            yield State(settings=settings, jobs=service, listener=listener, renders=renders)
        finally:
            await renders.close()
            if webhooks is not None:
                webhooks.stop()
            publisher.stop()
            await listener.close()
            connection.close()

    app = FastAPI(
        title="uvos",
        summary="Unsupervised video object segmentation as a service",
        description=DESCRIPTION,
        version=version("uvos"),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/"}, {"url": PREFIX}],
        lifespan=lifespan,
        docs_url=None,  # service/api/page.py serves /docs: the page of FastAPI loads scripts from a CDN
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # function names in generated clients
    )
    app.state.is_stopping = lambda: False  # `create_server` replaces it
    problems.install(app)
    app.add_middleware(
        Admission,
        max_upload_bytes=settings.max_upload_bytes,
        keys=keys,
        allowed_hosts=settings.allowed_hosts,
        max_queued_per_key=settings.max_queued_per_key,
    )
    app.add_middleware(RequestMetrics, instruments=instruments)
    app.add_middleware(VersionPrefix)  # added last, so it runs first
    for routes in (segment, jobs, events, objects, results, pixels):
        rejected = problems.problems(KeyRequired, HostNotAllowed, ForeignPage)
        app.include_router(routes.router, responses=rejected, dependencies=[Security(BEARER)])
    for routes in (health, problem_types, page):
        app.include_router(routes.router, responses=problems.problems(HostNotAllowed))
    _add_problem_schema(app)
    return app


def create_server(settings: Settings, *, timeouts: Timeouts) -> uvicorn.Server:
    """Build the application and the server that runs it on `settings.host` and `settings.port`."""
    app = create_app(settings)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=protocol(timeouts),  # on h11, which limits the size of headers; httptools accepts 200 MiB of them
            log_config=None,  # the log lines of uvicorn, too, have the format of `configure_logging`
            log_level="warning",
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        )
    )
    app.state.is_stopping = lambda: server.should_exit  # ends event streams and long polls
    return server


def _api_keys(settings: Settings) -> ApiKeys | None:
    """The API keys; None if the service requires none.

    Raises:
        ValueError: the service requires API keys and has none.
    """
    setting = settings.api_keys.get_secret_value() if settings.api_keys else None
    keys = ApiKeys(setting, settings.keys_file)
    required = settings.require_key
    if required is None:
        required = bool(keys) or settings.host not in LOOPBACK
    if required and not keys:
        raise ValueError(
            f"a service on {settings.host} requires API keys and has none: create one with `uvos keys new NAME`, or "
            "set UVOS_REQUIRE_KEY=false if every client that can reach it may use it"
        )
    return keys if required else None


def _webhooks(settings: Settings, jobs: Jobs) -> Webhooks | None:
    """Started webhook delivery; None if webhooks are off."""
    if settings.webhook_secret is None:
        return None
    webhooks = Webhooks(
        jobs.storage,
        secret=settings.webhook_secret.get_secret_value(),
        networks=settings.webhook_networks,
        view=lambda job_id: jobs.view(jobs.storage.load(job_id)),
        schedule=Schedule(settings.webhook_poll_interval_s, settings.webhook_retry_delays_s),
    )
    webhooks.start()
    return webhooks


def _add_problem_schema(app: FastAPI) -> None:
    """Add the schema of problems to OpenAPI; the responses of every endpoint refer to it."""
    generate = app.openapi

    def openapi() -> dict[str, object]:
        schema = generate()
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents to extend the schema
