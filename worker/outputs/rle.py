"""Label maps -> COCO run lengths, all objects of a frame in one pass, and `rle.json`, written frame by frame."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from uvos.rle import compressed


@dataclass(frozen=True)
class Runs:
    """A label map as runs of equal labels down the columns: compact, and fast to renumber, encode or restore.

    Attributes:
        size: (H, W).
        labels: Label of each run, uint16, shape (n,); neighbours differ.
        starts: Start of each run in pixels, counted column by column, int64, shape (n,); the first is 0.
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
        is_start = np.concatenate([[True], labels[1:] != labels[:-1]])
        return Runs(self.size, labels[is_start], self.starts[is_start])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Pixels in each run, shape (n,)."""
        return np.diff(self.starts, append=self.size[0] * self.size[1])

    def areas(self, labels: int) -> NDArray[np.int64]:
        """Pixels of each label in [0, labels)."""
        return np.bincount(self.labels, self.lengths, labels).astype(np.int64)

    def label_map(self) -> NDArray[np.uint16]:
        """The label map, shape (H, W)."""
        height, width = self.size
        return np.ascontiguousarray(self.labels.repeat(self.lengths).reshape(width, height).T)

    def counts(self) -> dict[int, str]:
        """COCO's compressed `counts` of every object, by id: identical to the bytes of pycocotools for its mask.

        Background, 0, is omitted. Source: `rleEncode` and `rleToString` of cocoapi: alternating runs of zeros and
        ones, zeros first; from the fourth on minus the run two before; five bits per character, lowest first.
        """
        objects = np.flatnonzero(self.labels)
        objects = objects[np.argsort(self.labels[objects], kind="stable")]
        labels, starts = self.labels[objects], self.starts[objects]
        if len(labels) == 0:
            return {}
        ends = starts + self.lengths[objects]
        first = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]]))  # index of each object's first run
        runs = np.diff(first, append=len(labels))
        last = first + runs - 1
        before = np.concatenate([[0], ends[:-1]])
        before[first] = 0
        after = self.size[0] * self.size[1] - ends[last]

        # For each object alternating zeros and ones, then the zeros after its last run, if any.
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

        text, lengths = compressed(differences)
        stops = lengths.cumsum()[offset + total - 1].tolist()
        begins = [0, *stops[:-1]]
        return {
            label: text[begin:stop] for label, begin, stop in zip(labels[first].tolist(), begins, stops, strict=True)
        }


class RunsSpool:
    """The runs of a video's label maps in a temporary file without a name; frames are read by any thread.

    Each frame is drawn once, before the final ids are known; memory does not grow with the length of the video.
    """

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self._size = size
        self._file = tempfile.TemporaryFile(dir=folder, prefix="runs-")  # noqa: SIM115 - closed by __exit__
        self._counts: list[int] = []
        self._offsets = [0]

    def __len__(self) -> int:
        return len(self._counts)

    def append(self, runs: Runs) -> None:
        data = runs.starts.astype("<u4").tobytes() + runs.labels.astype("<u2").tobytes()
        self._file.write(data)
        self._file.flush()
        self._counts.append(len(runs.labels))
        self._offsets.append(self._offsets[-1] + len(data))

    def read(self, frame_index: int) -> Runs:
        offset, count = self._offsets[frame_index], self._counts[frame_index]
        data = os.pread(self._file.fileno(), self._offsets[frame_index + 1] - offset, offset)
        starts = np.frombuffer(data, "<u4", count).astype(np.int64)
        return Runs(self._size, np.frombuffer(data, "<u2", count, 4 * count).astype(np.uint16), starts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class RleWriter:
    """`rle.json` of one level (`RleDocument` of the contract), written frame by frame with one frame in memory.

    A context manager; the document is complete only if the block ends without an exception.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self._size = list(size)
        self._frames = 0
        self._file = path.open("w", encoding="ascii")
        self._file.write(f'{{"size":{json.dumps(self._size, separators=(",", ":"))},"frames":[')

    def write(self, time: float, counts: Mapping[int, str], source_frame: int | None = None) -> None:
        """Append the next frame: its time in seconds, the `counts` of its objects by id, its number in the file."""
        number = {} if source_frame is None else {"source_frame": source_frame}
        frame = {
            "index": self._frames,
            "time": time,
            **number,
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
