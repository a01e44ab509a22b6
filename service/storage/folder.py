"""Storage: the authoritative record of every job, under these keys. Only this package builds them.

    uploads/<id>/input          an upload in progress
    jobs/<id>/job.json          the request
    jobs/<id>/input             the video, until the job has ended
    jobs/<id>/claims/<n>        entry n of the claim log: an execution began, or the job ended
    jobs/<id>/crashes/<n>       crash n of a worker process while it ran this job
    jobs/<id>/work/<execution>  output of one execution
    jobs/<id>/end.json          the end of the job, a copy of the last claim; names the execution with the result
    jobs/<id>/renders/<file>    file with pixels of the video, rendered on request
    jobs/<id>/edits/<tau>/<n>   version n of the edits of a level
    jobs/<id>/deliveries/<n>    attempt n to deliver the webhook
    open/<id>                   marker: the job has not ended
    callbacks/<id>              marker: the webhook of the job has not been delivered
    keys/<digest>.json          the job of an Idempotency-Key

Records are created once, complete and synced (`Store.create`), and never changed. A record that cannot be parsed
(a damaged disk, a manual edit) makes its job a failed one with the problem `JobDamaged`; it does not affect other jobs.
A damaged `end.json` is restored from the claim log if that is intact.
"""

import logging
import secrets
import shutil
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ValidationError

from service.storage.claims import ClaimLog, EndClaim, ExecutionClaim, UnreadableClaim
from service.storage.durable import storage_full_errors, write_synced
from service.storage.edits import EditLog
from service.storage.local import FolderStore, is_older
from service.storage.store import Store
from service.storage.uploads import Upload, is_in_progress
from uvos.contract import Delivery, JobEnd, JobParams, JobRecord, Motion, Status
from uvos.errors import IdempotencyConflict, JobDamaged, JobNotFound, StorageFull

log = logging.getLogger(__name__)

ORPHAN_AGE_S = 3600.0  # an upload or job folder without progress for this long belongs to a process that died
MIN_FREE_BYTES = 64 * 2**20  # space that an upload must leave free for the records of jobs
MAX_ID_LENGTH = 64


class IdempotencyRecord(BaseModel):
    """The job that an Idempotency-Key was first used for."""

    job_id: str
    fingerprint: str
    """Digest of the video and the parameters."""


@dataclass(frozen=True)
class StoredJob:
    """A job as storage has it."""

    record: JobRecord
    end: JobEnd | None
    """None while it has not ended."""


def new_job_id() -> str:
    """An unguessable id that sorts by creation time: 48 bits of milliseconds and 80 random bits, in hex."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


class Storage:
    """The records and files of jobs, which the API and the workers share."""

    def __init__(self, root: Path, *, result_ttl_s: int) -> None:
        """Open storage.

        Args:
            root: The data folder.
            result_ttl_s: How long the results of a job are kept.
        """
        self.root = root
        self.result_ttl_s = result_ttl_s
        self.store: Store = FolderStore(root)
        self._reported: set[str] = set()

    # --- submit

    def new_upload(self, expected_bytes: int | None = None) -> Upload:
        """Begin an upload.

        Args:
            expected_bytes: The size that the client announced, if it did.

        Raises:
            StorageFull: The disk has less free space than the upload needs.
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
        with storage_full_errors(self.root):
            return Upload(self.root / "uploads" / new_job_id())

    def submit(self, record: JobRecord, upload: Upload, fingerprint: str) -> JobRecord:
        """Turn an upload into a job, durably.

        Returns:
            The record of the job; if the idempotency key was used before, the record of the job it was used for.

        Raises:
            IdempotencyConflict: The key was used with another video or other parameters.
            StorageFull: The disk is full.
        """
        with storage_full_errors(self.root):
            write_synced(upload.folder / "job.json", record.model_dump_json(exclude_none=True).encode())
            self.store.commit_upload(upload.folder, _job(record.id))
            try:
                if record.idempotency_key is not None:
                    existing = self._take_key(record.idempotency_key, record.id, fingerprint)
                    if existing.id != record.id:
                        self.delete(record.id)
                        return existing
                if record.callback_url is not None:
                    self.store.put(f"callbacks/{record.id}", b"")
                self.mark_open(record.id)
            except (OSError, IdempotencyConflict):
                self.delete(record.id)
                raise
        return record

    def mark_open(self, job_id: str) -> None:
        """Record durably that the job has not ended, so that workers find it even if Redis loses it."""
        self.store.put(f"open/{job_id}", b"")

    def _take_key(self, key: str, job_id: str, fingerprint: str) -> JobRecord:
        """Register a job under an idempotency key; the record of the job that already holds the key, if any."""
        path = _key(key)
        candidate = IdempotencyRecord(job_id=job_id, fingerprint=fingerprint)
        while not self.store.create(path, candidate.model_dump_json().encode()):
            try:
                known = IdempotencyRecord.model_validate_json(self.store.read(path))
                record, end = self.record(known.job_id), self.end(known.job_id)
            except FileNotFoundError:
                continue  # removed by another process since
            except ValidationError:
                self._report_damage(path)
                self.store.remove(path)  # which job it was used for is lost
                continue
            except JobNotFound:
                self.store.remove(path)  # the process that deleted the job died before it removed the key
                continue
            if end is not None and end.expires_at <= datetime.now(UTC):
                self.delete(known.job_id)
                continue
            if known.fingerprint != fingerprint:
                raise IdempotencyConflict(
                    f"this Idempotency-Key was used for job {known.job_id} with another video or other parameters"
                )
            if end is None:
                self.mark_open(record.id)  # the process that registered the key may have died before it did
            return record
        return self.record(job_id)

    # --- look up

    def load(self, job_id: str) -> StoredJob:
        """A job; of one with a damaged record a placeholder without owner that has failed.

        Raises:
            JobNotFound: There is no such job, or it was deleted.
        """
        record = self._read_record(job_id)
        end = self._read_end(job_id)
        if record is None:
            path = f"{_job(job_id)}/job.json"
            end = self._damaged_end(path, expires_at=None if end is None else end.expires_at)
            return StoredJob(self._placeholder(job_id), end)
        return StoredJob(record, end)

    def record(self, job_id: str) -> JobRecord:
        """The request of a job, as `load`."""
        return self._read_record(job_id) or self._placeholder(job_id)

    def _read_record(self, job_id: str) -> JobRecord | None:
        """The request of a job; None if it is damaged."""
        path = f"{_job(job_id)}/job.json"
        try:
            return JobRecord.model_validate_json(self.store.read(path))
        except FileNotFoundError:
            raise JobNotFound(f"there is no job {job_id!r}") from None
        except ValidationError:
            self._report_damage(path)
            return None

    def _exists(self, job_id: str) -> bool:
        """Whether the job exists, that is, was not deleted."""
        return self.store.exists(f"{_job(job_id)}/job.json")

    def end(self, job_id: str) -> JobEnd | None:
        """The end of a job; None while it has not ended."""
        try:
            return self.load(job_id).end
        except JobNotFound:
            return None

    def _read_end(self, job_id: str) -> JobEnd | None:
        path = f"{_job(job_id)}/end.json"
        try:
            return JobEnd.model_validate_json(self.store.read(path))
        except FileNotFoundError:
            return None
        except ValidationError:
            self._report_damage(path)
            return self._restore_end(job_id, path) or self._damaged_end(path)

    def _restore_end(self, job_id: str, path: str) -> JobEnd | None:
        """Restore a damaged `end.json` from the claim log; None if the log does not hold the end either."""
        with suppress(FileNotFoundError):
            _, claim = self.claim_log(job_id).last()
            if isinstance(claim, EndClaim):
                with suppress(OSError):  # a read-only or full disk: the end is known anyway
                    self.store.put(path, _serialize(claim))
                    log.warning("job %s: restored end.json from the claim log", job_id)
                return claim
        return None

    def _damaged_end(self, path: str, *, expires_at: datetime | None = None) -> JobEnd:
        """The end of a job with a damaged record."""
        damaged_at = self.store.modified_at(path)
        problem = JobDamaged(f"the record {path.rsplit('/', 1)[1]} of this job is damaged and cannot be read").problem()
        return JobEnd(
            status=Status.failed,
            ended_at=damaged_at,
            expires_at=expires_at or damaged_at + timedelta(seconds=self.result_ttl_s),
            error=problem,
        )

    def _report_damage(self, path: str) -> None:
        """Log a damaged record, once per process."""
        if path not in self._reported:
            self._reported.add(path)
            log.error("the record %s is damaged and cannot be read", path)

    def has_ended(self, job_id: str) -> bool:
        """Whether the job has ended or been deleted."""
        try:
            return self.load(job_id).end is not None
        except JobNotFound:
            return True

    def job_ids(self, before: str | None = None) -> list[str]:
        """The ids of all jobs, newest first; with `before`, only of those created before that job."""
        return sorted((job_id for job_id in self._ids("jobs") if not before or job_id < before), reverse=True)

    def open_jobs(self) -> list[str]:
        """The ids of jobs that have not ended, oldest first."""
        return sorted(self._ids("open"))

    def _ids(self, folder: str) -> list[str]:
        """The entries of a folder that are job ids."""
        return [name for name in self.store.names(folder) if _is_job_id(name)]

    def input_path(self, job_id: str) -> Path:
        return self.root / _job(job_id) / "input"

    def result_dir(self, job_id: str, end: JobEnd) -> Path:
        """The folder of the published result of a job that succeeded."""
        assert end.execution is not None
        return self.work_dir(job_id, end.execution)

    def edit_log(self, job_id: str, level: str) -> EditLog:
        """The edits of a level of the result, by its name."""
        return EditLog(self.store, f"{_job(job_id)}/edits/{level}")

    def renders_dir(self, job_id: str) -> Path:
        """The folder of files that were rendered on request."""
        return self.root / _job(job_id) / "renders"

    # --- execute

    def claim_log(self, job_id: str) -> ClaimLog:
        return ClaimLog(self.store, f"{_job(job_id)}/claims")

    def claim(self, job_id: str, execution: str) -> int:
        """Begin an execution; every earlier execution loses the right to publish.

        Returns:
            The number of its claim.

        Raises:
            JobNotFound: The job has ended or been deleted.
        """
        work = self.root / _job(job_id) / "work"
        try:
            self._end_if_damaged(job_id)
            number = self.claim_log(job_id).append(ExecutionClaim(execution=execution))
            if number is None:
                self._finalize_from_log(job_id)
                raise JobNotFound(f"job {job_id!r} has ended")
            work.mkdir(exist_ok=True)
            for superseded in work.iterdir():
                shutil.rmtree(superseded, ignore_errors=True)
        except FileNotFoundError:
            raise JobNotFound(f"there is no job {job_id!r}") from None
        return number

    def _end_if_damaged(self, job_id: str) -> None:
        """End a job whose last claim is damaged: whether it had ended is not known."""
        claims = self.claim_log(job_id)
        with suppress(FileNotFoundError):
            _, last = claims.last()
            if isinstance(last, UnreadableClaim):
                self._report_damage(last.key)
                self.finish(job_id, self._damaged_end(last.key))

    def is_superseded(self, job_id: str, claim: int) -> bool:
        """Whether a later execution has begun, or the job has been canceled or deleted."""
        return self.claim_log(job_id).has_entry_after(claim) or not self._exists(job_id)

    def hand_back(self, job_id: str, claim: int) -> None:
        """Record that an execution stopped for a reason outside the job, so that it does not count as an attempt."""
        with suppress(FileNotFoundError):
            self.claim_log(job_id).hand_back(claim)

    def count_crash(self, job_id: str) -> int:
        """Record that a worker process crashed on this job; the number of its crashes."""
        with suppress(FileNotFoundError):
            number = 1
            while not self.store.create(f"{_job(job_id)}/crashes/{number}", secrets.token_bytes(8)):
                number += 1
            return number
        return 0

    def work_dir(self, job_id: str, execution: str) -> Path:
        """The output folder of an execution; it becomes the result once `finish` names the execution."""
        return self.root / _job(job_id) / "work" / execution

    def remove_work(self, job_id: str, execution: str) -> None:
        """Remove the output of an execution."""
        shutil.rmtree(self.work_dir(job_id, execution), ignore_errors=True)

    def finish(self, job_id: str, end: JobEnd, *, claim: int | None = None) -> bool:
        """End a job, once.

        Args:
            job_id: The job.
            end: How it ended.
            claim: The claim of the execution that ends it; refused if another execution has begun since. None ends
                the job whichever execution runs it.

        Returns:
            Whether this call ended the job.

        Raises:
            OSError: The end could not be written; the job has not ended.
        """
        try:
            if end.execution is not None:
                work = self.work_dir(job_id, end.execution)
                self.store.publish(work, f"{_job(job_id)}/work/{end.execution}")
            number = self.claim_log(job_id).append(EndClaim.model_validate(end.model_dump()), after=claim)
            if number is None:
                self._finalize_from_log(job_id)
                return False
            with suppress(OSError):  # the job has ended; `finalize` is repeated by the next process that finds it open
                self.finalize(job_id, number)
        except FileNotFoundError:
            return False  # deleted since
        return True

    def _finalize_from_log(self, job_id: str) -> None:
        """Complete the end of a job whose process died between the last claim and `finalize`."""
        number, claim = self.claim_log(job_id).last()
        if isinstance(claim, EndClaim):
            self.finalize(job_id, number)

    def finalize(self, job_id: str, claim: int) -> None:
        """Publish the end that is the last claim as `end.json` and remove what the job no longer needs."""
        end = self.claim_log(job_id).read(claim)
        assert isinstance(end, EndClaim)
        self._purge_files(job_id, end)  # first: on a full disk it makes space for `end.json`
        self.store.create(f"{_job(job_id)}/end.json", _serialize(end))
        self.store.remove(f"open/{job_id}")

    def purge(self, job_id: str) -> None:
        """Remove what an ended job no longer needs: the video, the output of other executions, the open marker."""
        end = self.end(job_id)
        if end is None:
            if not self._exists(job_id):
                self.store.remove(f"open/{job_id}")  # deleted while it was marked open
            return
        self._purge_files(job_id, end)
        self.store.remove(f"open/{job_id}")

    def _purge_files(self, job_id: str, end: JobEnd) -> None:
        job = _job(job_id)
        self.store.remove(f"{job}/input")
        with suppress(FileNotFoundError):
            for execution in self.store.names(f"{job}/work"):
                if execution != end.execution:
                    self.store.remove_tree(f"{job}/work/{execution}")

    # --- webhooks

    def pending_callbacks(self) -> list[str]:
        """The ids of jobs whose webhook has not been delivered."""
        return self._ids("callbacks")

    def callback_lock(self, job_id: str) -> AbstractContextManager[bool]:
        """Lock the delivery of a webhook; whether this process holds the lock."""
        return self.store.lock(f"callbacks/{job_id}")

    def last_delivery(self, job_id: str) -> Delivery | None:
        """The latest attempt to deliver the webhook."""
        folder = f"{_job(job_id)}/deliveries"
        with suppress(FileNotFoundError):
            numbers = [int(name) for name in self.store.names(folder) if name.isdigit()]
            if numbers:
                return self._read_delivery(folder, max(numbers))
        return None

    def _read_delivery(self, folder: str, attempt: int) -> Delivery:
        """An attempt; a damaged one counts as failed, and the next one is due now."""
        path = f"{folder}/{attempt}"
        try:
            return Delivery.model_validate_json(self.store.read(path))
        except ValidationError:
            self._report_damage(path)
            at = self.store.modified_at(path)
            return Delivery(attempt=attempt, at=at, error="the record of this attempt is damaged", next_at=at)

    def record_delivery(self, job_id: str, delivery: Delivery) -> None:
        data = delivery.model_dump_json(exclude_none=True).encode()
        with suppress(FileNotFoundError):
            self.store.create(f"{_job(job_id)}/deliveries/{delivery.attempt}", data)

    def remove_callback(self, job_id: str) -> None:
        """Record that the webhook was delivered or given up."""
        self.store.remove(f"callbacks/{job_id}")

    # --- remove

    def delete(self, job_id: str) -> None:
        """Remove a job and everything that belongs to it, its idempotency key included."""
        self.store.remove(f"open/{job_id}")
        self.remove_callback(job_id)
        with suppress(JobNotFound, FileNotFoundError, ValidationError):
            key = self.record(job_id).idempotency_key
            if key is not None:
                holder = IdempotencyRecord.model_validate_json(self.store.read(_key(key)))
                if holder.job_id == job_id:
                    self.store.remove(_key(key))
        self.store.discard_job(_job(job_id))

    def expire(self, job_id: str, now: datetime) -> bool:
        """Remove a job if it has expired; whether it had."""
        end = self._read_end(job_id) or self.end(job_id)
        if end is None or end.expires_at > now:
            return False
        self.delete(job_id)
        return True

    def sweep(self, now: datetime | None = None) -> list[str]:
        """Remove expired jobs and the remains of broken uploads, reading every job; the ids of the expired jobs."""
        now = now or datetime.now(UTC)
        expired = []
        for job_id in self.job_ids():
            try:
                if self._sweep_job(job_id, now):
                    expired.append(job_id)
            except OSError as error:  # of this job's files only
                log.error("job %s: cannot be swept: %s", job_id, error)
        than = now - timedelta(seconds=ORPHAN_AGE_S)
        for folder in (self.root / "uploads").iterdir():
            if is_older(folder, than) and not is_in_progress(folder):
                shutil.rmtree(folder, ignore_errors=True)
        for draft in (self.root / "keys").glob(".*"):
            if is_older(draft, than):
                draft.unlink(missing_ok=True)
        return expired

    def _sweep_job(self, job_id: str, now: datetime) -> bool:
        """Remove a job that has expired, or that was never marked open; whether it has expired."""
        is_open = self.store.exists(f"open/{job_id}")
        end = self._read_end(job_id) or (None if is_open else self.end(job_id))
        if end is not None and end.expires_at <= now:
            self.delete(job_id)
            return True
        if end is None and not is_open and self.store.is_older(_job(job_id), now - timedelta(seconds=ORPHAN_AGE_S)):
            self.delete(job_id)
        return False

    def check(self) -> None:
        """Raise OSError if storage cannot be listed or written."""
        self.store.check()

    def _placeholder(self, job_id: str) -> JobRecord:
        """A record in place of a damaged one: creation time from the id, everything else empty or default."""
        try:
            created_at = datetime.fromtimestamp(int(job_id[:12], 16) / 1000, UTC)
        except (ValueError, OverflowError):
            created_at = self.store.modified_at(f"{_job(job_id)}/job.json")
        params = JobParams.model_validate({"tau": [1.0], "model": "unknown", "motion": Motion.off})
        return JobRecord(id=job_id, created_at=created_at, video_name="", video_bytes=0, video_sha256="", params=params)


def _key(digest: str) -> str:
    return f"keys/{digest}.json"


def _job(job_id: str) -> str:
    """The prefix of a job's keys."""
    if not _is_job_id(job_id):  # so that an id never leads outside the store
        raise JobNotFound(f"there is no job {job_id[:MAX_ID_LENGTH]!r}")
    return f"jobs/{job_id}"


def _is_job_id(name: str) -> bool:
    return name.isalnum() and len(name) <= MAX_ID_LENGTH


def _serialize(end: JobEnd) -> bytes:
    return end.model_dump_json(exclude_none=True).encode()
