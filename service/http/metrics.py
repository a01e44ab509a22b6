"""Count requests by method, route and status, measure their latency, and count refused uploads by problem type."""

import json
import time
from contextlib import suppress

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.jobs.metrics import Instruments

NO_ROUTE = "none"  # one label for all unknown paths, of which there is no end
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class RequestMetrics:
    """ASGI middleware around all others, so that it also sees the requests that they reject."""

    def __init__(self, app: ASGIApp, *, instruments: Instruments) -> None:
        self.app = app
        self._instruments = instruments
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}  # `labels` takes 30 µs a request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_at = time.perf_counter()
        is_refused = False

        async def observe(message: Message) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start":
                self._count(scope, message["status"], time.perf_counter() - started_at)
                is_refused = message["status"] >= 400 and _is_upload(scope)
            elif is_refused and message["type"] == "http.response.body":
                is_refused = False
                self._instruments.uploads_refused.labels(_problem_type(message.get("body", b""))).inc()
            await send(message)

        await self.app(scope, receive, observe)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else "other"
        key = method, getattr(scope.get("route"), "path", NO_ROUTE), status
        if key not in self._series:
            self._series[key] = self._find_series(*key)
        requests, latency = self._series[key]
        requests.inc()
        query = scope["query_string"]
        if not query or not (query.startswith(b"wait=") or b"&wait=" in query):
            latency.observe(seconds)

    def _find_series(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        requests = self._instruments.http_requests.labels(method, route, str(status))
        return requests, self._instruments.http_seconds.labels(method, route)


def _is_upload(scope: Scope) -> bool:
    return bool(scope["method"] == "POST" and scope["path"].endswith("/segment"))


def _problem_type(body: bytes) -> str:
    """The last part of the type of a problem."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["type"]).rsplit("/", 1)[-1]
    return "other"
