"""Colours of object ids: the palette of PASCAL VOC, as in DAVIS."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

MAX_PALETTE_ID = 255  # of a palette PNG


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
