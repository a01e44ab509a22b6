"""Refuse what can be refused before a body is read: no key, a foreign page, too many jobs, too large, no room.

Endpoints run after the body has begun to come in; this small ASGI layer stands before them.
"""

from collections import Counter
from collections.abc import Collection

from anyio import to_thread
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import respond
from service.http.api_keys import Keys
from service.http.csrf import check_page
from service.jobs.jobs import Jobs
from uvos.errors import KeyRequired, TooManyJobs, UploadTooLarge, UvosError

FORM_OVERHEAD = 2**20  # bytes of a form beside the video
PUBLIC = {"/", "/livez", "/readyz", "/metrics", "/models", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
PUBLIC_FOLDERS = ("/page/", "/problems/")  # everything else needs a key, where keys are asked for


class Admission:
    """Stands before the app; tells it whose request it is as `scope["uvos.owner"]`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_upload_bytes: int,
        keys: Keys | None = None,
        allowed_hosts: Collection[str] = (),
        max_queued_per_key: int = 100,
    ) -> None:
        self.app = app
        self.limit = max_upload_bytes
        self.keys = keys
        self.allowed_hosts = {name.lower() for name in allowed_hosts}
        self.max_queued_per_key = max_queued_per_key
        self._incoming: Counter[str] = Counter()  # uploads on their way, by owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            owner = self._owner(scope)
            scope["uvos.owner"] = owner
            if scope["method"] == "POST" and scope["path"] == "/segment":
                await self._admit(scope)
                if owner is not None:
                    await self._take(owner, scope, receive, send)
                    return
        except UvosError as error:
            await self._refuse(error, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _owner(self, scope: Scope) -> str | None:
        """Whose key it is; None where no keys are asked for, or none is needed.

        Raises:
            KeyRequired: there is none, or an unknown one.
            HostNotAllowed, ForeignPage: there are no keys, and a browser asks for a page that is not ours.
        """
        if self.keys is None:
            check_page(scope["method"], dict(scope["headers"]), self.allowed_hosts)
            return None
        path = scope["path"]
        if path in PUBLIC or path.startswith(PUBLIC_FOLDERS):
            return None
        return self.keys.owner_of(dict(scope["headers"]).get(b"authorization", b"").decode("latin-1"))

    async def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.limit + FORM_OVERHEAD:
            raise UploadTooLarge(
                f"the upload is {int(length)} bytes, at most {self.limit} may be", limit=self.limit, actual=int(length)
            )
        jobs: Jobs = scope["state"]["jobs"]
        await to_thread.run_sync(jobs.check_room)

    async def _take(self, owner: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the upload in if its owner may have one more job, and tell how many more."""
        jobs: Jobs = scope["state"]["jobs"]
        limit = self.max_queued_per_key
        self._incoming[owner] += 1  # at once: of many that come together, no more than fit get in
        try:
            used = await to_thread.run_sync(jobs.open_of, owner) + self._incoming[owner]

            async def send_with_limits(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers["RateLimit-Policy"] = f'"jobs";q={limit};qu="concurrent-requests"'
                    headers["RateLimit"] = f'"jobs";r={max(0, limit - used)}'
                await send(message)

            if used > limit:
                error = TooManyJobs(
                    f"{limit} jobs of this key have not ended, more may not be",
                    limit=limit,
                    actual=limit,
                    retry_after_s=10,
                )
                await self._refuse(error, scope, receive, send_with_limits)
                return
            await self.app(scope, receive, send_with_limits)
        finally:
            self._incoming[owner] -= 1
            if not self._incoming[owner]:
                del self._incoming[owner]

    async def _refuse(self, error: UvosError, scope: Scope, receive: Receive, send: Send) -> None:
        response = respond(error)
        if isinstance(error, KeyRequired):
            response.headers["WWW-Authenticate"] = "Bearer"
        response.headers["Connection"] = "close"  # a body will not be read
        await response(scope, receive, send)
