"""Submit, look up, cancel and delete jobs: storage and queue together."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import groupby, islice
from pathlib import Path, PurePath

import redis

from service.jobs.estimates import Estimate, Estimates
from service.jobs.index import JobIndex
from service.jobs.metrics import Instruments
from service.jobs.queue import Broker, CircuitBreaker, Live
from service.jobs.workers import LiveWorkers
from service.logs import job_context
from service.settings import Settings
from service.storage.folder import Storage, StoredJob
from service.storage.uploads import Upload
from service.trace import child_of
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
    SegmentForm,
    Status,
    Video,
    level_name,
)
from uvos.errors import JobNotFound, QueueFull, QueueUnavailable, ResultNotFound
from uvos.models import find_model

log = logging.getLogger(__name__)

PAGE_SIZE = 50
RETRY_AFTER_S = 5
REDIS_PAUSE_S = 1.0  # without calls to Redis after a failed one
NOT_LIVE = Live(progress=None, position=None)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a client sends with a video.

    Attributes:
        form: Parameters, metadata and tags.
        file_name: Name of the file, sanitised.
        sha256: Digest of the file, in hex.
        callback_url: Webhook for the end of the job.
    """

    form: SegmentForm
    file_name: str
    sha256: str
    callback_url: str | None = None


class Jobs:
    """The operations on jobs that the HTTP API offers. Storage is authoritative; Redis adds position and progress."""

    def __init__(self, storage: Storage, broker: Broker, settings: Settings, instruments: Instruments) -> None:
        self.storage = storage
        self.broker = broker
        self.settings = settings
        self.instruments = instruments
        self.workers = LiveWorkers(broker, settings)
        self.estimates = Estimates(broker, self.workers)
        self.index = JobIndex(storage, broker.connection)
        self._redis = CircuitBreaker(REDIS_PAUSE_S)

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
        with suppress(QueueUnavailable), self._queue_errors():
            if self.index.is_current():
                return self.index.open_count(owner)
        owners = []
        for job_id in self.storage.open_jobs():
            with suppress(JobNotFound, OSError):
                owners.append(self.storage.record(job_id).owner)
        return owners.count(owner)

    def submit(
        self,
        upload: Upload,
        submission: "Submission",
        *,
        owner: str | None = None,
        idempotency_key: str | None = None,
        traceparent: str | None = None,
    ) -> JobView:
        """Accept a job. Once this returns, the job will succeed, fail or be canceled, whichever process dies.

        Raises:
            UnknownModel: There is no model of that name.
            WeightsUnavailable: No live worker has the weights of the model, or may download them.
            IdempotencyConflict: The key was used with another video or other parameters.
            StorageFull: The disk is full.
        """
        params = submission.form.params
        filled = find_model(params.model or self.settings.default_model).complete(params)
        self.workers.check_weights(filled.model)
        record = JobRecord(
            id=upload.id,
            created_at=datetime.now(UTC),
            owner=owner,
            video_name=PurePath(submission.file_name).stem,
            file_name=submission.file_name,
            video_bytes=upload.size,
            video_sha256=submission.sha256,
            params=filled,
            idempotency_key=_digest(owner or "", idempotency_key) if idempotency_key else None,
            callback_url=submission.callback_url,
            metadata=submission.form.metadata,
            tags=submission.form.tags,
            traceparent=child_of(traceparent),
        )
        kept = record.model_dump_json(include={"params", "callback_url", "metadata", "tags"})
        job_id = self.storage.submit(record, upload, _digest(submission.sha256, kept)).id
        if job_id == record.id:
            self.instruments.jobs_accepted.inc()
            with job_context(job_id, record.trace_id):
                log.info("job %s: accepted", job_id)
        stored = self.storage.load(job_id)
        try:
            with self._queue_errors():
                self.index.put(stored.record, stored.end)
                if stored.end is None:
                    self.broker.enqueue(job_id)
            return self.view(stored)
        except QueueUnavailable:
            # Accepted: the job is in storage, where workers find it once Redis is back. Deleting it here would also
            # delete it for other requests that sent the same Idempotency-Key at the same time.
            return compose(stored.record, stored.end)

    @contextmanager
    def _queue_errors(self) -> Iterator[None]:
        """Turn Redis errors into `QueueUnavailable`."""
        try:
            with self._redis.guard():
                yield
        except redis.RedisError as error:
            raise QueueUnavailable("the queue does not respond", retry_after_s=RETRY_AFTER_S) from error

    # --- look up

    def find(self, job_id: str, owner: str | None = None) -> StoredJob:
        """A job of this owner.

        Raises:
            JobNotFound: There is no such job, it has expired, or it belongs to another owner.
        """
        job = self.storage.load(job_id)
        if job.record.owner != owner or (job.end is not None and job.end.expires_at <= datetime.now(UTC)):
            raise JobNotFound(f"there is no job {job_id!r}")
        return job

    def show(self, job_id: str, owner: str | None) -> JobView:
        """A job of this owner as the owner sees it; raises as `find` and `view`."""
        return self.view(self.find(job_id, owner))

    def view(self, job: StoredJob) -> JobView:
        """The job as its owner sees it.

        Raises:
            QueueUnavailable: The job has not ended, and Redis, which holds its progress, does not respond.
        """
        [view] = self._views([job])
        return view

    def view_at(self, record: JobRecord, progress: JobProgress) -> JobView:
        """The view of a running job at this progress; raises redis.RedisError."""
        view = compose(record, None, progress, None, self.estimates.of(record, progress))
        view.weights_installed = record.params.model in self.workers.installed_models()
        return view

    def _views(self, jobs: Sequence[StoredJob]) -> list[JobView]:
        """The jobs as their owner sees them; of those that have not ended, one request to Redis has the progress."""
        live: dict[str, tuple[Live, Estimate]] = {}
        open_records = [job.record for job in jobs if job.end is None]
        if open_records:
            with self._queue_errors():
                for record, state in zip(open_records, self.broker.live(open_records), strict=True):
                    live[record.id] = state, self.estimates.of(record, state.progress)
        views = []
        for job in jobs:
            record, end, state, estimate = job.record, job.end, NOT_LIVE, None
            if record.id in live:
                end = self.storage.end(record.id)  # it may have ended since
                state, estimate = live[record.id]
            view = compose(record, end, state.progress, state.position, estimate)
            if end is None:
                view.weights_installed = record.params.model in self.workers.installed_models()
            if record.callback_url is not None:
                view.callback = Callback(url=record.callback_url, last_delivery=self.storage.last_delivery(record.id))
            views.append(view)
        return views

    def page(
        self,
        *,
        owner: str | None,
        before: str | None,
        status: Status | None,
        tag: str | None = None,
        size: int = PAGE_SIZE,
    ) -> JobPage:
        """A page of an owner's jobs, newest first.

        Args:
            owner: The owner; None for a service without API keys.
            before: The last job of the previous page.
            status: Only jobs with this status.
            tag: Only jobs with this tag.
            size: The number of jobs.
        """
        job_ids = self._candidates(owner, before, status, tag)
        views: list[JobView] = []
        while len(views) <= size and (batch := list(islice(job_ids, size + 1 - len(views)))):
            jobs = [job for job_id in batch if (job := self._find_listed(job_id, owner, tag)) is not None]
            jobs = [job for job in jobs if tag is None or tag in job.record.tags]
            views += [view for view in self._views(jobs) if status is None or view.status == status]
        return JobPage(jobs=views[:size], next=views[size - 1].id if len(views) > size else None)

    def _find_listed(self, job_id: str, owner: str | None, tag: str | None) -> StoredJob | None:
        try:
            return self.find(job_id, owner)
        except JobNotFound:
            with suppress(QueueUnavailable), self._queue_errors():
                self.index.refresh(job_id, owner, [] if tag is None else [tag])  # deleted, or expired
        except OSError as error:  # of this job's files only
            log.error("job %s: cannot be listed: %s", job_id, error)
        return None

    def _candidates(
        self, owner: str | None, before: str | None, status: Status | None, tag: str | None
    ) -> Iterator[str]:
        """The ids of all jobs that a list may have to show, newest first.

        From the index; while there is none, from storage, with the jobs of all owners and statuses.
        """
        try:
            with self._queue_errors():
                if self.index.is_current():
                    return self._indexed(owner, before, status, tag)
        except QueueUnavailable:
            pass
        return iter(self.storage.job_ids(before))

    def _indexed(self, owner: str | None, before: str | None, status: Status | None, tag: str | None) -> Iterator[str]:
        if status is None:
            return self.index.walk(owner, "all", before=before, tag=tag)
        open_jobs = list(self.index.walk(owner, "open", before=before, tag=tag))
        running = self.broker.running(open_jobs)
        if not status.is_terminal:
            return (job_id for job_id in open_jobs if (job_id in running) is (status is Status.running))
        ended = self.index.walk(owner, status.value, before=before, tag=tag)
        # a job that ended a moment ago may not be in its list yet
        just_ended = (job_id for job_id in open_jobs if job_id in running)
        return (job_id for job_id, _ in groupby(merge(ended, just_ended, reverse=True)))

    def preview(self, record: JobRecord) -> Path:
        """The first coarse result of a running job.

        Raises:
            ResultNotFound: There is none: yet, any more, or for a job this short.
            QueueUnavailable: Redis does not respond.
        """
        with self._queue_errors():
            progress = self.broker.live([record])[0].progress
        if progress is None or not progress.has_preview:
            raise ResultNotFound(f"job {record.id} has no preview: only a running job has one, linked as links.preview")
        return self.storage.work_dir(record.id, progress.execution) / "preview.jpg"

    # --- end

    def cancel(self, job: StoredJob) -> JobView:
        """Cancel a queued or running job; no effect on a job that has ended."""
        record, now = job.record, datetime.now(UTC)
        end = JobEnd(
            status=Status.canceled, ended_at=now, expires_at=now + timedelta(seconds=self.storage.result_ttl_s)
        )
        if job.end is None and self.storage.finish(record.id, end):
            self.instruments.count_end(end)
            with suppress(QueueUnavailable), self._queue_errors():  # a worker that pops the job finds that it has ended
                self.broker.cancel(record.id)
                self.broker.dequeue(record.id, owner=record.owner)
                self.broker.publish_end(record.id)
                self.index.put(record, end)
        return self.view(self.storage.load(record.id))

    def delete(self, job: StoredJob) -> None:
        """Cancel a job and remove everything that belongs to it; no webhook is sent."""
        record = job.record
        self.storage.remove_callback(record.id)  # first, so that no webhook is sent for the cancellation
        self.cancel(job)
        self.storage.delete(record.id)
        with suppress(QueueUnavailable), self._queue_errors():
            self.index.remove(record.id, record.owner, record.tags)


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
        video=Video(name=record.file_name or record.video_name, bytes=record.video_bytes, sha256=record.video_sha256),
        params=record.params,
        metadata=record.metadata,
        tags=record.tags,
        links=links(record, end),
        trace_id=record.trace_id,
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
        if progress.has_preview:
            view.links.preview = f"{view.links.self}/preview.jpg"
    else:
        view.position = position
    if end is None and estimate is not None:
        view.waiting_for_worker = progress is None and not estimate.has_worker
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
            objects=f"{base}/objects{query}",
            rle=f"{base}/rle.json{query}",
            coco=f"{base}/coco.json{query}",
            youtube_vis=f"{base}/youtube-vis.json{query}",
            cvat=f"{base}/cvat.xml{query}",
            cvat_images=f"{base}/cvat-images.xml{query}",
            label_studio=f"{base}/labelstudio.json{query}",
            yolo=f"{base}/yolo.zip{query}",
            mots=f"{base}/mots.zip{query}",
            rounds=f"{base}/rounds.json{query}",
            overlay=f"{base}/overlay.mp4{query}",
            cutout_webm=f"{base}/cutout.webm{query}",
            cutout_mov=f"{base}/cutout.mov{query}",
            preview_gif=f"{base}/preview.gif{query}",
        )
        if Format.png in record.params.format:
            level.masks_zip, level.mask = f"{base}/masks.zip{query}", f"{base}/masks/{{frame}}.png{query}"
        if Format.frames in record.params.format:
            level.frames = f"{base}/frames.zip{query}"
        links.levels.append(level)
    return links


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
