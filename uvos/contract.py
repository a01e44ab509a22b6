"""The job contract: what a client asks for, what the queue carries, what a job looks like, the manifest.

Everything that crosses a process is a model of this file; service and worker share nothing else.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

TASK = "worker.jobs.tasks.segment_video"  # the only function a worker may be asked to run
QUEUE = "uvos"
VIDEO_SUFFIXES = {  # what is taken for a video where folders are looked through; what is decoded, its content decides
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".gif"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".ogv", ".flv", ".wmv", ".asf"),
}

# Told as a list of two: tools that read OpenAPI stumble over `prefixItems`.
Size = Annotated[
    tuple[int, int],
    WithJsonSchema({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}),
]


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


class Described(BaseModel):
    """A model whose fields carry their docstrings into OpenAPI."""

    model_config = ConfigDict(use_attribute_docstrings=True)


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

    tau: list[Tau] = Field(min_length=1, max_length=8, examples=[[1.0]])  # required after defaults
    """Merge thresholds, nats: a level of the result for each."""
    model: str = Field(examples=["tiny"])
    """A name from /models."""
    motion: Motion
    """Whether camera-compensated motion is joined to the tokens."""


def level_name(tau: float) -> str:
    """The name of a level in folders and links: "1", "1.6"."""
    return f"{tau:g}"


class FieldProblem(Described):
    """What is wrong with one field of a request."""

    field: str = Field(examples=["tau.0"])
    """The field, by its path in the form."""
    message: str = Field(examples=["Input should be greater than 0"])
    """What is wrong with it."""
    limit: float | int | str | None = Field(None, examples=[0])
    """What would be allowed."""
    actual: str | None = Field(None, examples=["-1"])
    """What was given."""


class Problem(Described):
    """An RFC 9457 problem: also what a failed job carries."""

    type: str = Field(examples=["/problems/too-many-frames"])
    """Stable name of the kind of failure; a path, not an address to fetch."""
    title: str = Field(examples=["Too many frames"])
    """The kind in words."""
    status: int = Field(examples=[422])
    """HTTP status; of a failed job, the one it would have as an answer."""
    detail: str = Field(examples=["the video has 6000 frames, at most 5000 may be"])
    """What went wrong this time."""
    limit: float | int | str | None = Field(None, examples=[5000])
    """What would be allowed, where there is a limit."""
    actual: float | int | str | None = Field(None, examples=[6000])
    """What it was."""
    errors: list[FieldProblem] | None = None
    """Every field that is wrong, for /problems/invalid-parameters."""


class QueueMessage(Contract):
    """What the queue carries: never pixels, never code."""

    job_id: str


class JobRecord(Described):
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


class JobEnd(Described):
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


class Work(Described):
    """How much there is to do, known once the video is decoded: what the time of each stage depends on."""

    frames: int
    tokens: int
    """Of a frame."""
    key_tokens: int
    pixels: int
    """Of a frame of the video, as shown."""
    levels: int


class Timing(Described):
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


class Progress(Described):
    """Where a running job is; lives in Redis alone."""

    execution: str
    started_at: datetime
    stage: Stage
    frames_done: int = 0
    frames_total: int | None = None
    fraction: float = 0.0
    """Of the whole job, by fixed shares; `service/jobs/eta.py` knows better once a job of the model has been timed."""
    work: Work | None = None
    """Once the video is decoded."""
    seconds: dict[Stage, float] = Field(default_factory=dict)
    """Spent in each stage so far."""
    device: str | None = None


class WorkerInfo(Described):
    """What a worker tells of itself while it lives."""

    name: str = Field(examples=["host-1a2b3c4d"])
    """Its own name, new at every start."""
    device: str = Field(examples=["cuda:0"])
    """Where it computes."""
    models: dict[str, str] = Field(
        default_factory=dict, examples=[{"tiny": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}]
    )
    """Models it has loaded, and the SHA-256 of their weights."""
    sandbox: list[str] = Field(default_factory=list, examples=[["rlimits", "landlock"]])
    """What holds its decoder."""
    busy_with: str | None = Field(None, examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """The job it works on."""


class Video(Described):
    """The uploaded file."""

    name: str = Field(examples=["clip"])
    """The client's name for it, without folders and ending."""
    bytes: int = Field(examples=[1_048_576])
    """Size of the file, bytes."""
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """Of the file, in hex."""


class SecondsRange(Described):
    """An estimate, in seconds."""

    low: float = Field(ge=0, examples=[4.0])
    """Hardly less than this, seconds."""
    high: float = Field(ge=0, examples=[9.0])
    """Hardly more than this, seconds."""


class LevelLinks(Described):
    """Where the result of one level lies; absent where the format was not asked for."""

    tau: float = Field(examples=[1.0])
    """The level, nats."""
    masks_zip: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/masks.zip?tau=1"])
    """All masks as `<video name>/00000.png …`."""
    mask: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/masks/{frame}.png?tau=1"])
    """One frame's mask; replace `{frame}` by its index."""
    rle: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/rle.json?tau=1"])
    """COCO run lengths of every object in every frame."""
    overlay: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/overlay.mp4?tau=1"])
    """The video with coloured masks over it, H.264."""
    youtube_vis: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/youtube-vis.json?tau=1"])
    """YouTube-VIS results."""
    cvat: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/cvat.xml?tau=1"])
    """CVAT for video 1.1."""
    rounds: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/rounds.json?tau=1"])
    """The groups of patches from which the rounds of the clustering began; the manifest tells how they merged."""


class Links(Described):
    self: str = Field(examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """The job itself."""
    events: str = Field(examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/events"])
    """Its events as they happen."""
    cancel: str = Field(examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/cancel"])
    """POST here ends it."""
    manifest: str | None = Field(None, examples=["/jobs/019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c/manifest.json"])
    """Once succeeded."""
    levels: list[LevelLinks] = Field(default_factory=list)
    """Once succeeded: one for each tau, in the order asked for."""


class Delivery(Described):
    """One attempt to tell a client's server how its job ended."""

    attempt: int = Field(ge=1, examples=[1])
    """Counted from 1."""
    at: datetime = Field(examples=["2026-01-31T12:00:00Z"])
    """When it was made."""
    status: int | None = Field(None, examples=[200])
    """What the server answered; absent where it did not."""
    error: str | None = Field(None, examples=["connection refused"])
    """Why there is no answer."""
    next_at: datetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])
    """When it will be tried again; absent where it will not."""


class Callback(Described):
    """Whom a job's end is told to, and how that went."""

    url: str = Field(examples=["https://example.org/hooks/uvos"])
    """Where the end is told to."""
    last_delivery: Delivery | None = None
    """The latest attempt, once there was one."""


class JobView(Described):
    """A job as its owner sees it."""

    id: str = Field(examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """Unguessable, sorted by time of creation."""
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
    created_at: datetime = Field(examples=["2026-01-31T12:00:00Z"])
    """When it was accepted."""
    started_at: datetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])
    """When a worker began it."""
    ended_at: datetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])
    """When it ended."""
    expires_at: datetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])
    """When the job and its results will be removed, once it has ended."""
    video: Video
    """The file it was made from."""
    params: JobParams
    """As they are used: defaults filled in."""
    error: Problem | None = None
    """Why it failed."""
    callback: Callback | None = None
    """Where a `callback_url` was given."""
    links: Links
    """Where everything about it lies."""


class JobPage(Described):
    """Some of one's jobs, newest first."""

    jobs: list[JobView]
    """Newest first."""
    next: str | None = Field(None, examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """The cursor of the next page; None on the last."""


class ManifestVideo(Described):
    name: str = Field(examples=["clip"])
    """The client's name for it."""
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """Of the file, in hex."""
    width: int = Field(examples=[854])
    """Pixels, as shown: rotation applied."""
    height: int = Field(examples=[480])
    """Pixels, as shown."""
    frame_count: int = Field(examples=[48])
    """Frames of the part that was segmented."""
    fps: float | None = Field(examples=[24.0])
    """Mean frames per second; None for a single frame."""
    pts_s: list[float] = Field(examples=[[0.0, 0.0417]])
    """Presentation time of each frame, seconds."""
    rotation: int = Field(examples=[0])
    """Degrees clockwise that were applied."""
    sample_aspect_ratio: str = Field(examples=["1:1"])
    """"1:1" where pixels are square."""
    codec: str = Field(examples=["h264"])
    """As libav names it."""


class ManifestModel(Described):
    name: str = Field(examples=["tiny"])
    """Its name in /models."""
    weights: str = Field(examples=["tiny.safetensors"])
    """Where they came from."""
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """Of the weights' file, in hex."""
    version: str | None = Field(None, examples=["1"])
    """Of the weights."""


class ManifestObject(Described):
    id: int = Field(examples=[1])
    """Its label in every frame; counted from 1 by first appearance, then area."""
    color: str = Field(examples=["#800000"])
    """"#rrggbb", as in the palette."""
    area: float = Field(examples=[0.12])
    """Mean share of the frame over the frames it is seen in."""
    first_frame: int = Field(examples=[0])
    """Index of the first frame it is seen in."""
    last_frame: int = Field(examples=[47])
    """Index of the last frame it is seen in."""
    frames: int = Field(examples=[48])
    """The number of frames it is seen in."""
    background_score: float = Field(examples=[0.1])
    """How much it looks like background: 0 not at all, 1 wholly."""


class ManifestRound(Described):
    centroids: int = Field(examples=[12])
    """How many there were after it."""
    parents: list[int] = Field(examples=[[0, 1, 1]])
    """For each centroid of the round before, the index of the centroid it merged into; empty in the first round,
    before which every token stood for itself."""


class ManifestLevel(Described):
    tau: float = Field(examples=[1.0])
    """Merge threshold, nats."""
    name: str = Field(examples=["1"])
    """Of its folder and in links."""
    clusters: int = Field(examples=[7])
    """Centroids at the end, background among them."""
    objects: list[ManifestObject]
    """What was found, by id."""
    background_clusters: int = Field(examples=[2])
    """Clusters told to be background."""
    rounds: list[ManifestRound]
    """How clusters merged, round by round."""
    files: list[str] = Field(examples=[["levels/1/rle.json"]])
    """What was written, by path."""


class Manifest(Described):
    """What a job did, enough to do it again: written once, when the result is complete."""

    job_id: str | None = Field(examples=["019a7d3c5c1f4a6e8b1d2c3e4f5a6b7c"])
    """The job; none where the worker was run by hand."""
    created_at: datetime = Field(examples=["2026-01-31T12:00:00Z"])
    """When the result was complete."""
    video: ManifestVideo
    """What was segmented."""
    params: dict[str, Any] = Field(examples=[{"tau": [1.0], "key_ratio": 0.1}])
    """As used, defaults filled in."""
    model: ManifestModel
    """What saw it."""
    versions: dict[str, str] = Field(examples=[{"torch": "2.9.0"}])
    """Of the packages that matter."""
    device: str = Field(examples=["cuda:0"])
    """Where it was computed."""
    dtype: str = Field(examples=["bfloat16"])
    """Of matrix products; logarithms and sums are float32."""
    resolution: str = Field(examples=["192x344"])
    """HxW in pixels at which the model looked."""
    grid: str = Field(examples=["24x43"])
    """HxW in patches."""
    key_frames: list[int] = Field(examples=[[0, 10, 20]])
    """Indices of the frames that served as keys."""
    timings_s: dict[str, float] = Field(examples=[{"decode": 0.4, "total": 3.2}])
    """Seconds in each stage, and in all."""
    warnings: list[str] = Field(examples=[["level 0.1 has 300 objects: its PNGs are 16-bit grey"]])
    """What a person should know of the result."""
    sandbox: list[str] = Field(default_factory=list, examples=[["rlimits", "landlock"]])
    """What held the decoder."""
    levels: list[ManifestLevel]
    """One for each tau, in the order asked for."""


class RleMask(Described):
    size: Size = Field(examples=[[480, 854]])
    """Height and width, pixels."""
    counts: str = Field(examples=["0PPh0"])
    """COCO's compressed run lengths: column-major, zeros first."""


class RleObject(Described):
    id: int = Field(examples=[1])
    """As in the manifest."""
    rle: RleMask
    """Where it is in this frame."""


class RleFrame(Described):
    index: int = Field(examples=[0])
    """From 0; an index into the manifest's `pts_s`."""
    time: float = Field(examples=[0.0417])
    """When it is shown, seconds."""
    objects: list[RleObject]
    """Those seen in this frame, by id; they do not overlap."""


class RleDocument(Described):
    """rle.json of one level: COCO run lengths, column-major, background first."""

    size: Size = Field(examples=[[480, 854]])
    """Height and width of the video, pixels."""
    frames: list[RleFrame]
    """All frames, in order."""


class RoundsDocument(Described):
    """rounds.json of one level: the group of every patch after the first round, before groups merged.

    The group after round r of the manifest is `rounds[r].parents[... rounds[1].parents[group]]`.
    """

    grid: Size = Field(examples=[[24, 43]])
    """Patches of a frame, (h, w)."""
    frames: list[list[int]] = Field(examples=[[[0, 40, 1, 992]]])
    """For each frame its runs of equal groups, row by row: group, length, group, length, ..."""
