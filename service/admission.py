"""Refuse an upload before its body is read: too large by its own word, or no room in the queue.

Endpoints run after the body has begun to come in; this small ASGI layer stands before them.
"""

from anyio import to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import UploadTooLarge, UvosError
from service.jobs import Jobs
from service.problems import respond

FORM_OVERHEAD = 2**20  # bytes of a form beside the video


class Admission:
    def __init__(self, app: ASGIApp, *, max_upload_bytes: int) -> None:
        self.app = app
        self.limit = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == "/segment":
            try:
                await self._admit(scope)
            except UvosError as error:
                response = respond(error)
                response.headers["Connection"] = "close"  # the body will not be read
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.limit + FORM_OVERHEAD:
            raise UploadTooLarge(
                f"the upload is {int(length)} bytes, at most {self.limit} may be", limit=self.limit, actual=int(length)
            )
        jobs: Jobs = scope["state"]["jobs"]
        await to_thread.run_sync(jobs.check_room)
