"""Expected failures of a request or of a job: one class per problem type.

Independent of any framework: `service/api/problems.py` renders them over HTTP, `worker/jobs/tasks.py` stores them as
the end of a job, and the command lines print `UvosError.sentence`.
"""

import re
from typing import ClassVar

from uvos.contract import Problem

Value = float | int | str | None


class UvosError(Exception):
    """An expected failure: one sentence of detail and, if there is a limit, the limit and the actual value."""

    title: ClassVar[str]
    status: ClassVar[int]
    remedy: ClassVar[str] = ""
    """How to resolve the problem; listed in docs/limits-and-errors.md."""

    def __init__(
        self, detail: str, *, limit: Value = None, actual: Value = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.limit = limit
        self.actual = actual
        self.retry_after_s = retry_after_s

    @classmethod
    def type(cls) -> str:
        """Stable type URI: TooManyFrames -> /problems/too-many-frames."""
        return "/problems/" + re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @property
    def sentence(self) -> str:
        """Detail and remedy, for a terminal."""
        return f"{self.detail.removesuffix('.')}. {self.remedy}".strip()

    def problem(self) -> Problem:
        return Problem(
            type=self.type(),
            title=self.title,
            status=self.status,
            detail=self.detail,
            limit=self.limit,
            actual=self.actual,
        )


# --- rejected requests


class InvalidParameters(UvosError):
    title, status = "Invalid parameters", 422
    remedy = "Correct the named fields; unknown fields are rejected, so check their spelling."


class UnknownModel(UvosError):
    title, status = "Unknown model", 422
    remedy = "Use a model name that GET /models lists."


class EmptyUpload(UvosError):
    title, status = "Empty upload", 422
    remedy = "Send the video file in the form field `video`."


class NotAVideo(UvosError):
    title, status = "Not a video", 415
    remedy = (
        "Send an MP4, MOV, 3GP, MKV, WebM, AVI, GIF, MPEG-TS, M2TS, MPEG-PS, Ogg, FLV or WMV file, or a ZIP archive of "
        "JPEG or PNG frames."
    )


class VideoUrlFailed(UvosError):
    title, status = "Video could not be fetched", 422
    remedy = (
        "Use an address that answers with the video itself within 120 s, at a public address or in "
        "UVOS_FETCH_NETWORKS; or send the file as `video`."
    )


class UploadTooLarge(UvosError):
    title, status = "Upload too large", 413
    remedy = "Send a shorter or smaller video, or raise UVOS_MAX_UPLOAD_BYTES."


class RequestTooSlow(UvosError):
    title, status = "Request too slow", 408
    remedy = "Send the request again over a faster connection; the minimum rate is 1 kB/s."


class KeyRequired(UvosError):
    title, status = "API key required", 401
    remedy = "Send `Authorization: Bearer <key>`; `uvos keys new NAME` makes a key."


class HostNotAllowed(UvosError):
    title, status = "Host not allowed", 403
    remedy = "Use the IP address or localhost, or add the host name to UVOS_ALLOWED_HOSTS, or require API keys."


class ForeignPage(UvosError):
    title, status = "Cross-site request", 403
    remedy = "Use the page of the service or a non-browser client, or add the host of the page to UVOS_ALLOWED_HOSTS."


class TooManyJobs(UvosError):
    title, status = "Too many jobs", 429
    remedy = "Wait for some of your jobs to end, or cancel them."


class JobNotFound(UvosError):
    title, status = "Job not found", 404
    remedy = "Check the job id; a job and its results are removed at `expires_at`."


class ResultNotFound(UvosError):
    title, status = "Result not found", 404
    remedy = "Use the links in the job: they list its levels and formats."


class ResultNotReady(UvosError):
    title, status = "Result not ready", 409
    remedy = "Wait until the job's status is `succeeded`."


class RenderPending(UvosError):
    title, status = "Still rendering", 503
    remedy = "Request the same link again after the number of seconds in Retry-After."


class InvalidEdit(UvosError):
    title, status = "Invalid edit", 422
    remedy = "Use the object ids that GET /jobs/<id>/objects lists; nothing was changed."


class EditConflict(UvosError):
    title, status = "Objects changed since", 412
    remedy = "Get the objects again, and repeat the edit with their current ETag in If-Match."


class IdempotencyConflict(UvosError):
    title, status = "Idempotency key reused", 422
    remedy = "Use a new Idempotency-Key for a new video or other parameters."


class StorageFull(UvosError):
    title, status = "Storage full", 507
    remedy = "Free space in the data folder, or delete old jobs."


class QueueUnavailable(UvosError):
    title, status = "Queue unavailable", 503
    remedy = "Redis does not respond; retry after the number of seconds in Retry-After."


class QueueFull(UvosError):
    title, status = "Queue full", 503
    remedy = "Retry after the number of seconds in Retry-After."


# --- failed jobs


class UnreadableVideo(UvosError):
    title, status = "Unreadable video", 422
    remedy = "Check that the file plays locally; re-encode it, for example as H.264 in MP4."


class NoVideoStream(UvosError):
    title, status = "No video stream", 422
    remedy = "Send a file with a video stream; the cover picture of an audio file is not one."


class NoFrames(UvosError):
    title, status = "No frames", 422
    remedy = "Choose `start` and `end` within the duration of the video."


class UnsupportedCodec(UvosError):
    title, status = "Unsupported codec", 422
    remedy = "Re-encode the video, for example as H.264."


class TooManyFrames(UvosError):
    title, status = "Too many frames", 422
    remedy = (
        "Shorten the part with `start` and `end`, lower `fps` or `resolution`, or raise UVOS_MAX_FRAMES, or "
        "UVOS_MAX_DECODED_BYTES if the limit is in bytes."
    )


class TooManyPixels(UvosError):
    title, status = "Too many pixels", 422
    remedy = "Downscale the video, or raise UVOS_MAX_PIXELS."


class TooSmall(UvosError):
    title, status = "Video too small", 422
    remedy = "Send a video of at least 2x2 patches of the model."


class TooLong(UvosError):
    title, status = "Video too long", 422
    remedy = "Shorten the part with `start` and `end`, or raise UVOS_MAX_DURATION_S."


class WeightsUnavailable(UvosError):
    title, status = "Weights unavailable", 503
    remedy = (
        "Run `uvos-worker weights fetch NAME` on the machine of the worker, copy the named file to the named location, "
        "or give the worker access to the hub."
    )


class WeightsInvalid(UvosError):
    title, status = "Invalid weights", 422
    remedy = "Use a weights file that fits the model, in the format of timm, DINO, the released code or uvos."


class OutOfMemoryBudget(UvosError):
    title, status = "Memory budget exceeded", 422
    remedy = "Lower key_ratio or resolution, raise tau, or raise UVOS_MEMORY_BUDGET_BYTES."


class DeadlineExceeded(UvosError):
    title, status = "Job timeout exceeded", 504
    remedy = "Shorten the part, lower the resolution, or raise UVOS_JOB_TIMEOUT_S."


class TooManyAttempts(UvosError):
    title, status = "The worker crashed repeatedly on this job", 500
    remedy = "Re-encode the video; other jobs are not affected."


class JobDamaged(UvosError):
    title, status = "Job record damaged", 500
    remedy = "Delete the job and send the video again; check the disk of the data folder."


class StorageUnavailable(UvosError):
    title, status = "Storage unavailable", 503
    remedy = "Mount the data folder and make it writable for the service, which then continues by itself."


class InternalError(UvosError):
    title, status = "Internal error", 500
    remedy = "This is a bug in the service; its log has the details under the job id."
