"""COCO run lengths -> masks.

With NumPy alone: pycocotools' `decode` warns under NumPy 2, and gives masks one by one.
"""

import numpy as np
from numpy.typing import NDArray

from uvos.contract import RleFrame, RleMask

DIGIT_BITS = 5
MORE = 1 << DIGIT_BITS
FIRST_CHARACTER = 48


def runs(counts: str) -> NDArray[np.int64]:
    """The run lengths that COCO's compressed `counts` hold: zeros and ones in turn, zeros first.

    Source: `rleFrString` of cocoapi: five bits a character, least significant first, the sign in the last one's
    highest bit; from the fourth number on less the one two before.
    """
    characters = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - FIRST_CHARACTER
    if len(characters) == 0:
        return np.zeros(0, np.int64)
    last = np.flatnonzero((characters & MORE) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    shift = DIGIT_BITS * (np.arange(len(characters)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((characters & (MORE - 1)) << shift, first)
    negative = (characters[last] & (MORE >> 1)) != 0
    numbers[negative] -= 1 << shift[last[negative]] + DIGIT_BITS
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def mask(rle: RleMask) -> NDArray[np.bool_]:
    """The mask, shape (H, W)."""
    height, width = rle.size
    lengths = runs(rle.counts)
    flat: NDArray[np.bool_] = (np.arange(len(lengths)) % 2 == 1).repeat(lengths)
    return flat.reshape(width, height).T


def label_map(frame: RleFrame, size: tuple[int, int]) -> NDArray[np.uint16]:
    """The label map of a frame: object ids, 0 for background, shape (H, W); objects do not overlap."""
    height, width = size
    flat = np.zeros(height * width, np.uint16)
    for each in frame.objects:
        edges = runs(each.rle.counts).cumsum()
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=False):
            flat[start:stop] = each.id
    return np.ascontiguousarray(flat.reshape(width, height).T)
