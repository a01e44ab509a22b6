"""Submit a job, look it up, cancel it, remove it: storage and queue together."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import redis

from service.jobs.estimates import Estimate, Estimates
from service.jobs.queue import Broker
from service.settings import Settings
from service.storage.folder import Storage, Upload
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

PAGE_SIZE = 50
RETRY_AFTER_S = 5
SILENCE_S = 1.0


class Jobs:
    """What the HTTP layer may do with jobs; everything it answers is read from storage first."""

    def __init__(self, storage: Storage, broker: Broker, settings: Settings) -> None:
        self.storage = storage
        self.broker = broker
        self.settings = settings
        self._silent_until = 0.0
        self._owners: dict[str, str | None] = {}  # of open jobs, so that counting them opens no file twice
        self.estimates = Estimates(broker)

    # --- submit

    def check_room(self) -> None:
        """Whether a job could be queued now; asked before a byte of the video is read.

        Raises:
            QueueUnavailable: Redis does not answer.
            QueueFull: too many jobs wait.
        """
        with self._queue_answers():
            waiting = self.broker.length()
        if waiting >= self.settings.max_queued_jobs:
            raise QueueFull(
                f"{waiting} jobs are waiting, at most {self.settings.max_queued_jobs} may",
                limit=self.settings.max_queued_jobs,
                actual=waiting,
                retry_after_s=60,
            )

    def open_of(self, owner: str) -> int:
        """How many of this owner's jobs have not ended."""
        known = self._owners
        owners: dict[str, str | None] = {}
        for job_id in self.storage.open_jobs():
            with suppress(JobNotFound):
                owners[job_id] = known[job_id] if job_id in known else self.storage.record(job_id).owner
        self._owners = owners
        return sum(one == owner for one in owners.values())

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
        """Accept a job: once this returns, it will end as succeeded, failed or canceled.

        Raises:
            UnknownModel: there is no model of that name.
            IdempotencyConflict: the key was used for something else.
            StorageFull: there is no room for it.
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
        kept = self.storage.submit(record, upload, _digest(sha256, filled.model_dump_json(), callback_url or ""))
        try:
            with self._queue_answers():
                if self.storage.end(kept.id) is None:
                    self.broker.enqueue(kept.id)
            return self.view(kept)
        except QueueUnavailable:
            # It is in storage, where workers find it once Redis is back: accepted. Taking it back instead would
            # take it from others who sent the same Idempotency-Key at the same time.
            return compose(kept, self.storage.end(kept.id))

    @contextmanager
    def _queue_answers(self) -> Iterator[None]:
        """Ask Redis; one that was silent a moment ago is not asked, lest every thread wait for it.

        Raises:
            QueueUnavailable: it does not answer.
        """
        refused = QueueUnavailable("the queue does not answer", retry_after_s=RETRY_AFTER_S)
        if time.monotonic() < self._silent_until:
            raise refused
        try:
            yield
        except redis.RedisError as error:
            self._silent_until = time.monotonic() + SILENCE_S
            raise refused from error

    # --- look up

    def find(self, job_id: str, owner: str | None = None) -> JobRecord:
        """The job of that id, if it is this owner's.

        Raises:
            JobNotFound: there is none.
        """
        record, end = self.storage.record(job_id), self.storage.end(job_id)
        if record.owner != owner or (end is not None and end.expires_at <= datetime.now(UTC)):
            raise JobNotFound(f"there is no job {job_id!r}")
        return record

    def view(self, record: JobRecord) -> JobView:
        """The job as its owner sees it.

        Raises:
            QueueUnavailable: it has not ended, and Redis, which knows where it is, does not answer.
        """
        end = self.storage.end(record.id)
        progress: JobProgress | None = None
        position: int | None = None
        estimate: Estimate | None = None
        if end is None:
            with self._queue_answers():
                progress = self.broker.progress(record.id)
                if progress is None:
                    position = self.broker.position(record.id)
                estimate = self.estimates.of(record, progress, position)
            end = self.storage.end(record.id)  # it may have ended while Redis was asked
        view = compose(record, end, progress, position, estimate)
        if record.callback_url is not None:
            view.callback = Callback(url=record.callback_url, last_delivery=self.storage.last_delivery(record.id))
        return view

    def page(self, *, owner: str | None, before: str | None, status: Status | None, size: int = PAGE_SIZE) -> JobPage:
        """This owner's jobs, newest first."""
        views: list[JobView] = []
        for job_id in self.storage.job_ids(before):
            try:
                view = self.view(self.find(job_id, owner))
            except JobNotFound:
                continue  # another's, or removed meanwhile
            if status is None or view.status == status:
                if len(views) == size:
                    return JobPage(jobs=views, next=views[-1].id)
                views.append(view)
        return JobPage(jobs=views, next=None)

    # --- end

    def cancel(self, record: JobRecord) -> JobView:
        """End a job now, queued or running; one that has ended stays as it ended."""
        now = datetime.now(UTC)
        end = JobEnd(
            status=Status.canceled, ended_at=now, expires_at=now + timedelta(seconds=self.storage.result_ttl_s)
        )
        if self.storage.finish(record.id, end):
            with suppress(QueueUnavailable), self._queue_answers():  # a worker that pops it sees that it has ended
                self.broker.dequeue(record.id)
                self.broker.announce_end(record.id)
        return self.view(self.storage.record(record.id))

    def delete(self, record: JobRecord) -> None:
        """Cancel a job and remove everything it has."""
        self.cancel(record)
        self.storage.delete(record.id)


def compose(
    record: JobRecord,
    end: JobEnd | None,
    progress: JobProgress | None = None,
    position: int | None = None,
    estimate: Estimate | None = None,
) -> JobView:
    """The job from what storage and Redis say of it."""
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
    """Where everything about the job lies."""
    base = f"/jobs/{record.id}"
    found = Links(self=base, events=f"{base}/events", cancel=f"{base}/cancel")
    if end is None or end.status != Status.succeeded:
        return found
    found.manifest = f"{base}/manifest.json"
    for tau in record.params.tau:
        at = f"?tau={level_name(tau)}"
        level = LevelLinks(
            tau=tau,
            rle=f"{base}/rle.json{at}",
            youtube_vis=f"{base}/youtube-vis.json{at}",
            cvat=f"{base}/cvat.xml{at}",
            rounds=f"{base}/rounds.json{at}",
        )
        if Format.png in record.params.format:
            level.masks_zip, level.mask = f"{base}/masks.zip{at}", f"{base}/masks/{{frame}}.png{at}"
        if Format.overlay in record.params.format:
            level.overlay = f"{base}/overlay.mp4{at}"
        found.levels.append(level)
    return found


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
