"""The values that stages hand on: a decoded clip and the patch grid of a frame."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PatchGrid:
    """The grid of patches a frame is cut into: h rows of w patches."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a patch grid has at least one patch, got {self.height}x{self.width}")

    @property
    def tokens(self) -> int:
        """N, the number of patches in a frame."""
        return self.height * self.width


@dataclass(frozen=True)
class Clip:
    """Decoded frames and the time each is shown.

    Attributes:
        frames: RGB, uint8, shape (T, H, W, 3), rotation applied; in memory, or a read-only memory map of a
            spool file for long videos.
        pts_s: Presentation time of each frame in seconds from the start of the video, float64, shape (T,).
        video_size: (H, W) in pixels of the video as shown (rotation applied); differs from `frames` where
            they were decoded straight to the model's resolution.
    """

    frames: NDArray[np.uint8]
    pts_s: NDArray[np.float64]
    video_size: tuple[int, int]

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or len(self.frames) < 1:
            raise ValueError(f"expected frames of shape (T, H, W, 3) with T >= 1, got {self.frames.shape}")
        if self.pts_s.shape != (len(self.frames),):
            raise ValueError(f"expected one time a frame, got {self.pts_s.shape = } for {len(self.frames)}")
