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


class Problem(BaseModel):
    """An RFC 9457 problem: also what a failed job carries."""

    type: str = Field(examples=["/problems/too-many-frames"])
    title: str
    status: int
    detail: str
    limit: float | int | str | None = None
    actual: float | int | str | None = None


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
    """For each centroid of the round before, the index of the centroid it merged into."""


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
