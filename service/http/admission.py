"""Admission control: reject requests before their body is read.

Covers a missing API key, cross-site requests, too many jobs, too large uploads and a full queue. FastAPI runs
dependencies after it has started to read the body; this ASGI middleware runs before.
"""

from collections import Counter
from collections.abc import Collection

from anyio import to_thread
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import respond
from service.http.api_keys import ApiKeys
from service.http.csrf import check_origin
from service.jobs.jobs import Jobs
from uvos.errors import KeyRequired, TooManyJobs, UploadTooLarge, UvosError

MAX_PATCH_BYTES = 2**16  # a hundred operations on all objects of a level
FORM_OVERHEAD = 2**20  # bytes of a multipart form besides the video
PUBLIC = {"/", "/livez", "/healthz", "/readyz", "/metrics", "/models", "/docs", "/openapi.json"}
PUBLIC_FOLDERS = ("/page/", "/problems/")  # every other path requires a key, if the service requires keys


class Admission:
    """ASGI middleware that admits requests and sets `scope["uvos.owner"]`, the owner of the API key."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_upload_bytes: int,
        keys: ApiKeys | None = None,
        allowed_hosts: Collection[str] = (),
        max_queued_per_key: int = 100,
    ) -> None:
        self.app = app
        self.max_upload_bytes = max_upload_bytes
        self.keys = keys
        self.allowed_hosts = {name.lower() for name in allowed_hosts}
        self.max_queued_per_key = max_queued_per_key
        self._uploading: Counter[str] = Counter()  # uploads in progress, by owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            owner = self._owner(scope)
            scope["uvos.owner"] = owner
            if scope["method"] == "POST" and scope["path"] == "/segment":
                await self._check_upload(scope)
                if owner is not None:
                    await self._admit_within_quota(owner, scope, receive, send)
                    return
            if scope["method"] == "PATCH":
                _check_patch(dict(scope["headers"]).get(b"content-length", b""))
        except UvosError as error:
            await self._reject(error, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _owner(self, scope: Scope) -> str | None:
        """Owner of the API key; None if the service or the path requires no key.

        Raises:
            KeyRequired: the key is missing or unknown.
            HostNotAllowed, ForeignPage: the service requires no key, and a browser sends a cross-site request.
        """
        headers = dict(scope["headers"])
        if self.keys is None:
            check_origin(scope["method"], headers, self.allowed_hosts)
            return None
        path = scope["path"]
        if path in PUBLIC or path.startswith(PUBLIC_FOLDERS):
            return None
        return self.keys.owner_of(headers.get(b"authorization", b"").decode("latin-1"))

    async def _check_upload(self, scope: Scope) -> None:
        """Check the announced size and the length of the queue.

        Raises:
            UploadTooLarge: Content-Length exceeds the limit.
            QueueUnavailable, QueueFull: the job could not be queued.
        """
        length, limit = dict(scope["headers"]).get(b"content-length", b""), self.max_upload_bytes
        if length.isdigit() and int(length) > limit + FORM_OVERHEAD:
            raise UploadTooLarge(
                f"the upload has {int(length)} bytes, the limit is {limit}", limit=limit, actual=int(length)
            )
        jobs: Jobs = scope["state"]["jobs"]
        await to_thread.run_sync(jobs.check_room)

    async def _admit_within_quota(self, owner: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the upload if the owner may have one more job; adds RateLimit headers to the response."""
        jobs: Jobs = scope["state"]["jobs"]
        limit = self.max_queued_per_key
        self._uploading[owner] += 1  # before the count below, so that concurrent uploads count each other
        try:
            used = await to_thread.run_sync(jobs.open_of, owner) + self._uploading[owner]

            async def send_with_limits(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers["RateLimit-Policy"] = f'"jobs";q={limit};qu="concurrent-requests"'
                    headers["RateLimit"] = f'"jobs";r={max(0, limit - used)}'
                await send(message)

            if used > limit:
                detail = f"this API key has {limit} jobs that have not ended, the limit is {limit}"
                error = TooManyJobs(detail, limit=limit, actual=limit, retry_after_s=10)
                await self._reject(error, scope, receive, send_with_limits)
                return
            await self.app(scope, receive, send_with_limits)
        finally:
            self._uploading[owner] -= 1
            if not self._uploading[owner]:
                del self._uploading[owner]

    async def _reject(self, error: UvosError, scope: Scope, receive: Receive, send: Send) -> None:
        response = respond(error)
        if isinstance(error, KeyRequired):
            response.headers["WWW-Authenticate"] = "Bearer"
        response.headers["Connection"] = "close"  # the body is not read
        await response(scope, receive, send)


def _check_patch(length: bytes) -> None:
    """Check the announced size of the body of a PATCH, which is read into memory.

    Raises:
        UploadTooLarge: Content-Length is missing or exceeds the limit.
    """
    if not length.isdigit() or int(length) > MAX_PATCH_BYTES:
        actual = int(length) if length.isdigit() else None
        size = "no Content-Length" if actual is None else f"{actual} bytes"
        raise UploadTooLarge(
            f"the body of a PATCH may have at most {MAX_PATCH_BYTES} bytes, this one has {size}",
            limit=MAX_PATCH_BYTES,
            actual=actual,
        )
