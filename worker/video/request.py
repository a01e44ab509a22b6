"""What to decode and how much of it. Imported by the decoder process too, so it imports neither numpy nor torch."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DecodeLimits:
    """Limits beyond which a video is refused; enforced while decoding, since headers may be wrong."""

    max_frames: int = 100_000
    max_pixels: int = 4096 * 2304
    """Of one frame, as stored."""
    max_duration_s: float = 3600.0
    """From the first to the last frame of the part."""
    max_bytes: int = 32 * 2**30
    """Of the frames written to the work folder."""
    timeout_s: float = 600.0
    """Total time spent waiting for the decoder process."""
    memory_bytes: int = 2 * 2**30
    """Address space of the decoder process."""
    stall_s: float = 10.0
    """Time without output and without CPU use after which the decoder process is restarted once."""


@dataclass(frozen=True)
class VideoPart:
    """The frames to keep: start <= time < end in seconds from the first frame, at most `fps` frames a second."""

    start: float | None = None
    end: float | None = None
    fps: float | None = None
    """Evenly spaced; None: all."""

    @property
    def is_whole(self) -> bool:
        return self.start is None and self.end is None and self.fps is None


@dataclass(frozen=True)
class DecodeRequest:
    """A video file, or a folder of JPEG or PNG pictures, with the part to decode and the limits."""

    source: Path
    part: VideoPart = field(default_factory=VideoPart)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
