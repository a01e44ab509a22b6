"""Job parameters, job states, queue message, manifest: every value that crosses a process boundary.

The service, the worker and the client share these models and nothing else.
"""

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

TASK = "worker.jobs.tasks.segment_video"  # the only function that a worker runs from the queue
QUEUE = "uvos"
VIDEO_SUFFIXES = {  # file name suffixes that count as videos when a folder is searched; decoding ignores the suffix
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".gif"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".ogv", ".flv", ".wmv", ".asf"),
}

# An array of two items in OpenAPI: client generators do not support `prefixItems`.
Size = Annotated[
    tuple[int, int],
    WithJsonSchema({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}),
]


class Schema(BaseModel):
    """A model whose attribute docstrings become the field descriptions of OpenAPI and of the command line."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class StrictSchema(Schema):
    """An immutable model that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- parameters of a job


class Mode(StrEnum):
    multi = "multi"
    single = "single"


class Clustering(StrEnum):
    algorithm1 = "algorithm1"
    windowed = "windowed"


class Background(StrEnum):
    auto = "auto"
    keep = "keep"


class Edges(StrEnum):
    smooth = "smooth"
    fine = "fine"
    patch = "patch"


class Motion(StrEnum):
    on = "on"
    off = "off"


class Affinity(StrEnum):
    """Inputs of the attention without a trained spatio-temporal block."""

    qk = "qk"
    """Queries with keys of the last layer, as in the paper."""
    keys = "keys"
    """Keys of the last layer by cosine, after subtracting the mean key of the video; not in the paper."""
    spectral = "spectral"
    """Spectral embedding of the affinity of these keys; not in the paper."""


class Format(StrEnum):
    png = "png"
    rle = "rle"
    overlay = "overlay"
    frames = "frames"


Tau = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Resolution = Annotated[str, Field(pattern=r"^[1-9][0-9]{1,4}x[1-9][0-9]{1,4}$")]


class SegmentParams(StrictSchema):
    """Parameters of a job as the client sends them; `ModelEntry.complete` fills in the defaults that vary by model."""

    tau: list[Tau] | None = Field(None, max_length=8, examples=[[1.0]])
    """Merge threshold on the symmetric KL divergence, in nats; repeat for several levels. Smaller values stop at
    parts, larger values merge parts into wholes. Default: by model and mode."""
    key_ratio: float = Field(0.1, gt=0, le=1, allow_inf_nan=False, examples=[0.1])
    """Share of the frames that serve as key frames, in (0, 1]."""
    mode: Mode = Mode.multi
    """multi: all objects; single: the main object only."""
    model: str | None = Field(None, max_length=64, examples=["tiny"])
    """Model name, as GET /models lists it. Default: the default model of the service."""
    format: list[Format] = Field(default=[Format.png, Format.rle], min_length=1, max_length=4)
    """Files to write: palette PNG, COCO RLE (always written), overlay MP4, frames as JPEG in the size of the video;
    repeat for several."""
    start: float | None = Field(None, ge=0, allow_inf_nan=False, examples=[0.0])
    """Start of the part to segment, in seconds. Default: start of the video."""
    end: float | None = Field(None, gt=0, allow_inf_nan=False, examples=[10.0])
    """End of the part to segment, in seconds, exclusive. Default: end of the video."""
    fps: float | None = Field(None, gt=0, le=1000, allow_inf_nan=False, examples=[12.0])
    """Maximum frame rate; frames beyond it are dropped evenly. Default: all frames."""
    resolution: Resolution | None = Field(None, examples=["240x432"])
    """Model input resolution, HxW in pixels, used as given. Default: the short side of the model at the aspect ratio
    of the video."""
    clustering: Clustering = Clustering.algorithm1
    """algorithm1: Algorithm 1 of the paper; windowed: the procedure of the released code."""
    background: Background = Background.auto
    """auto: background becomes label 0, clusters that are parts of one object are joined, and objects of one kind that
    are apart in space are separate; keep: every cluster is an object."""
    edges: Edges = Edges.smooth
    """smooth: interpolate cluster scores to pixels; fine: follow the edges of the frames; patch: repeat patches, as
    published."""
    min_area: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False, examples=[0.001])
    """Minimum area of an object, as a share of the frame over its lifetime; smaller objects merge into their nearest
    neighbours."""
    motion: Motion | None = None
    """Add camera-compensated motion to the tokens, which the paper does not. Default: by model."""
    affinity: Affinity | None = None
    """Inputs of the attention without a trained block. qk: queries and keys, as in the paper; keys: mean-centred keys
    by cosine similarity; spectral: their spectral embedding; the paper uses neither. Default: by model."""

    @field_validator("tau", "format")
    @classmethod
    def _no_repeats(cls, values: list[Any] | None) -> list[Any] | None:
        if values is not None and len(set(values)) != len(values):
            raise ValueError("every value must be given once")
        return values

    @field_validator("tau")
    @classmethod
    def _level_names_differ(cls, values: list[float] | None) -> list[float] | None:
        if values is not None and len({level_name(tau) for tau in values}) != len(values):
            raise ValueError("values must differ in their first six significant digits")
        return values

    @model_validator(mode="after")
    def _part_is_not_empty(self) -> Self:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end:g} s) must be after start ({self.start:g} s)")
        return self


Tag = Annotated[str, Field(pattern=r"^[\w .:/@+-]{1,64}$")]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=32)]
Tags = Annotated[list[Tag], Field(max_length=16)]


class SegmentForm(SegmentParams):
    """The fields of POST /segment besides the video and the webhook."""

    metadata: Metadata = Field(default_factory=dict, examples=[{"camera": "north"}])
    """Strings of yours to keep with the job, as a JSON object: at most 32 keys of 64 characters, values of 512."""
    tags: Tags = Field(default_factory=list, examples=[["night"]])
    """Tags to find the job by (`GET /jobs?tag=`); repeat for several. At most 16 of 64 characters."""

    @field_validator("metadata", mode="before")
    @classmethod
    def _parse_json(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError('must be a JSON object of strings, such as {"camera": "north"}') from None
        return value

    @property
    def params(self) -> SegmentParams:
        return SegmentParams.model_validate(self.model_dump(exclude={"metadata", "tags"}))


class JobParams(SegmentParams):
    """Parameters of a job after defaults; only the resolution may still depend on the video."""

    tau: list[Tau] = Field(min_length=1, max_length=8, examples=[[1.0]])  # required after defaults
    """Merge thresholds in nats; one level of the result each."""
    model: str = Field(examples=["tiny"])
    """Model name, as GET /models lists it."""
    motion: Motion
    """Whether camera-compensated motion is added to the tokens."""
    affinity: Affinity = Affinity.qk
    """Inputs of the attention without a trained block."""


def level_name(tau: float) -> str:
    """Name of a level in folders and links: "1", "1.6"."""
    return f"{tau:g}"


# --- problems


class FieldProblem(Schema):
    """An invalid field of a request."""

    field: str = Field(examples=["tau.0"])
    """Path of the field in the form."""
    message: str = Field(examples=["Input should be greater than 0"])
    """Why the value is invalid."""
    limit: float | int | str | None = Field(None, examples=[0])
    """Bound that the value violates."""
    actual: str | None = Field(None, examples=["-1"])
    """Value that was sent."""


class Problem(Schema):
    """An RFC 9457 problem: the body of an error response, and the `error` of a failed job."""

    type: str = Field(examples=["/problems/too-many-frames"])
    """Stable identifier of the problem type; its path on the service returns the description."""
    title: str = Field(examples=["Too many frames"])
    """Problem type in words."""
    status: int = Field(examples=[422])
    """HTTP status; for a failed job, the status the failure would have as a response."""
    detail: str = Field(examples=["the video has 6000 frames, the limit is 5000"])
    """Description of this occurrence."""
    limit: float | int | str | None = Field(None, examples=[5000])
    """Limit that was exceeded, if any."""
    actual: float | int | str | None = Field(None, examples=[6000])
    """Actual value."""
    errors: list[FieldProblem] | None = None
    """All invalid fields, for /problems/invalid-parameters."""


# --- a job as it is stored, queued and processed


class Status(StrEnum):
    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    canceled = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in (Status.succeeded, Status.failed, Status.canceled)


class Stage(StrEnum):
    decode = "decode"
    motion = "motion"
    features = "features"
    attention = "attention"
    clustering = "clustering"
    masks = "masks"


class QueueMessage(StrictSchema):
    """Message in the queue; it never carries pixels or code."""

    job_id: str


class JobRecord(Schema):
    """A submitted job; written to storage before the job is queued, never changed."""

    id: str
    created_at: datetime
    owner: str | None = None
    """Name of the API key that submitted the job; None if the service requires no key."""
    video_name: str
    """File name sent by the client, without folders and suffix."""
    file_name: str = ""
    """File name sent by the client, without folders."""
    video_bytes: int
    video_sha256: str
    params: JobParams
    idempotency_key: str | None = None
    """Digest of owner and Idempotency-Key."""
    callback_url: str | None = None
    """Webhook URL for the end of the job."""
    metadata: Metadata = Field(default_factory=dict)
    tags: Tags = Field(default_factory=list)
    traceparent: str | None = None
    """W3C Trace Context: the span of the request that submitted the job."""

    @property
    def trace_id(self) -> str | None:
        """The id of the trace, 32 hex digits."""
        return self.traceparent.split("-")[1] if self.traceparent is not None else None


class JobEnd(Schema):
    """Terminal record of a job: created once with create-if-absent, never changed."""

    status: Status
    ended_at: datetime
    expires_at: datetime
    execution: str | None = None
    """Execution whose result is published; None if the job has no result."""
    started_at: datetime | None = None
    frames: int | None = None
    """Frames of the part to segment, if known."""
    error: Problem | None = None


class Workload(Schema):
    """Size of a job, known once the video is decoded; stage times depend on it."""

    frames: int
    tokens: int
    """Patch tokens per frame."""
    key_tokens: int
    pixels: int
    """Pixels per frame of the video, as displayed."""
    levels: int


class JobTiming(Schema):
    """Stage times of a succeeded job; later jobs are estimated from them."""

    model: str
    device: str
    clustering: Clustering
    motion: Motion
    video_bytes: int
    work: Workload
    seconds: dict[Stage, float]
    """Time per stage, as measured from progress reports."""

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


class JobProgress(Schema):
    """Progress of a running job; kept in Redis only."""

    execution: str
    started_at: datetime
    stage: Stage
    frames_done: int = 0
    frames_total: int | None = None
    fraction: float = 0.0
    """Share of the whole job by fixed stage weights; `service/jobs/eta.py` replaces it once a job has been timed."""
    work: Workload | None = None
    """Set once the video is decoded."""
    seconds: dict[Stage, float] = Field(default_factory=dict)
    """Time spent per stage so far."""
    device: str | None = None
    has_preview: bool = False
    """Whether `preview.jpg` of the execution is complete."""


class WorkerInfo(Schema):
    """Heartbeat of a worker."""

    name: str = Field(examples=["host-1a2b3c4d"])
    """Worker name, new at every start."""
    device: str = Field(examples=["cuda:0"])
    """Device of the model."""
    models: dict[str, str] = Field(
        default_factory=dict, examples=[{"tiny": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}]
    )
    """Loaded models and the SHA-256 of their weights."""
    sandbox: list[str] = Field(default_factory=list, examples=[["rlimits", "landlock"]])
    """Sandbox mechanisms of the decoder process."""
    busy_with: str | None = Field(None, examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """Job that is running."""
    installed: list[str] = Field(default_factory=list, examples=[["tiny"]])
    """Models whose weights are on this machine."""
    may_download: bool = True
    """Whether the worker may download the weights of other models."""
    problem: str | None = Field(None, examples=["the models are being loaded"])
    """Why the worker runs no jobs; None if it runs jobs."""
    memory_bytes: int = Field(0, examples=[85_000_000_000])
    """Memory of the device; main memory on a CPU; 0 until the models are loaded."""
    memory_peak_bytes: int = Field(0, examples=[6_000_000_000])
    """Peak use of that memory since the models were loaded."""


# --- a job as the API returns it


class Video(Schema):
    """The uploaded file."""

    name: str = Field(examples=["clip.mp4"])
    """File name sent by the client, without folders."""
    bytes: int = Field(examples=[1_048_576])
    """File size in bytes."""
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """SHA-256 of the file, in hex."""


class SecondsRange(Schema):
    """An estimate in seconds."""

    median: float = Field(ge=0, examples=[6.0])
    """The estimate: the end is as likely before it as after it."""
    low: float = Field(ge=0, examples=[4.0])
    """Lower end of the estimate, seconds."""
    high: float = Field(ge=0, examples=[9.0])
    """Upper end of the estimate, seconds."""


class LevelLinks(Schema):
    """Links to the result of one level; a format that was not requested has no link."""

    tau: float = Field(examples=[1.0])
    """Merge threshold of the level, nats."""
    objects: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/objects?tau=1"])
    """Objects with their edits; PATCH edits them."""
    masks_zip: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/masks.zip?tau=1"])
    """All masks as `<video name>/00000.png …`."""
    mask: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/masks/{frame}.png?tau=1"])
    """Mask of one frame; replace `{frame}` by the frame index."""
    rle: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/rle.json?tau=1"])
    """COCO RLE of every object in every frame."""
    overlay: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/overlay.mp4?tau=1"])
    """Video with coloured masks drawn over it, H.264."""
    cutout_webm: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/cutout.webm?tau=1"])
    """Objects on a transparent background, VP9; with `&object=` only one."""
    cutout_mov: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/cutout.mov?tau=1"])
    """Objects on a transparent background, ProRes 4444; with `&object=` only one."""
    preview_gif: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/preview.gif?tau=1"])
    """Animated GIF of the overlay."""
    frames: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/frames.zip?tau=1"])
    """Segmented frames as JPEG with their masks: `JPEGImages/00000.jpg …`, `Annotations/00000.png …`."""
    coco: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/coco.json?tau=1"])
    """COCO instances."""
    youtube_vis: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/youtube-vis.json?tau=1"])
    """YouTube-VIS results."""
    cvat: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/cvat.xml?tau=1"])
    """CVAT for video 1.1."""
    cvat_images: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/cvat-images.xml?tau=1"])
    """CVAT for images 1.1."""
    label_studio: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/labelstudio.json?tau=1"])
    """Label Studio tasks with brush predictions."""
    yolo: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/yolo.zip?tau=1"])
    """YOLO segmentation labels."""
    mots: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/mots.zip?tau=1"])
    """MOTS PNGs."""
    rounds: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/rounds.json?tau=1"])
    """Clusters after the first round of Algorithm 1; the manifest lists the merges of the later rounds."""


class Links(Schema):
    """Links of a job."""

    self: str = Field(examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """The job."""
    events: str = Field(examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/events"])
    """Server-sent events of the job."""
    cancel: str = Field(examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/cancel"])
    """POST to cancel the job."""
    manifest: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/manifest.json"])
    """Manifest of the result, once succeeded."""
    source: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/source.mp4"])
    """Video of exactly the segmented frames, at most 640 pixels on its longer side, H.264, once succeeded."""
    preview: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/preview.jpg"])
    """First coarse result while the job runs: a few frames with coloured objects, JPEG."""
    thumbnail: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/thumbnail.jpg"])
    """The middle frame, at most 320 pixels on its longer side, JPEG, once succeeded."""
    levels: list[LevelLinks] = Field(default_factory=list)
    """Results, once succeeded: one entry per tau, in the requested order."""


class Delivery(Schema):
    """One attempt to deliver a webhook."""

    attempt: int = Field(ge=1, examples=[1])
    """Number of the attempt, from 1."""
    at: datetime = Field(examples=["2026-01-31T12:00:00Z"])
    """Time of the attempt."""
    status: int | None = Field(None, examples=[200])
    """HTTP status of the response, if there was one."""
    error: str | None = Field(None, examples=["connection refused"])
    """Why there was no response."""
    next_at: datetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])
    """Time of the next attempt, if any."""


class Callback(Schema):
    """Webhook of a job and the state of its delivery."""

    url: str = Field(examples=["https://example.org/hooks/uvos"])
    """Webhook URL."""
    last_delivery: Delivery | None = None
    """Latest delivery attempt, if any."""


class JobView(Schema):
    """A job as its owner sees it."""

    id: str = Field(examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """Unguessable job id; ids sort by creation time."""
    status: Status = Field(examples=["running"])
    """Job status; succeeded, failed and canceled are final."""
    stage: Stage | None = Field(None, examples=["attention"])
    """Current stage of a running job."""
    frames_done: int = Field(0, ge=0, examples=[12])
    """Frames completed in the current stage."""
    frames_total: int | None = Field(None, examples=[48])
    """Frames of the part to segment, once known."""
    fraction: float = Field(0.0, ge=0, le=1, examples=[0.4])
    """Estimated share of the job that is done."""
    position: int | None = Field(None, examples=[2])
    """Number of jobs ahead in the queue, while queued."""
    waiting_for_worker: bool = False
    """Whether the job waits because no worker is alive; `uvos up` or `uvos-worker run` starts one."""
    weights_installed: bool | None = Field(None, examples=[True])
    """Whether a live worker has the weights of the model; otherwise it downloads them first. None once ended."""
    eta_s: SecondsRange | None = None
    """Estimated remaining seconds of a running job; None until it is known well enough."""
    created_at: datetime = Field(examples=["2026-01-31T12:00:00Z"])
    """Time the job was accepted."""
    started_at: datetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])
    """Time a worker started the job."""
    ended_at: datetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])
    """Time the job ended."""
    expires_at: datetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])
    """Time the job and its results are removed, once it has ended."""
    video: Video
    """Uploaded file."""
    params: JobParams
    """Parameters in effect, defaults included."""
    error: Problem | None = None
    """Why the job failed."""
    metadata: Metadata = Field(default_factory=dict, examples=[{"camera": "north"}])
    """Strings that the client sent with the video."""
    tags: Tags = Field(default_factory=list, examples=[["night"]])
    """Tags that the client sent with the video."""
    callback: Callback | None = None
    """Webhook, if `callback_url` was given."""
    trace_id: str | None = Field(None, examples=["0af7651916cd43dd8448eb211c80319c"])
    """Trace of the job in logs and webhook: that of the `traceparent` header of POST /segment, else a new one."""
    links: Links
    """Links to events, cancellation and results."""


class JobPage(Schema):
    """A page of the caller's jobs, newest first."""

    jobs: list[JobView]
    """Jobs, newest first."""
    next: str | None = Field(None, examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """Cursor of the next page; None on the last page."""


# --- the result of a job


class ManifestVideo(Schema):
    """The decoded video."""

    name: str = Field(examples=["clip"])
    """File name sent by the client, without folders and suffix."""
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """SHA-256 of the file, in hex."""
    width: int = Field(examples=[854])
    """Width in pixels as displayed, after rotation."""
    height: int = Field(examples=[480])
    """Height in pixels as displayed, after rotation."""
    frame_count: int = Field(examples=[48])
    """Number of segmented frames."""
    fps: float | None = Field(examples=[24.0])
    """Mean frames per second; None for a single frame."""
    pts_s: list[float] = Field(examples=[[0.0, 0.0417]])
    """Presentation time of each frame, seconds."""
    source_frames: list[int] | None = Field(None, examples=[[0, 1]])
    """Number of each frame among the decoded frames of the file, from 0; None if unknown."""
    rotation: int = Field(examples=[0])
    """Applied rotation, degrees clockwise."""
    sample_aspect_ratio: str = Field(examples=["1:1"])
    """Sample aspect ratio; "1:1" for square pixels."""
    codec: str = Field(examples=["h264"])
    """Codec name of libav."""


class ManifestModel(Schema):
    """The model that computed the features."""

    name: str = Field(examples=["tiny"])
    """Model name, as GET /models lists it."""
    weights: str = Field(examples=["tiny.safetensors"])
    """Source of the weights."""
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """SHA-256 of the weights file, in hex."""
    version: str | None = Field(None, examples=["1"])
    """Version of the weights."""
    affinity: Affinity | None = Field(None, examples=["qk"])
    """Inputs of the attention; None with a trained block."""


class ManifestObject(Schema):
    """One object of a level."""

    id: int = Field(examples=[1])
    """Label in every frame; numbered from 1 by first appearance, then area."""
    color: str = Field(examples=["#ff5d5d"])
    """Colour in overlays and on the page, "#rrggbb"; PNGs have the VOC palette."""
    area: float = Field(examples=[0.12])
    """Mean share of the frame, over the frames that contain the object."""
    first_frame: int = Field(examples=[0])
    """Index of the first frame that contains the object."""
    last_frame: int = Field(examples=[47])
    """Index of the last frame that contains the object."""
    frames: int = Field(examples=[48])
    """Number of frames that contain the object."""
    background_score: float = Field(examples=[0.1])
    """Background score from 0 (foreground) to 1 (background)."""
    object_score: float | None = Field(None, ge=0, le=1, examples=[0.8])
    """How surely the object is foreground, from 0 to 1: the mean of the token scores by which background is separated;
    0.5 is their threshold. None for models without these scores."""


class ManifestRound(Schema):
    """One round of the clustering."""

    centroids: int = Field(examples=[12])
    """Number of centroids after the round."""
    parents: list[int] = Field(examples=[[0, 1, 1]])
    """For each centroid of the previous round, the index of the centroid it merged into; empty for the first round,
    whose input is the tokens themselves."""


class ManifestLevel(Schema):
    """The result at one tau."""

    tau: float = Field(examples=[1.0])
    """Merge threshold, nats."""
    name: str = Field(examples=["1"])
    """Level name in folders and links."""
    clusters: int = Field(examples=[7])
    """Number of final centroids, background included."""
    objects: list[ManifestObject]
    """Objects, ordered by id."""
    background_clusters: int = Field(examples=[2])
    """Number of clusters classified as background."""
    nothing_stands_apart: bool = False
    """Whether the level has no object, or, with background=keep, a single one that covers nearly the whole frame."""
    rounds: list[ManifestRound]
    """Merges of clusters, by round."""
    files: list[str] = Field(examples=[["levels/1/rle.json"]])
    """Paths of the written files."""


class Manifest(Schema):
    """Everything needed to reproduce a result; written once, when the result is complete."""

    job_id: str | None = Field(examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """Job id; None for a run of `uvos-worker segment`."""
    created_at: datetime = Field(examples=["2026-01-31T12:00:00Z"])
    """Time the result was completed."""
    video: ManifestVideo
    """Decoded video."""
    params: dict[str, Any] = Field(examples=[{"tau": [1.0], "key_ratio": 0.1}])
    """Parameters in effect, defaults included."""
    model: ManifestModel
    """Model and weights."""
    versions: dict[str, str] = Field(examples=[{"torch": "2.9.0"}])
    """Package versions that affect the result."""
    device: str = Field(examples=["cuda:0"])
    """Device of the computation."""
    dtype: str = Field(examples=["bfloat16"])
    """Type of matrix products; logarithms and sums are float32."""
    resolution: str = Field(examples=["192x344"])
    """Model input resolution, HxW in pixels."""
    grid: str = Field(examples=["24x43"])
    """Patch grid, HxW."""
    key_frames: list[int] = Field(examples=[[0, 10, 20]])
    """Indices of the key frames."""
    timings_s: dict[str, float] = Field(examples=[{"decode": 0.4, "total": 3.2}])
    """Seconds per stage and in total."""
    warnings: list[str] = Field(examples=[["level 0.1 has 300 objects: its PNGs are 16-bit grey"]])
    """Warnings about the result."""
    sandbox: list[str] = Field(default_factory=list, examples=[["rlimits", "landlock"]])
    """Sandbox mechanisms of the decoder process."""
    levels: list[ManifestLevel]
    """Levels, one per tau, in the requested order."""


class RleMask(Schema):
    """A mask as COCO RLE."""

    size: Size = Field(examples=[[480, 854]])
    """Height and width, pixels."""
    counts: str = Field(examples=["0PPh0"])
    """Compressed COCO run lengths: column-major, background first."""


class RleObject(Schema):
    """An object in one frame."""

    id: int = Field(examples=[1])
    """Object id, as in the manifest."""
    rle: RleMask
    """Mask of the object in this frame."""


class RleFrame(Schema):
    """The objects of one frame."""

    index: int = Field(examples=[0])
    """Frame index from 0; also the index into `pts_s` of the manifest."""
    time: float = Field(examples=[0.0417])
    """Presentation time, seconds."""
    source_frame: int | None = Field(None, examples=[1])
    """Number of the frame among the decoded frames of the file, from 0; None if unknown."""
    objects: list[RleObject]
    """Objects in this frame, ordered by id; masks do not overlap."""


class RleDocument(Schema):
    """rle.json of one level: COCO RLE, column-major, background first."""

    size: Size = Field(examples=[[480, 854]])
    """Height and width of the video, pixels."""
    names: dict[int, str] = Field(default_factory=dict, examples=[{"1": "koi"}])
    """Names that a user gave objects, by id."""
    frames: list[RleFrame]
    """All frames, in order."""


class RoundsDocument(Schema):
    """rounds.json of one level: the cluster of every patch after the first round, before clusters merged.

    The cluster after round r of the manifest is `rounds[r].parents[... rounds[1].parents[cluster]]`.
    """

    grid: Size = Field(examples=[[24, 43]])
    """Patch grid of a frame, (h, w)."""
    frames: list[list[int]] = Field(examples=[[[0, 40, 1, 992]]])
    """Runs of equal clusters per frame, row by row: cluster, length, cluster, length, ..."""
