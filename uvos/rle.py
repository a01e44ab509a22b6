"""Decode COCO RLE to masks and label maps, measure and merge masks.

Uses NumPy instead of `pycocotools.mask.decode`: a label map of 8 objects at 480x854 takes 4.6 ms here and 9.2 ms there
(2 cores, 2026-11), CVAT export needs the run lengths themselves, and pycocotools 2.0.11 emits a DeprecationWarning
under NumPy 2.
"""

from collections.abc import Sequence

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


def compressed(numbers: NDArray[np.int64]) -> tuple[str, NDArray[np.intp]]:
    """Signed numbers as COCO's text, concatenated, and the number of characters of each."""
    rest, digits, written = numbers, [], []
    more = np.ones(len(numbers), bool)
    while more.any():
        digit = rest & (CONTINUES - 1)
        rest = rest >> DIGIT_BITS
        written.append(more)
        # A number ends when only its sign remains and the digit's highest bit shows it.
        more = more & (rest != np.where(digit & CONTINUES >> 1, -1, 0))
        digits.append((digit | np.where(more, CONTINUES, 0)) + FIRST_CHARACTER)
    is_written = np.stack(written, 1)
    return np.stack(digits, 1)[is_written].astype(np.uint8).tobytes().decode("ascii"), is_written.sum(1)


def area(rle: RleMask) -> int:
    """Pixels of a mask."""
    return int(runs(rle.counts)[1::2].sum())


def union(masks: Sequence[RleMask]) -> RleMask:
    """The pixels of any of these masks, which have the same size; identical to the bytes of pycocotools.

    Sorted separately, the starts and ends of intervals have a gap exactly where an end lies before the next start.
    """
    height, width = masks[0].size
    edges = [runs(item.counts).cumsum() for item in masks]
    starts = np.sort(np.concatenate([of_mask[: len(of_mask) // 2 * 2 : 2] for of_mask in edges]))
    ends = np.sort(np.concatenate([of_mask[1::2] for of_mask in edges]))
    is_first = np.concatenate([[True], starts[1:] > ends[:-1]])[: len(starts)]
    starts, ends = starts[is_first], ends[np.roll(is_first, -1)]
    bounds = np.stack([starts, ends], 1).ravel()
    if not len(bounds) or bounds[-1] < height * width:
        bounds = np.append(bounds, height * width)
    lengths = np.diff(bounds, prepend=0)
    lengths[3:] -= lengths[1:-2].copy()
    return RleMask(size=masks[0].size, counts=compressed(lengths)[0])


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
