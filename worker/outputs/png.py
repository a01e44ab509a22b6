"""Label maps -> PNG: a palette with the VOC colours, as DAVIS has them, or 16-bit grey beyond its 255 objects."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PALETTE_ID = 255
COMPRESSION = 1  # zlib's fastest: label maps are flat, higher levels cost time and save little


def palette(size: int = MAX_PALETTE_ID + 1) -> NDArray[np.uint8]:
    """The VOC palette, RGB, shape (size, 3); 0 is black.

    Source: the colour map of the PASCAL VOC development kit: the bits of an id, three at a time from the lowest, give
    one bit each to red, green and blue, from the highest down.
    """
    return _table(max(size - 1, MAX_PALETTE_ID).bit_length())[:size]


@cache
def _table(bits: int) -> NDArray[np.uint8]:
    """The palette of all ids of so many bits: few sizes, so that what is kept stays small."""
    ids = np.arange(1 << bits)[:, None]
    channel = np.arange(3)
    colors = np.zeros((1 << bits, 3), np.int64)
    for place in range(8):
        colors |= (ids >> (3 * place + channel) & 1) << (7 - place)
    table = colors.astype(np.uint8)
    table.setflags(write=False)
    return table


def color(label: int) -> str:
    """The palette's colour of an id, "#rrggbb"; computed for any id, though a palette PNG holds only 255."""
    red, green, blue = palette(label + 1)[label].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def write_png(path: Path, label_map: NDArray[np.integer], *, objects: int | None = None) -> None:
    """Write a label map, shape (H, W): palette mode for up to 255 objects, 16-bit grey for more.

    Args:
        path: The file; it ends in .png.
        label_map: Object ids, 0 for background.
        objects: The number of objects of the whole video, so that all its frames are of one kind; default: the
            largest id of this frame.
    """
    if (int(label_map.max()) if objects is None else objects) > MAX_PALETTE_ID:
        image = Image.fromarray(label_map.astype(np.uint16))
    else:
        image = Image.fromarray(label_map.astype(np.uint8), "P")
        image.putpalette(palette().tobytes())
    image.save(path, format="PNG", compress_level=COMPRESSION)
