"""Frames with coloured and outlined objects: for the overlay video, and a strip of a few frames."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uvos.palette import object_colors

ValueT = TypeVar("ValueT", bound=np.generic)

OPACITY = 0.5  # of an object's colour over the frame
OUTLINE_LINES = 540  # lines of video per pixel of outline thickness


def blend(frame: NDArray[np.uint8], label_map: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """A frame with objects tinted and outlined in their colours, which are those of the manifest and the page.

    Args:
        frame: RGB, shape (h, w, 3); scaled to the size of the label map.
        label_map: Object ids, 0 for background, shape (H, W).

    Returns:
        RGB, shape (H, W, 3).
    """
    height, width = label_map.shape
    if frame.shape[:2] != (height, width):
        frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    colors = object_colors(int(label_map.max()) + 1)
    objects = label_map > 0
    radius = max(1, round(height / OUTLINE_LINES))
    # An object's outline: its own pixels within the outline's thickness of another label.
    edge = objects & (spread(label_map, radius, np.maximum) != spread(label_map, radius, np.minimum))
    result = frame.copy()
    tint = colors[label_map[objects]].astype(np.float32)
    result[objects] = np.rint(frame[objects] * np.float32(1 - OPACITY) + tint * np.float32(OPACITY))
    result[edge] = colors[label_map[edge]]
    return result


def spread(values: NDArray[ValueT], radius: int, extreme: Callable[..., object]) -> NDArray[ValueT]:
    """The maximum or minimum of each pixel's square neighbourhood of `radius` pixels, shape (H, W)."""
    result = values.copy()
    for axis in (0, 1):
        source = np.moveaxis(result.copy(), axis, 0)
        target = np.moveaxis(result, axis, 0)
        for distance in range(1, radius + 1):
            extreme(target[distance:], source[:-distance], out=target[distance:])
            extreme(target[:-distance], source[distance:], out=target[:-distance])
    return result


def strip(
    frames: Sequence[NDArray[np.uint8]], label_maps: Sequence[NDArray[np.uint16]], *, width: int = 1600, gap: int = 6
) -> Image.Image:
    """A picture of a few frames side by side: the frames above, with coloured objects below.

    Args:
        frames: RGB, shape (h, w, 3) each.
        label_maps: The label map of each frame, shape (H, W).
        width: Width of the picture, pixels.
        gap: White space between frames, pixels.
    """
    height, across = label_maps[0].shape
    tile = max(1, (width - gap * (len(frames) - 1)) // len(frames))
    size = tile, max(1, round(tile * height / across))
    picture = Image.new("RGB", (len(frames) * (tile + gap) - gap, 2 * size[1] + gap), "white")
    for column, (frame, label_map) in enumerate(zip(frames, label_maps, strict=True)):
        for row, image in enumerate([frame, blend(frame, label_map)]):
            scaled = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
            picture.paste(scaled, (column * (tile + gap), row * (size[1] + gap)))
    return picture
