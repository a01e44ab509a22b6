"""Values passed between stages: a decoded clip and the patch grid of a frame."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONG_SIDE_TOKENS = 256  # patches; allows an aspect ratio of 10:1 at a height of 24 patches


@dataclass(frozen=True)
class PatchGrid:
    """The patches of a frame: h rows of w patches."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"expected a grid of at least one patch, got {self.height}x{self.width}")

    @property
    def tokens(self) -> int:
        """N, the number of patches of a frame."""
        return self.height * self.width


@dataclass(frozen=True)
class Clip:
    """Decoded frames and their presentation times.

    Attributes:
        frames: RGB, uint8, shape (T, H, W, 3), rotation applied; in memory, or a read-only memory map of a spool file.
        pts_s: Presentation time of each frame in seconds from the start of the video, float64, shape (T,).
        video_size: (H, W) in pixels of the video, rotation applied; differs from the size of `frames` if these were
            decoded to the model's input resolution.
        source_frames: Number of each frame among the decoded frames of the file, from 0; None if unknown.
    """

    frames: NDArray[np.uint8]
    pts_s: NDArray[np.float64]
    video_size: tuple[int, int]
    source_frames: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or len(self.frames) < 1:
            raise ValueError(f"expected frames of shape (T, H, W, 3) with T >= 1, got {self.frames.shape}")
        if self.pts_s.shape != (len(self.frames),):
            raise ValueError(f"expected one time per frame, got {self.pts_s.shape = } for {len(self.frames)} frames")


def model_size(
    video_size: tuple[int, int], *, short_side: int, patch: int, resolution: str | None = None
) -> tuple[int, int]:
    """The model input resolution for a video.

    Args:
        video_size: (H, W) in pixels of the video, rotation applied.
        short_side: The model's default for the shorter side, in pixels; the aspect ratio is kept.
        patch: Side of a patch in pixels; both sides of the result are the nearest multiples of it.
        resolution: "HxW" in pixels, instead of `short_side` and the aspect ratio of the video.

    Returns:
        (H, W) in pixels.

    Raises:
        ValueError: a side would have fewer than 2 patches or more than `LONG_SIDE_TOKENS`.
    """
    if resolution is None:
        scale = short_side / min(video_size)
        target = (video_size[0] * scale, video_size[1] * scale)
        source = f"a video of {video_size[0]}x{video_size[1]} at a short side of {short_side}"
    else:
        height, width = resolution.split("x")
        target = (float(height), float(width))
        source = f"the resolution {resolution}"
    grid = (round(target[0] / patch), round(target[1] / patch))
    if min(grid) < 2:
        raise ValueError(f"{source} has fewer than 2 patches of {patch} pixels on its shorter side")
    if max(grid) > LONG_SIDE_TOKENS:
        raise ValueError(
            f"{source} has {max(grid)} patches of {patch} pixels on its longer side, more than {LONG_SIDE_TOKENS}"
        )
    return grid[0] * patch, grid[1] * patch
