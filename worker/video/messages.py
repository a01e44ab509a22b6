"""Messages between the decoder process and its parent, one JSON object per line.

Plain dataclasses, because the decoder process imports neither pydantic nor numpy; the parent validates every message
against these types with pydantic, since a compromised decoder can send anything.
"""

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, MaxLen

from worker.video.request import DecodeLimits, VideoPart

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Side = Annotated[int, Ge(1), Le(2**20)]


@dataclass(frozen=True, kw_only=True)
class DecoderOptions:
    """The argument of the decoder process; it inherits the open files."""

    parent_pid: int
    input_fd: int
    picture_count: int | None
    """Number of pictures in the input, a pack (`sources.PICTURE_HEADER`); None: the input is a video or an archive."""
    is_archive: bool = False
    """Whether the input is a ZIP archive of pictures."""
    spool_fd: int | None
    """Where RGB rows are written; None: to standard output, after their `frame` message."""
    threads: int
    part: VideoPart
    limits: DecodeLimits

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DecoderOptions":
        values = json.loads(text)
        return cls(**values | {"part": VideoPart(**values["part"]), "limits": DecodeLimits(**values["limits"])})


@dataclass(frozen=True, kw_only=True)
class Message:
    """Base of all messages; `type` tells them apart."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, kw_only=True)
class SandboxReport(Message):
    """First message: the restrictions that were applied before any input was read."""

    type: Literal["sandbox"] = "sandbox"
    applied: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VideoHeader(Message):
    """Properties of the video; answered with the size to scale to, "H W"."""

    type: Literal["header"] = "header"
    size: tuple[Side, Side]
    """(H, W) in pixels, rotation applied."""
    rotation: Literal[0, 90, 180, 270]
    """Degrees clockwise that are applied."""
    mirrored: bool
    sample_aspect_ratio: tuple[Positive, Positive]
    codec: Annotated[str, MaxLen(32)]
    expected_frames: int | None
    """By the container's header; used for progress only."""


@dataclass(frozen=True, kw_only=True)
class FrameMessage(Message):
    """A frame is in the spool, or follows as RGB rows."""

    type: Literal["frame"] = "frame"
    number: Positive
    """Counted from 1."""
    time_s: Annotated[float, Ge(0)]
    source_frame: Count | None = None
    """Number among the decoded frames of the file, from 0; None if unknown."""


@dataclass(frozen=True, kw_only=True)
class DecodeSummary(Message):
    """Last message after success."""

    type: Literal["summary"] = "summary"
    frames: Positive
    assumed_times: Count
    """Frames without a time of their own, or with a time before the previous frame."""
    resized: Count
    """Frames of another size than the first."""
    damaged: Count
    lost: Count
    no_end_mark: bool


@dataclass(frozen=True, kw_only=True)
class DecodeFailure(Message):
    """Last message after a failure."""

    type: Literal["failure"] = "failure"
    kind: str
    """Name of a class of `uvos.errors`."""
    detail: Annotated[str, MaxLen(600)]
    limit: float | int | None = None
    actual: float | int | None = None


AnyMessage = SandboxReport | VideoHeader | FrameMessage | DecodeSummary | DecodeFailure
