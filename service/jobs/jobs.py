"""Submit, look up, cancel and delete jobs: storage and queue together."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import redis

from service.jobs.estimates import Estimate, Estimates
from service.jobs.queue import Broker, CircuitBreaker
from service.settings import Settings
from service.storage.folder import Storage
from service.storage.uploads import Upload
from uvos.contract import (
    Callback,
    Format,
    JobEnd,
    JobPage,
    JobProgress,
    JobRecord,
    JobView,
    LevelLinks,
    Links,
    SegmentParams,
    Status,
    Video,
    level_name,
)
from uvos.errors import JobNotFound, QueueFull, QueueUnavailable
from uvos.models import find_model

log = logging.getLogger(__name__)

PAGE_SIZE = 50
RETRY_AFTER_S = 5
REDIS_PAUSE_S = 1.0  # without calls to Redis after a failed one


class Jobs:
    """The operations on jobs that the HTTP API offers. Storage is authoritative; Redis adds position and progress."""

    def __init__(self, storage: Storage, broker: Broker, settings: Settings) -> None:
        self.storage = storage
        self.broker = broker
        self.settings = settings
        self.estimates = Estimates(broker)
        self._redis = CircuitBreaker(REDIS_PAUSE_S)
        self._owners: dict[str, str | None] = {}  # of open jobs, so that counting them reads each record once

    # --- submit

    def check_room(self) -> None:
        """Check that a job could be queued, before the video is received.

        Raises:
            QueueUnavailable: Redis does not respond.
            QueueFull: `max_queued_jobs` jobs are waiting.
        """
        with self._queue_errors():
            waiting = self.broker.length()
        if waiting >= self.settings.max_queued_jobs:
            raise QueueFull(
                f"{waiting} jobs are waiting, at most {self.settings.max_queued_jobs} may",
                limit=self.settings.max_queued_jobs,
                actual=waiting,
                retry_after_s=60,
            )

    def open_of(self, owner: str) -> int:
        """The number of an owner's jobs that have not ended."""
        known = self._owners
        owners: dict[str, str | None] = {}
        for job_id in self.storage.open_jobs():
            with suppress(JobNotFound, OSError):
                owners[job_id] = known[job_id] if job_id in known else self.storage.record(job_id).owner
        self._owners = owners
        return list(owners.values()).count(owner)

    def submit(
        self,
        upload: Upload,
        params: SegmentParams,
        *,
        video_name: str,
        sha256: str,
        owner: str | None = None,
        idempotency_key: str | None = None,
        callback_url: str | None = None,
    ) -> JobView:
        """Accept a job. Once this returns, the job will succeed, fail or be canceled, whichever process dies.

        Raises:
            UnknownModel: There is no model of that name.
            IdempotencyConflict: The key was used with another video or other parameters.
            StorageFull: The disk is full.
        """
        filled = find_model(params.model or self.settings.default_model).complete(params)
        record = JobRecord(
            id=upload.id,
            created_at=datetime.now(UTC),
            owner=owner,
            video_name=video_name,
            video_bytes=upload.size,
            video_sha256=sha256,
            params=filled,
            idempotency_key=_digest(owner or "", idempotency_key) if idempotency_key else None,
            callback_url=callback_url,
        )
        stored = self.storage.submit(record, upload, _digest(sha256, filled.model_dump_json(), callback_url or ""))
        try:
            with self._queue_errors():
                if self.storage.end(stored.id) is None:
                    self.broker.enqueue(stored.id)
            return self.view(stored)
        except QueueUnavailable:
            # Accepted: the job is in storage, where workers find it once Redis is back. Deleting it here would also
            # delete it for other requests that sent the same Idempotency-Key at the same time.
            return compose(stored, self.storage.end(stored.id))

    @contextmanager
    def _queue_errors(self) -> Iterator[None]:
        """Turn Redis errors into `QueueUnavailable`."""
        try:
            with self._redis.guard():
                yield
        except redis.RedisError as error:
            raise QueueUnavailable("the queue does not respond", retry_after_s=RETRY_AFTER_S) from error

    # --- look up

    def find(self, job_id: str, owner: str | None = None) -> JobRecord:
        """The record of a job of this owner.

        Raises:
            JobNotFound: There is no such job, it has expired, or it belongs to another owner.
        """
        record, end = self.storage.record(job_id), self.storage.end(job_id)
        if record.owner != owner or (end is not None and end.expires_at <= datetime.now(UTC)):
            raise JobNotFound(f"there is no job {job_id!r}")
        return record

    def view(self, record: JobRecord) -> JobView:
        """The job as its owner sees it.

        Raises:
            QueueUnavailable: The job has not ended, and Redis, which holds its progress, does not respond.
        """
        end = self.storage.end(record.id)
        progress: JobProgress | None = None
        position: int | None = None
        estimate: Estimate | None = None
        if end is None:
            with self._queue_errors():
                progress = self.broker.progress(record.id)
                if progress is None:
                    position = self.broker.position(record.id, owner=record.owner)
                estimate = self.estimates.of(record, progress, position)
            end = self.storage.end(record.id)  # it may have ended since
        view = compose(record, end, progress, position, estimate)
        if record.callback_url is not None:
            view.callback = Callback(url=record.callback_url, last_delivery=self.storage.last_delivery(record.id))
        return view

    def page(self, *, owner: str | None, before: str | None, status: Status | None, size: int = PAGE_SIZE) -> JobPage:
        """A page of an owner's jobs, newest first.

        Args:
            owner: The owner; None for a service without API keys.
            before: The last job of the previous page.
            status: Only jobs with this status.
            size: The number of jobs.
        """
        views: list[JobView] = []
        for job_id in self.storage.job_ids(before):
            try:
                view = self.view(self.find(job_id, owner))
            except JobNotFound:
                continue  # of another owner, or deleted since
            except OSError as error:  # of this job's files only
                log.error("job %s: cannot be listed: %s", job_id, error)
                continue
            if status is None or view.status == status:
                if len(views) == size:
                    return JobPage(jobs=views, next=views[-1].id)
                views.append(view)
        return JobPage(jobs=views, next=None)

    # --- end

    def cancel(self, record: JobRecord) -> JobView:
        """Cancel a queued or running job; no effect on a job that has ended."""
        now = datetime.now(UTC)
        end = JobEnd(
            status=Status.canceled, ended_at=now, expires_at=now + timedelta(seconds=self.storage.result_ttl_s)
        )
        if self.storage.end(record.id) is None and self.storage.finish(record.id, end):
            with suppress(QueueUnavailable), self._queue_errors():  # a worker that pops the job finds that it has ended
                self.broker.dequeue(record.id, owner=record.owner)
                self.broker.publish_end(record.id)
        return self.view(self.storage.record(record.id))

    def delete(self, record: JobRecord) -> None:
        """Cancel a job and remove everything that belongs to it; no webhook is sent."""
        self.storage.remove_callback(record.id)  # first, so that no webhook is sent for the cancellation
        self.cancel(record)
        self.storage.delete(record.id)


def compose(
    record: JobRecord,
    end: JobEnd | None,
    progress: JobProgress | None = None,
    position: int | None = None,
    estimate: Estimate | None = None,
) -> JobView:
    """The view of a job from its parts in storage and Redis."""
    view = JobView(
        id=record.id,
        status=end.status if end else Status.running if progress else Status.queued,
        created_at=record.created_at,
        video=Video(name=record.video_name, bytes=record.video_bytes, sha256=record.video_sha256),
        params=record.params,
        links=links(record, end),
    )
    if end is not None:
        view.started_at, view.ended_at, view.expires_at = end.started_at, end.ended_at, end.expires_at
        view.error, view.frames_total = end.error, end.frames
        if end.status == Status.succeeded:
            view.fraction, view.frames_done = 1.0, end.frames or 0
    elif progress is not None:
        view.stage, view.fraction = progress.stage, progress.fraction
        view.frames_done, view.frames_total = progress.frames_done, progress.frames_total
        view.started_at = progress.started_at
    else:
        view.position = position
    if end is None and estimate is not None:
        view.eta_s = estimate.eta_s
        view.fraction = estimate.fraction if estimate.fraction is not None else view.fraction
    return view


def links(record: JobRecord, end: JobEnd | None) -> Links:
    """The links of a job; those to results only once it has succeeded."""
    base = f"/jobs/{record.id}"
    links = Links(self=base, events=f"{base}/events", cancel=f"{base}/cancel")
    if end is None or end.status != Status.succeeded:
        return links
    links.manifest = f"{base}/manifest.json"
    links.source, links.thumbnail = f"{base}/source.mp4", f"{base}/thumbnail.jpg"
    for tau in record.params.tau:
        query = f"?tau={level_name(tau)}"
        level = LevelLinks(
            tau=tau,
            rle=f"{base}/rle.json{query}",
            coco=f"{base}/coco.json{query}",
            youtube_vis=f"{base}/youtube-vis.json{query}",
            cvat=f"{base}/cvat.xml{query}",
            cvat_images=f"{base}/cvat-images.xml{query}",
            label_studio=f"{base}/labelstudio.json{query}",
            yolo=f"{base}/yolo.zip{query}",
            mots=f"{base}/mots.zip{query}",
            rounds=f"{base}/rounds.json{query}",
        )
        if Format.png in record.params.format:
            level.masks_zip, level.mask = f"{base}/masks.zip{query}", f"{base}/masks/{{frame}}.png{query}"
        if Format.overlay in record.params.format:
            level.overlay = f"{base}/overlay.mp4{query}"
        if Format.frames in record.params.format:
            level.frames = f"{base}/frames.zip{query}"
        links.levels.append(level)
    return links


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
