"""Files with pixels of the video, rendered on request by a process and kept with the job."""

import asyncio
import hashlib
import logging
import sys
from contextlib import suppress
from pathlib import Path

from service.jobs.results import ResultLevel
from service.rendering.request import NO_SPACE, Product, RenderRequest
from uvos.errors import InternalError, JobNotFound, RenderPending, ResultNotFound, StorageFull

log = logging.getLogger(__name__)

WAIT_S = 45.0  # for a file, before the client is asked to come back; below the read timeout of common clients
RETRY_AFTER_S = 3
TIMEOUT_S = 1800.0  # of a process
PROCESSES = 1  # at the same time; a worker usually needs the cores more
MAX_PENDING = 16
FILES_PER_JOB = 8  # the least recently requested ones are removed beyond it


class Renders:
    """The rendering processes of this API, and the files that they have written."""

    def __init__(self, *, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(PROCESSES)
        self._tasks: dict[Path, asyncio.Task[None]] = {}

    async def file(self, level: ResultLevel, product: Product, object_id: int | None = None) -> Path:
        """The file, rendered unless the job has it.

        Raises:
            ResultNotFound: The job has no frames, or the level no such object.
            RenderPending: It takes longer; the process continues.
            StorageFull: The disk is full.
            JobNotFound: The job was deleted.
        """
        request = await asyncio.to_thread(_request, level, product, object_id)
        if await asyncio.to_thread(request.out.exists):
            with suppress(OSError):
                request.out.touch()  # among the most recently requested ones
            return request.out
        task = self._tasks.get(request.out)
        if task is None:
            if len(self._tasks) >= MAX_PENDING:
                raise RenderPending(f"{MAX_PENDING} files are being rendered", retry_after_s=RETRY_AFTER_S)
            task = self._tasks[request.out] = asyncio.create_task(self._render(request))
            task.add_done_callback(lambda done: self._forget(request.out, done))
        done, _ = await asyncio.wait([task], timeout=self._wait_s)
        if not done:
            raise RenderPending(f"{product} is being rendered", retry_after_s=RETRY_AFTER_S)
        task.result()
        return request.out

    def _forget(self, path: Path, task: "asyncio.Task[None]") -> None:
        del self._tasks[path]
        if not task.cancelled():
            task.exception()  # retrieved even if no request waits any more

    async def close(self) -> None:
        """Stop all processes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _render(self, request: RenderRequest) -> None:
        async with self._slots:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "service.rendering", request.model_dump_json()),
                stdin=asyncio.subprocess.PIPE,  # the process exits when it closes
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stderr is not None
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    errors = await process.stderr.read()
                    status = await process.wait()
            except TimeoutError:
                errors, status = f"it took longer than {TIMEOUT_S:g} s".encode(), -1
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        await asyncio.to_thread(_check, request, status, errors.decode(errors="replace"))
        await asyncio.to_thread(_purge, request.out.parent)


def _request(level: ResultLevel, product: Product, object_id: int | None) -> RenderRequest:
    """The request, with the folder for its file.

    Raises:
        ResultNotFound: The job has no frames, or the level no such object.
        JobNotFound: The job was deleted.
    """
    result = level.result
    if not (result.folder / "frames").is_dir():
        result.shared_file("source.mp4")
    visible = [item.id for item in level.summary.objects]
    if object_id is not None and object_id not in visible:
        listing = ", ".join(map(str, visible[:20])) or "none"
        raise ResultNotFound(
            f"this level shows no object {object_id}: it shows {listing}", limit=listing, actual=object_id
        )
    folder = result.storage.renders_dir(result.job.id)
    with suppress(FileExistsError):
        try:
            folder.mkdir()
        except FileNotFoundError:
            raise JobNotFound(f"there is no job {result.job.id!r}") from None
    digest = hashlib.sha256(level.tag(f"{product}-{object_id}").encode()).hexdigest()[:16]
    return RenderRequest(
        product=product,
        folder=result.folder.resolve(),
        level=level.name,
        state=level.edits.state,
        object_id=object_id,
        out=folder.resolve() / f"{digest}-{product}",
    )


def _check(request: RenderRequest, status: int, errors: str) -> None:
    """Raise the error of a process that failed."""
    if status == 0:
        return
    if not request.folder.exists():
        raise JobNotFound("the job was deleted while its file was being rendered")
    if status == NO_SPACE:
        raise StorageFull("no space left on the storage disk", retry_after_s=60)
    log.error("rendering %s failed with status %s: %s", request.out, status, errors)
    raise InternalError(f"{request.product} cannot be rendered; the log of the service has the reason")


def _purge(folder: Path) -> None:
    """Remove the least recently requested files beyond the limit."""
    with suppress(FileNotFoundError):
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
        for path in sorted(files, key=lambda path: path.stat().st_mtime)[:-FILES_PER_JOB]:
            path.unlink(missing_ok=True)
