"""Expected failures, of a request or of a job: each has a stable type, a title and an HTTP status.

Knows no framework: `problems.py` renders them over HTTP, `worker/jobs/tasks.py` stores them as a job's end, the
command lines print their one sentence.
"""

import re
from typing import ClassVar

from uvos.contract import Problem

Value = float | int | str | None


class UvosError(Exception):
    """A failure that is expected, with one sentence for a person and, where there is one, limit and actual value."""

    title: ClassVar[str]
    status: ClassVar[int]
    cure: ClassVar[str] = ""
    """What a person can do about it; the documentation lists it."""

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
        """The stable type: TooManyFrames -> /problems/too-many-frames."""
        return "/problems/" + re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def problem(self) -> Problem:
        return Problem(
            type=self.type(),
            title=self.title,
            status=self.status,
            detail=self.detail,
            limit=self.limit,
            actual=self.actual,
        )


# --- a request is refused


class InvalidParameters(UvosError):
    title, status = "Invalid parameters", 422
    cure = "Correct the fields that the answer names; unknown fields are refused too, so look for a misspelling."


class UnknownModel(UvosError):
    title, status = "Unknown model", 422
    cure = "Choose a name from GET /models."


class EmptyUpload(UvosError):
    title, status = "Empty upload", 422
    cure = "Send the video's bytes in the form field `video`."


class NotAVideo(UvosError):
    title, status = "Not a video", 415
    cure = "Send an MP4, MOV, 3GP, MKV, WebM, AVI, GIF, MPEG-TS, M2TS, MPEG-PS, Ogg, FLV or WMV file."


class UploadTooLarge(UvosError):
    title, status = "Upload too large", 413
    cure = "Send a shorter or smaller video, or raise UVOS_MAX_UPLOAD_BYTES."


class RequestTooSlow(UvosError):
    title, status = "Request too slow", 408
    cure = "Send the request again over a better line; a kilobyte a second is the least."


class KeyRequired(UvosError):
    title, status = "API key required", 401
    cure = "Send `Authorization: Bearer <key>`; `uvos keys new NAME` makes a key."


class HostNotAllowed(UvosError):
    title, status = "Host not allowed", 403
    cure = "Ask by address or as localhost, or list the name in UVOS_ALLOWED_HOSTS; with API keys any name will do."


class ForeignPage(UvosError):
    title, status = "Page of another site", 403
    cure = "Use the service's own page, or a program; or list the page's host in UVOS_ALLOWED_HOSTS."


class TooManyJobs(UvosError):
    title, status = "Too many jobs", 429
    cure = "Wait until some of your jobs have ended, or cancel them."


class JobNotFound(UvosError):
    title, status = "Job not found", 404
    cure = "Check the id; a job and its results are removed together at `expires_at`."


class ResultNotFound(UvosError):
    title, status = "Result not found", 404
    cure = "Follow the links that the job itself lists: they name the levels and formats it has."


class ResultNotReady(UvosError):
    title, status = "Result not ready", 409
    cure = "Wait until the job's status is `succeeded`."


class IdempotencyConflict(UvosError):
    title, status = "Idempotency key used for something else", 422
    cure = "Use a new Idempotency-Key for a new video or other parameters."


class StorageFull(UvosError):
    title, status = "Storage full", 507
    cure = "Free space in the data folder, or delete old jobs."


class QueueUnavailable(UvosError):
    title, status = "Queue unavailable", 503
    cure = "Redis does not answer; try again after the seconds in Retry-After."


class QueueFull(UvosError):
    title, status = "Queue full", 503
    cure = "Try again after the seconds in Retry-After."


# --- a job ends failed


class UnreadableVideo(UvosError):
    title, status = "Unreadable video", 422
    cure = "Play the file locally; re-encode it, for example to H.264 in MP4."


class NoVideoStream(UvosError):
    title, status = "No video stream", 422
    cure = "Send a file with moving pictures; a cover picture of a sound file does not count."


class NoFrames(UvosError):
    title, status = "No frames", 422
    cure = "Choose `start` and `end` inside the video."


class UnsupportedCodec(UvosError):
    title, status = "Unsupported codec", 422
    cure = "Re-encode the video, for example to H.264."


class TooManyFrames(UvosError):
    title, status = "Too many frames", 422
    cure = "Send a part of the video with `start` and `end`, fewer frames with `fps`, or raise UVOS_MAX_FRAMES."


class TooManyPixels(UvosError):
    title, status = "Too many pixels", 422
    cure = "Send the video at a smaller size, or raise UVOS_MAX_PIXELS."


class TooSmall(UvosError):
    title, status = "Video too small", 422
    cure = "Send a video whose sides are at least two patches of the model."


class TooLong(UvosError):
    title, status = "Video too long", 422
    cure = "Send a part of the video with `start` and `end`, or raise UVOS_MAX_DURATION_S."


class WeightsUnavailable(UvosError):
    title, status = "Weights unavailable", 503
    cure = "Put the file that the answer names in its place, or let the worker reach the hub."


class WeightsInvalid(UvosError):
    title, status = "Weights not usable", 422
    cure = "Give a file in timm's, DINO's, the released code's or our own format that fits the model."


class OutOfMemoryBudget(UvosError):
    title, status = "Does not fit in memory", 422
    cure = "Use a smaller key_ratio or resolution, a larger tau, or raise UVOS_MEMORY_BUDGET_BYTES."


class DeadlineExceeded(UvosError):
    title, status = "Took too long", 504
    cure = "Send a shorter part, a smaller resolution, or raise UVOS_JOB_TIMEOUT_S."


class TooManyAttempts(UvosError):
    title, status = "The job ended its worker repeatedly", 500
    cure = "The file cannot be processed here; other jobs are not affected. Try another encoding of the video."


class InternalError(UvosError):
    title, status = "Internal error", 500
    cure = "This is a fault of the service; its log has the particulars under the job's id."
