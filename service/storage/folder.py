"""Where uploads and results lie: the truth about every job. The only file that builds paths.

    uploads/<id>/input          an upload while it comes in
    jobs/<id>/job.json          what was asked for
    jobs/<id>/input             the video, until the job has ended
    jobs/<id>/claims/<n>        what happened n-th: an execution began (its id), or the job ended (the end)
    jobs/<id>/deaths/<n>        a worker process died of this job
    jobs/<id>/work              what each execution writes, a folder of its own for each
    jobs/<id>/end.json          how it ended, the last claim by another name; names the execution with the result
    jobs/<id>/deliveries/<n>    the n-th attempt to tell the client's own server
    open/<id>                   the job has not ended
    callbacks/<id>              somebody is still to be told how the job ended
    keys/<digest>.json          an Idempotency-Key and its job

A record is made once, by a hard link of a complete file: of two writers exactly one succeeds. That makes the claims a
log: an execution that began as claim n may end the job only as claim n + 1, so one that was overtaken, however long
it slept and wherever, can publish nothing, and whoever cancels a job is one more writer of that log.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import BaseModel

from uvos.contract import Delivery, JobEnd, JobRecord
from uvos.errors import IdempotencyConflict, JobNotFound, StorageFull

ORPHAN_AGE_S = 3600.0  # an upload or job folder that nobody finished for this long is removed
MIN_FREE_BYTES = 64 * 2**20  # room that an upload must leave, so that records can still be written


class IdempotencyRecord(BaseModel):
    """Which job a key stands for, and what it was asked to do."""

    job_id: str
    fingerprint: str


def new_job_id() -> str:
    """Unguessable, and sorted by time of creation: 48 bits of milliseconds, 80 random bits, in hex."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


class Upload:
    """A video on its way in; nothing is left of it unless it is submitted."""

    def __init__(self, folder: Path) -> None:
        self.id = folder.name
        self.folder = folder
        self.path = folder / "input"
        self.size = 0
        self._digest = hashlib.sha256()
        folder.mkdir(parents=True)
        self._file: BinaryIO = self.path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            StorageFull: there is no room for it.
        """
        with full_is_an_answer(self.folder):
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> str:
        """Make the bytes durable; their SHA-256 in hex."""
        with full_is_an_answer(self.folder):
            os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # submitted: it has been renamed away


class full_is_an_answer:  # noqa: N801  # reads as a phrase in a with statement
    """A context in which "no space left" becomes `StorageFull`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            free = 0
            with suppress(OSError):
                free = shutil.disk_usage(self.folder).free
            raise StorageFull("there is no room left to store this", actual=free, retry_after_s=60) from error


class Storage:
    """A folder that service and workers share."""

    def __init__(self, root: Path, *, result_ttl_s: int) -> None:
        self.root = root
        self.result_ttl_s = result_ttl_s
        for name in ("uploads", "jobs", "open", "keys", "callbacks"):
            (root / name).mkdir(parents=True, exist_ok=True)

    # --- submit

    def new_upload(self, expected_bytes: int | None = None) -> Upload:
        """Room for a video that comes in.

        Raises:
            StorageFull: the disk has no room for what the client announced.
        """
        free = shutil.disk_usage(self.root).free
        needed = (expected_bytes or 0) + MIN_FREE_BYTES
        if free < needed:
            raise StorageFull(
                f"this upload needs {needed} bytes of storage, {free} are free",
                limit=free,
                actual=needed,
                retry_after_s=60,
            )
        with full_is_an_answer(self.root):
            return Upload(self.root / "uploads" / new_job_id())

    def submit(self, record: JobRecord, upload: Upload, fingerprint: str) -> JobRecord:
        """Keep a job for good; with an idempotency key that is known, the job it stands for instead.

        Raises:
            IdempotencyConflict: the key was used for something else.
            StorageFull: there is no room for the record.
        """
        with full_is_an_answer(self.root):
            _write(upload.folder / "job.json", record.model_dump_json(exclude_none=True).encode())
            _sync_folder(upload.folder)
            upload.folder.rename(self._job(record.id))
            _sync_folder(self.root / "jobs")
            try:
                if record.idempotency_key is not None:
                    kept = self._take_key(record.idempotency_key, record.id, fingerprint)
                    if kept.id != record.id:
                        self.delete(record.id)
                        return kept
                if record.callback_url is not None:
                    (self.root / "callbacks" / record.id).touch()
                self.open(record.id)
            except (OSError, IdempotencyConflict):
                self.delete(record.id)
                raise
        return record

    def open(self, job_id: str) -> None:
        """Note that the job has not ended, so that it is found again whatever Redis forgets."""
        (self.root / "open" / job_id).touch()
        _sync_folder(self.root / "open")

    def _take_key(self, key: str, job_id: str, fingerprint: str) -> JobRecord:
        """The job that a key stands for: this one, unless it stands for another already."""
        path = self._key(key)
        mine = IdempotencyRecord(job_id=job_id, fingerprint=fingerprint)
        while not _create_once(path, mine.model_dump_json().encode()):
            try:
                known = IdempotencyRecord.model_validate_json(path.read_bytes())
                record, end = self.record(known.job_id), self.end(known.job_id)
            except FileNotFoundError:
                continue  # removed meanwhile
            except JobNotFound:
                path.unlink(missing_ok=True)  # whoever removed the job died before this
                continue
            if end is not None and end.expires_at <= datetime.now(UTC):
                self.delete(known.job_id)
                continue
            if known.fingerprint != fingerprint:
                raise IdempotencyConflict(
                    f"this Idempotency-Key already stands for job {known.job_id}, which has another video or parameters"
                )
            if end is None:
                self.open(record.id)  # whoever made the key may have died before this
            return record
        return self.record(job_id)

    # --- look up

    def record(self, job_id: str) -> JobRecord:
        """What was asked for.

        Raises:
            JobNotFound: there is no such job (any more).
        """
        try:
            return JobRecord.model_validate_json((self._job(job_id) / "job.json").read_bytes())
        except FileNotFoundError:
            raise JobNotFound(f"there is no job {job_id!r}") from None

    def end(self, job_id: str) -> JobEnd | None:
        """How the job ended; None while it has not."""
        try:
            return JobEnd.model_validate_json((self._job(job_id) / "end.json").read_bytes())
        except FileNotFoundError:
            return None

    def has_ended(self, job_id: str) -> bool:
        """Whether the job has ended or been removed: nobody needs to work on it."""
        folder = self._job(job_id)
        return (folder / "end.json").exists() or not (folder / "job.json").exists()

    def job_ids(self, before: str | None = None) -> list[str]:
        """All jobs, newest first; only those older than `before` where given."""
        return sorted((name for name in os.listdir(self.root / "jobs") if not before or name < before), reverse=True)

    def open_jobs(self) -> list[str]:
        """Jobs that have not ended, oldest first."""
        return sorted(os.listdir(self.root / "open"))

    def input_path(self, job_id: str) -> Path:
        return self._job(job_id) / "input"

    def result_dir(self, job_id: str, end: JobEnd) -> Path:
        """The folder of the published result."""
        assert end.execution is not None
        return self.work_dir(job_id, end.execution)

    # --- work

    def claim(self, job_id: str, execution: str) -> int:
        """Begin an execution; its number. Every later claim takes the right to publish from it.

        Raises:
            JobNotFound: the job is gone, or has ended.
        """
        folder = self._job(job_id)
        try:
            for name in ("claims", "work"):
                (folder / name).mkdir(exist_ok=True)
            while True:
                number, content = self._last_claim(job_id)
                if content.startswith(b"{"):
                    self._settle(job_id, number)
                    raise JobNotFound(f"job {job_id!r} has ended")
                if _create_once(folder / "claims" / str(number + 1), execution.encode()):
                    break
            for earlier in (folder / "work").iterdir():  # they cannot publish any more
                shutil.rmtree(earlier, ignore_errors=True)
            return number + 1
        except FileNotFoundError:
            raise JobNotFound(f"there is no job {job_id!r}") from None

    def _last_claim(self, job_id: str) -> tuple[int, bytes]:
        claims = self._job(job_id) / "claims"
        number = max((int(name) for name in os.listdir(claims) if name.isdigit()), default=0)
        return number, (claims / str(number)).read_bytes() if number else b""

    def is_superseded(self, job_id: str, claim: int) -> bool:
        """Whether a later execution has begun, or the job has ended without this one, or is gone."""
        folder = self._job(job_id)
        return (folder / "claims" / str(claim + 1)).exists() or not (folder / "job.json").exists()

    def hand_back(self, job_id: str, claim: int) -> None:
        """Note that an execution ended through no fault of the job."""
        with suppress(FileNotFoundError):
            (self._job(job_id) / "claims" / f"{claim}.back").touch()

    def lost_executions(self, job_id: str) -> int:
        """How many executions began and were not handed back."""
        names = os.listdir(self._job(job_id) / "claims")
        return sum(name.isdigit() for name in names) - sum(name.endswith(".back") for name in names)

    def count_death(self, job_id: str) -> int:
        """Note that a worker process died of this job; how often that has happened."""
        deaths = self._job(job_id) / "deaths"
        with suppress(FileNotFoundError):
            deaths.mkdir(exist_ok=True)
            number = 1
            while not _create_once(deaths / str(number), b""):
                number += 1
            return number
        return 0

    def work_dir(self, job_id: str, execution: str) -> Path:
        """Where an execution writes; published as it is once `finish` names it."""
        return self._job(job_id) / "work" / execution

    def drop_work(self, job_id: str, execution: str) -> None:
        """Remove what an execution wrote."""
        shutil.rmtree(self.work_dir(job_id, execution), ignore_errors=True)

    def finish(self, job_id: str, end: JobEnd, *, claim: int | None = None) -> bool:
        """Write how the job ended, once; whether this is the end that counts.

        Args:
            claim: The execution that ends it: no other may have begun since. None ends it whoever works on it.
        """
        claims = self._job(job_id) / "claims"
        content = end.model_dump_json(exclude_none=True).encode()
        try:
            if end.execution is not None:
                _sync_tree(self.work_dir(job_id, end.execution))
            claims.mkdir(exist_ok=True)
            while True:
                last, known = self._last_claim(job_id)
                if known.startswith(b"{"):
                    self._settle(job_id, last)
                    return False
                if claim is not None and last != claim:
                    return False
                if _create_once(claims / str(last + 1), content):
                    with suppress(OSError):  # it has ended, whatever cannot be cleared away now
                        self._settle(job_id, last + 1)
                    return True
        except FileNotFoundError:
            return False  # deleted meanwhile

    def _settle(self, job_id: str, number: int) -> None:
        """Give the claim that ended the job its second name; whoever comes by finishes what a dead process began."""
        folder = self._job(job_id)
        with suppress(FileExistsError):
            os.link(folder / "claims" / str(number), folder / "end.json")
            _sync_folder(folder)
        self.tidy(job_id)

    def tidy(self, job_id: str) -> None:
        """Remove what an ended job no longer needs: the upload, and the files of executions that did not count."""
        end = self.end(job_id)
        if end is None:
            if not (self._job(job_id) / "job.json").exists():
                (self.root / "open" / job_id).unlink(missing_ok=True)  # deleted while somebody noted it as open
            return
        self.input_path(job_id).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            for folder in (self._job(job_id) / "work").iterdir():
                if folder.name != end.execution:
                    shutil.rmtree(folder, ignore_errors=True)
        (self.root / "open" / job_id).unlink(missing_ok=True)

    # --- tell

    def callbacks(self) -> list[str]:
        """Jobs whose end is still to be told to somebody."""
        return os.listdir(self.root / "callbacks")

    @contextmanager
    def callback_turn(self, job_id: str) -> Iterator[bool]:
        """Whether it is this process's turn to tell: one at a time; the kernel takes the turn back from the dead."""
        try:
            marker = (self.root / "callbacks" / job_id).open("rb")
        except FileNotFoundError:
            yield False
            return
        with marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = True
            except BlockingIOError:
                is_ours = False
            yield is_ours

    def last_delivery(self, job_id: str) -> Delivery | None:
        """The latest attempt."""
        folder = self._job(job_id) / "deliveries"
        with suppress(FileNotFoundError):
            numbers = [int(name) for name in os.listdir(folder) if name.isdigit()]
            if numbers:
                return Delivery.model_validate_json((folder / str(max(numbers))).read_bytes())
        return None

    def note_delivery(self, job_id: str, delivery: Delivery) -> None:
        folder = self._job(job_id) / "deliveries"
        with suppress(FileNotFoundError):
            folder.mkdir(exist_ok=True)
            _create_once(folder / str(delivery.attempt), delivery.model_dump_json(exclude_none=True).encode())

    def end_callback(self, job_id: str) -> None:
        """Nobody is to be told any more."""
        (self.root / "callbacks" / job_id).unlink(missing_ok=True)

    # --- remove

    def delete(self, job_id: str) -> None:
        """Remove a job with everything it has, its idempotency key included."""
        (self.root / "open" / job_id).unlink(missing_ok=True)
        self.end_callback(job_id)
        with suppress(JobNotFound, FileNotFoundError):
            key = self.record(job_id).idempotency_key
            if key is not None and json.loads(self._key(key).read_bytes())["job_id"] == job_id:
                self._key(key).unlink(missing_ok=True)
        # one rename makes it unseen at once, whatever comes after
        grave = self.root / "uploads" / f"{job_id}.{secrets.token_hex(4)}.gone"
        with suppress(FileNotFoundError):
            self._job(job_id).rename(grave)
        shutil.rmtree(grave, ignore_errors=True)

    def sweep(self, now: datetime | None = None) -> list[str]:
        """Remove jobs past their time and what broken uploads left; the ids of the jobs removed."""
        now = now or datetime.now(UTC)
        removed = []
        for job_id in self.job_ids():
            end = self.end(job_id)
            if end is not None and end.expires_at <= now:
                self.delete(job_id)
                removed.append(job_id)
            elif end is None and not (self.root / "open" / job_id).exists() and self._is_old(self._job(job_id), now):
                self.delete(job_id)
        for folder in (self.root / "uploads").iterdir():
            if self._is_old(folder, now):
                shutil.rmtree(folder, ignore_errors=True)
        for draft in (self.root / "keys").glob(".*"):
            if self._is_old(draft, now):
                draft.unlink(missing_ok=True)
        return removed

    def _is_old(self, path: Path, now: datetime) -> bool:
        """Whether nobody has touched it, or what lies in it, for long."""
        with suppress(FileNotFoundError):
            inside = path.iterdir() if path.is_dir() else ()
            newest: float = max(one.stat().st_mtime for one in (path, *inside))
            return now.timestamp() - newest > ORPHAN_AGE_S
        return False

    def check(self) -> None:
        """Raise OSError where the folder cannot be written."""
        probe = self.root / "uploads" / f".probe-{secrets.token_hex(4)}"
        probe.write_bytes(b"1")
        probe.unlink()

    def _key(self, digest: str) -> Path:
        return self.root / "keys" / f"{digest}.json"

    def _job(self, job_id: str) -> Path:
        if not job_id.isalnum() or len(job_id) > 64:  # an id never leaves its folder
            raise JobNotFound(f"there is no job {job_id[:64]!r}")
        return self.root / "jobs" / job_id


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create_once(path: Path, data: bytes) -> bool:
    """Create a file with this content unless it exists; readers see it whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        _write(draft, data)
        os.link(draft, path)
    except FileExistsError:
        return False
    else:
        with suppress(OSError):  # made is made: whoever looks sees it
            _sync_folder(path.parent)
        return True
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
