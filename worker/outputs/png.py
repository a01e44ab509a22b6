"""Label maps -> PNG: palette images with the VOC colours, as in DAVIS, or 16-bit grey beyond 255 objects."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PALETTE_ID = 255
COMPRESSION = 1  # zlib's fastest: label maps compress well, and higher levels take time and save little


def palette(size: int = MAX_PALETTE_ID + 1) -> NDArray[np.uint8]:
    """The VOC palette, RGB, shape (size, 3); 0 is black.

    Source: colour map of the PASCAL VOC development kit: each group of three bits of an id, lowest first, sets one bit
    of red, green and blue, highest first.
    """
    return _table(max(size - 1, MAX_PALETTE_ID).bit_length())[:size]


@cache
def _table(bits: int) -> NDArray[np.uint8]:
    """The palette of all ids of `bits` bits; few distinct sizes, so that the cache stays small."""
    ids = np.arange(1 << bits)[:, None]
    channel = np.arange(3)
    colors = np.zeros((1 << bits, 3), np.int64)
    for bit in range(8):
        colors |= (ids >> (3 * bit + channel) & 1) << (7 - bit)
    table = colors.astype(np.uint8)
    table.setflags(write=False)
    return table


def color(label: int) -> str:
    """The palette's colour of an id, "#rrggbb"; defined for any id, also beyond the 255 of a palette PNG."""
    red, green, blue = palette(label + 1)[label].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def write_png(path: Path, label_map: NDArray[np.integer], *, objects: int | None = None) -> None:
    """Write a label map, shape (H, W), in palette mode, or as 16-bit grey for more than 255 objects.

    Args:
        path: The file; it ends in .png.
        label_map: Object ids, 0 for background.
        objects: Number of objects in the whole video, so that all its frames have the same mode; default: the largest
            id of this frame.
    """
    if (int(label_map.max()) if objects is None else objects) > MAX_PALETTE_ID:
        image = Image.fromarray(label_map.astype(np.uint16))
    else:
        image = Image.fromarray(label_map.astype(np.uint8), "P")
        image.putpalette(palette().tobytes())
    image.save(path, format="PNG", compress_level=COMPRESSION)
