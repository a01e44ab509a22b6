"""Label maps -> COCO run lengths, all objects of a frame in one pass, and `rle.json` frame by frame."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

DIGIT_BITS = 5  # of a number in each character; a sixth bit says that more follow
MORE = 1 << DIGIT_BITS
SIGN = 1 << DIGIT_BITS - 1
FIRST_CHARACTER = 48  # "0"


@dataclass(frozen=True)
class Runs:
    """A label map as its runs of equal labels down the columns: small to keep, quick to renumber, encode or restore.

    Attributes:
        size: (H, W).
        labels: The label of each run, uint16, shape (n,); neighbours differ.
        starts: Where each run starts, pixels counted column by column, int64, shape (n,); the first is 0.
    """

    size: tuple[int, int]
    labels: NDArray[np.uint16]
    starts: NDArray[np.int64]

    @staticmethod
    def of(label_map: NDArray[np.uint16]) -> "Runs":
        """The runs of a label map of shape (H, W)."""
        height, width = label_map.shape
        flat = label_map.T.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        return Runs((height, width), flat[starts], starts)

    def renumbered(self, new_label: NDArray[np.uint16]) -> "Runs":
        """The runs of `new_label[label_map]`."""
        labels = new_label[self.labels]
        differ = np.concatenate([[True], labels[1:] != labels[:-1]])
        return Runs(self.size, labels[differ], self.starts[differ])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Pixels in each run, shape (n,)."""
        return np.diff(self.starts, append=self.size[0] * self.size[1])

    def areas(self, labels: int) -> NDArray[np.int64]:
        """Pixels of each label in [0, labels)."""
        return np.bincount(self.labels, self.lengths, labels).astype(np.int64)

    def label_map(self) -> NDArray[np.uint16]:
        """The label map again, shape (H, W)."""
        height, width = self.size
        return np.ascontiguousarray(self.labels.repeat(self.lengths).reshape(width, height).T)

    def counts(self) -> dict[int, str]:
        """COCO's compressed `counts` of every object, by id: the bytes that pycocotools gives for its mask.

        Background, 0, is left out. Source: `rleEncode` and `rleToString` of cocoapi: runs of zeros and ones in turn,
        zeros first; from the fourth on less the run two before; five bits a character, least significant first.
        """
        objects = np.flatnonzero(self.labels)
        objects = objects[np.argsort(self.labels[objects], kind="stable")]
        labels, starts = self.labels[objects], self.starts[objects]
        if len(labels) == 0:
            return {}
        ends = starts + self.lengths[objects]
        first = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))  # of each object
        runs = np.diff(first, append=len(labels))
        last = first + runs - 1
        before = np.concatenate([[0], ends[:-1]])
        before[first] = 0
        after = self.size[0] * self.size[1] - ends[last]

        # Zeros and ones of each object in turn, then the zeros after it, if any.
        total = 2 * runs + (after > 0)
        offset = total.cumsum() - total
        ones = 2 * np.arange(len(labels)) + 1 + np.repeat(offset - 2 * first, runs)
        numbers = np.zeros(total.sum(), np.int64)
        numbers[ones - 1] = starts - before
        numbers[ones] = ends - starts
        numbers[(offset + total - 1)[after > 0]] = after[after > 0]
        place = np.arange(len(numbers)) - np.repeat(offset, total)
        differences = numbers.copy()
        differences[2:] -= np.where(place[2:] > 2, numbers[:-2], 0)

        text, lengths = _compressed(differences)
        stops = lengths.cumsum()[offset + total - 1].tolist()
        begins = [0, *stops[:-1]]
        return {
            label: text[begin:stop] for label, begin, stop in zip(labels[first].tolist(), begins, stops, strict=True)
        }


def _compressed(numbers: NDArray[np.int64]) -> tuple[str, NDArray[np.intp]]:
    """Signed numbers as COCO's text, one after the other, and how many characters each takes."""
    rest, digits, written = numbers, [], []
    more = np.ones(len(numbers), bool)
    while more.any():
        digit = rest & (MORE - 1)
        rest = rest >> DIGIT_BITS
        written.append(more)
        # Once only the sign is left, and the digit shows it, the number ends.
        more = more & (rest != np.where(digit & SIGN, -1, 0))
        digits.append((digit | np.where(more, MORE, 0)) + FIRST_CHARACTER)
    wanted = np.stack(written, 1)
    return np.stack(digits, 1)[wanted].astype(np.uint8).tobytes().decode("ascii"), wanted.sum(1)


class RleWriter:
    """`rle.json` of one level (`RleDocument` of the contract), written frame by frame: memory holds one of them.

    A context manager; the document is complete only when it is left without an exception.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self._size = list(size)
        self._frames = 0
        self._file = path.open("w", encoding="ascii")
        self._file.write(f'{{"size":{json.dumps(self._size, separators=(",", ":"))},"frames":[')

    def write(self, time: float, counts: Mapping[int, str]) -> None:
        """Append the next frame: its time in seconds and the `counts` of its objects."""
        frame = {
            "index": self._frames,
            "time": time,
            "objects": [
                {"id": label, "rle": {"size": self._size, "counts": text}} for label, text in sorted(counts.items())
            ],
        }
        self._file.write("," * (self._frames > 0) + json.dumps(frame, separators=(",", ":"), allow_nan=False))
        self._frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.write("]}")
        self._file.close()
