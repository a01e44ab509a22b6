"""The prefix /v1: every path of the service, with and without it, is the same endpoint.

Links in responses have no prefix: they resolve against the host, and joined to a base URL that ends in /v1 they are
valid as well.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/v1"


class VersionPrefix:
    """ASGI middleware that removes the prefix from the path of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(f"{PREFIX}/"):
            raw_path: bytes = scope["raw_path"]
            scope = {**scope, "path": scope["path"].removeprefix(PREFIX), "raw_path": raw_path[len(PREFIX) :]}
        await self.app(scope, receive, send)
