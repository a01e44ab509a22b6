"""The job contract: what a client asks for, what the queue carries, what a job looks like, the manifest.

Everything that crosses a process is a model of this file; service and worker share nothing else.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

TASK = "worker.tasks.segment_video"  # the only function a worker may be asked to run
QUEUE = "uvos"


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
    patch = "patch"


class Motion(StrEnum):
    on = "on"
    off = "off"


class Format(StrEnum):
    png = "png"
    rle = "rle"
    overlay = "overlay"


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
    features = "features"
    attention = "attention"
    clustering = "clustering"
    masks = "masks"


Tau = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Resolution = Annotated[str, Field(pattern=r"^[1-9][0-9]{1,4}x[1-9][0-9]{1,4}$")]


class Contract(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SegmentParams(Contract):
    """What a client may choose for a job; whatever is left out is filled in before the job is accepted."""

    tau: list[Tau] | None = Field(None, max_length=8, examples=[[1.0]])
    """Merge threshold on the symmetric KL divergence, in nats; one level of the result for each value. Smaller
    stops at parts, larger merges parts into wholes. Default: by model and mode."""
    key_ratio: float = Field(0.1, gt=0, le=1, allow_inf_nan=False, examples=[0.1])
    """Share of the frames that serve as keys, in (0, 1]."""
    mode: Mode = Mode.multi
    """Several objects, or the one main object."""
    model: str | None = Field(None, max_length=64, examples=["tiny"])
    """A name from /models. Default: the service's own."""
    format: list[Format] = Field(default=[Format.png, Format.rle], min_length=1, max_length=3)
    """What the worker writes: palette PNGs, run lengths (always kept), an overlay MP4."""
    start: float | None = Field(None, ge=0, allow_inf_nan=False, examples=[0.0])
    """First second of the part to segment."""
    end: float | None = Field(None, gt=0, allow_inf_nan=False, examples=[10.0])
    """Last second (exclusive) of the part to segment."""
    fps: float | None = Field(None, gt=0, le=1000, allow_inf_nan=False, examples=[12.0])
    """At most this many frames a second are kept, evenly; default: all."""
    resolution: Resolution | None = Field(None, examples=["240x432"])
    """HxW in pixels at which the model looks, taken as it is; default: the model's short side, aspect kept."""
    clustering: Clustering = Clustering.algorithm1
    """Algorithm 1 of the paper, or the windowed procedure of its released code."""
    background: Background = Background.auto
    """Tell background clusters apart (label 0), or keep them as objects."""
    edges: Edges = Edges.smooth
    """Interpolate cluster scores to pixels, or repeat patches as published."""
    min_area: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False, examples=[0.001])
    """Objects smaller than this share of the frame, over their life, go to their nearest neighbours."""
    motion: Motion | None = None
    """Join camera-compensated motion to the tokens (a departure from the paper). Default: by model."""

    @field_validator("tau", "format")
    @classmethod
    def _no_repeats(cls, values: list[Any] | None) -> list[Any] | None:
        if values is not None and len(set(values)) != len(values):
            raise ValueError("the same value is given twice")
        return values

    @field_validator("tau")
    @classmethod
    def _levels_have_names_of_their_own(cls, values: list[float] | None) -> list[float] | None:
        if values is not None and len({level_name(tau) for tau in values}) != len(values):
            raise ValueError("two values are the same to six digits")
        return values

    @model_validator(mode="after")
    def _part_is_not_empty(self) -> Self:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end:g} s) must be after start ({self.start:g} s)")
        return self


class JobParams(SegmentParams):
    """A job's parameters after defaults: nothing is left to be chosen by the worker but a resolution by video."""

    tau: list[Tau] = Field(min_length=1, max_length=8)  # required after defaults
    model: str
    motion: Motion


def level_name(tau: float) -> str:
    """The name of a level in folders and links: "1", "1.6"."""
    return f"{tau:g}"


class FieldProblem(BaseModel):
    """What is wrong with one field of a request."""

    field: str = Field(examples=["tau.0"])
    message: str = Field(examples=["Input should be greater than 0"])
    limit: float | int | str | None = Field(None, examples=[0])
    actual: str | None = Field(None, examples=["-1"])


class Problem(BaseModel):
    """An RFC 9457 problem: also what a failed job carries."""

    type: str = Field(examples=["/problems/too-many-frames"])
    title: str
    status: int
    detail: str
    limit: float | int | str | None = None
    actual: float | int | str | None = None
    errors: list[FieldProblem] | None = None
    """Every field that is wrong, for /problems/invalid-parameters."""


class QueueMessage(Contract):
    """What the queue carries: never pixels, never code."""

    job_id: str


class JobRecord(BaseModel):
    """What was asked for; written to storage before the job is queued, never changed."""

    id: str
    created_at: datetime
    owner: str | None = None
    """Whose job it is; None where the service asks for no key."""
    video_name: str
    """As the client called the file, without folders and ending."""
    video_bytes: int
    video_sha256: str
    params: JobParams
    idempotency_key: str | None = None
    """Digest of owner and Idempotency-Key."""
    callback_url: str | None = None
    """Whom to tell how it ended."""


class JobEnd(BaseModel):
    """How a job ended; created once and never changed: whoever creates it decides."""

    status: Status
    ended_at: datetime
    expires_at: datetime
    execution: str | None = None
    """Whose result counts; None where the job has none."""
    started_at: datetime | None = None
    frames: int | None = None
    """Frames of the part that was to be segmented, as far as known."""
    error: Problem | None = None


class Work(BaseModel):
    """How much there is to do, known once the video is decoded: what the time of each stage depends on."""

    frames: int
    tokens: int
    """Of a frame."""
    key_tokens: int
    pixels: int
    """Of a frame of the video, as shown."""
    levels: int


class Timing(BaseModel):
    """What a job that succeeded took; the estimates of later jobs come from it."""

    model: str
    device: str
    clustering: Clustering
    motion: Motion
    video_bytes: int
    work: Work
    seconds: dict[Stage, float]
    """In each stage, as progress told of it."""

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


class Progress(BaseModel):
    """Where a running job is; lives in Redis alone."""

    execution: str
    started_at: datetime
    stage: Stage
    frames_done: int = 0
    frames_total: int | None = None
    fraction: float = 0.0
    """Of the whole job, by fixed shares; `service/eta.py` knows better once a job of the model has been timed."""
    work: Work | None = None
    """Once the video is decoded."""
    seconds: dict[Stage, float] = Field(default_factory=dict)
    """Spent in each stage so far."""
    device: str | None = None


class WorkerInfo(BaseModel):
    """What a worker tells of itself while it lives."""

    name: str
    device: str
    models: dict[str, str] = Field(default_factory=dict)
    """Models it has loaded, and the SHA-256 of their weights."""
    sandbox: list[str] = Field(default_factory=list)
    """What holds its decoder."""
    busy_with: str | None = None


class Video(BaseModel):
    """The uploaded file."""

    name: str = Field(examples=["clip"])
    """The client's name for it, without folders and ending."""
    bytes: int = Field(examples=[1_048_576])
    sha256: str


class SecondsRange(BaseModel):
    """An estimate, in seconds."""

    low: float = Field(ge=0, examples=[4.0])
    high: float = Field(ge=0, examples=[9.0])


class LevelLinks(BaseModel):
    """Where the result of one level lies; absent where the format was not asked for."""

    tau: float = Field(examples=[1.0])
    masks_zip: str | None = None
    """All masks as `<video name>/00000.png …`."""
    mask: str | None = None
    """One frame's mask; replace `{frame}` by its index."""
    rle: str | None = None
    overlay: str | None = None
    youtube_vis: str | None = None
    cvat: str | None = None
    rounds: str | None = None
    """The groups of patches from which the rounds of the clustering began; the manifest tells how they merged."""


class Links(BaseModel):
    self: str = Field(examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    events: str
    cancel: str
    manifest: str | None = None
    """Once succeeded."""
    levels: list[LevelLinks] = Field(default_factory=list)
    """Once succeeded: one for each tau, in the order asked for."""


class Delivery(BaseModel):
    """One attempt to tell a client's server how its job ended."""

    attempt: int = Field(ge=1)
    at: datetime
    status: int | None = None
    """What the server answered; absent where it did not."""
    error: str | None = None
    """Why there is no answer."""
    next_at: datetime | None = None
    """When it will be tried again; absent where it will not."""


class Callback(BaseModel):
    """Whom a job's end is told to, and how that went."""

    url: str
    last_delivery: Delivery | None = None


class JobView(BaseModel):
    """A job as its owner sees it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str = Field(examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    status: Status = Field(examples=["running"])
    """queued and running may change; succeeded, failed and canceled are final."""
    stage: Stage | None = Field(None, examples=["attention"])
    """What a running job is at."""
    frames_done: int = Field(0, ge=0, examples=[12])
    """Frames the current stage has done."""
    frames_total: int | None = Field(None, examples=[48])
    """Frames of the part to segment, once known."""
    fraction: float = Field(0.0, ge=0, le=1, examples=[0.4])
    """Share of the whole work that is done, as far as can be known."""
    position: int | None = Field(None, examples=[2])
    """Jobs before this one in the queue, while queued."""
    eta_s: SecondsRange | None = None
    """Seconds until the end, while queued or running, where it can be estimated."""
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    """When the job and its results will be removed, once it has ended."""
    video: Video
    params: JobParams
    """As they are used: defaults filled in."""
    error: Problem | None = None
    """Why it failed."""
    callback: Callback | None = None
    """Where a `callback_url` was given."""
    links: Links


class JobPage(BaseModel):
    """Some of one's jobs, newest first."""

    jobs: list[JobView]
    next: str | None = Field(None, examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """The cursor of the next page; None on the last."""


class ManifestVideo(BaseModel):
    name: str
    sha256: str
    width: int
    """Pixels, as shown: rotation applied."""
    height: int
    frame_count: int
    fps: float | None
    """Mean frames per second; None for a single frame."""
    pts_s: list[float]
    """Presentation time of each frame, seconds."""
    rotation: int
    """Degrees clockwise that were applied."""
    sample_aspect_ratio: str
    """"1:1" where pixels are square."""
    codec: str


class ManifestModel(BaseModel):
    name: str
    weights: str
    """Where they came from."""
    sha256: str
    version: str | None = None


class ManifestObject(BaseModel):
    id: int
    color: str
    """"#rrggbb", as in the palette."""
    area: float
    """Mean share of the frame over the frames it is seen in."""
    first_frame: int
    last_frame: int
    frames: int
    """The number of frames it is seen in."""
    background_score: float


class ManifestRound(BaseModel):
    centroids: int
    parents: list[int]
    """For each centroid of the round before, the index of the centroid it merged into; empty in the first round,
    before which every token stood for itself."""


class ManifestLevel(BaseModel):
    tau: float
    name: str
    clusters: int
    objects: list[ManifestObject]
    background_clusters: int
    rounds: list[ManifestRound]
    files: list[str]


class Manifest(BaseModel):
    """What a job did, enough to do it again: written once, when the result is complete."""

    job_id: str | None
    created_at: datetime
    video: ManifestVideo
    params: dict[str, Any]
    model: ManifestModel
    versions: dict[str, str]
    device: str
    dtype: str
    resolution: str
    grid: str
    key_frames: list[int]
    timings_s: dict[str, float]
    warnings: list[str]
    sandbox: list[str] = Field(default_factory=list)
    """What held the decoder."""
    levels: list[ManifestLevel]


class RleMask(BaseModel):
    size: tuple[int, int]
    counts: str


class RleObject(BaseModel):
    id: int
    rle: RleMask


class RleFrame(BaseModel):
    index: int
    time: float
    objects: list[RleObject]


class RleDocument(BaseModel):
    """rle.json of one level: COCO run lengths, column-major, background first."""

    size: tuple[int, int]
    frames: list[RleFrame]


class RoundsDocument(BaseModel):
    """rounds.json of one level: the group of every patch after the first round, before groups merged.

    The group after round r of the manifest is `rounds[r].parents[... rounds[1].parents[group]]`.
    """

    grid: tuple[int, int]
    """Patches of a frame, (h, w)."""
    frames: list[list[int]]
    """For each frame its runs of equal groups, row by row: group, length, group, length, ..."""
