"""The values that stages hand on: a decoded clip and the patch grid of a frame."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONG_SIDE_TOKENS = 256  # patches along a frame's longer side: an aspect ratio of 10:1 at 24 patches of height


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


def model_size(
    video_size: tuple[int, int], *, short_side: int, patch: int, resolution: str | None = None
) -> tuple[int, int]:
    """The size at which a model looks at a video.

    Args:
        video_size: (H, W) in pixels of the video as shown.
        short_side: The model's own choice for the shorter side, in pixels; the aspect ratio is kept.
        patch: Pixels a side; both sides of the result are multiples of it, the nearest ones.
        resolution: "HxW" in pixels, instead of `short_side` and the aspect ratio of the video.

    Returns:
        (H, W) in pixels.

    Raises:
        ValueError: a side would have fewer than 2 patches or more than `LONG_SIDE_TOKENS`.
    """
    if resolution is None:
        scale = short_side / min(video_size)
        wanted = (video_size[0] * scale, video_size[1] * scale)
        source = f"a video of {video_size[0]}x{video_size[1]} at a short side of {short_side}"
    else:
        height, width = resolution.split("x")
        wanted = (float(height), float(width))
        source = f"the resolution {resolution}"
    grid = (round(wanted[0] / patch), round(wanted[1] / patch))
    if min(grid) < 2:
        raise ValueError(f"{source} has fewer than 2 patches of {patch} pixels on its shorter side")
    if max(grid) > LONG_SIDE_TOKENS:
        raise ValueError(
            f"{source} has {max(grid)} patches of {patch} pixels on its longer side, more than {LONG_SIDE_TOKENS}"
        )
    return grid[0] * patch, grid[1] * patch
