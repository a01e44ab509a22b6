"""Colours of object ids: the VOC palette of PNG files, and brighter colours wherever people look at objects."""

import colorsys
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


# Distinguishable over a picture in light and dark, which the VOC palette is not: its first colours are half as bright.
BRIGHT = (
    *(0xFF5D5D, 0x3D8BFF, 0xFFC53D, 0x25C27A, 0xB06CFF),
    *(0xFF8A3D, 0x18C5D9, 0xFF6FB5, 0x9AD32E, 0x7D7AFF),
)
GOLDEN_ANGLE = 137.508  # degrees; consecutive hues are far apart


def object_colors(size: int) -> NDArray[np.uint8]:
    """Colours of objects on the page, in overlays and in the manifest, RGB, shape (size, 3); 0 is black."""
    return np.array([(0, 0, 0), *(_object_color(label) for label in range(1, size))], np.uint8)


def color(label: int) -> str:
    """The colour of an object, "#rrggbb", as `object_colors`."""
    red, green, blue = _object_color(label)
    return f"#{red:02x}{green:02x}{blue:02x}"


@cache
def _object_color(label: int) -> tuple[int, int, int]:
    if label <= len(BRIGHT):
        value = BRIGHT[label - 1]
        return value >> 16, value >> 8 & 255, value & 255
    hue = (label * GOLDEN_ANGLE + 20) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.62 if label % 2 else 0.5, 0.72)
    return round(255 * red), round(255 * green), round(255 * blue)
