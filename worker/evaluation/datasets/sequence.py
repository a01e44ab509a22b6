"""What every data set gives: named sequences, their frames, and the label maps of the frames that are annotated."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from uvos.errors import InvalidParameters

PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}

Truth = NDArray[np.int32]
"""A label map: 0 background, 1 and up objects, `labels.VOID` for pixels without a label."""


@dataclass(frozen=True)
class LabelledSequence:
    """A video with ground truth on some of its frames.

    Attributes:
        name: As the data set calls it.
        source: A video file, or the frames as pictures in order.
        annotated: Indices of the frames that have ground truth, ascending.
        read: Gives the label map of an annotated frame, shape (H, W).
    """

    name: str
    source: Path | tuple[Path, ...]
    annotated: tuple[int, ...]
    read: Callable[[int], Truth]

    def __post_init__(self) -> None:
        if not self.annotated:
            raise InvalidParameters(f"{self.name} has no annotated frame")
        if not isinstance(self.source, Path) and self.annotated[-1] >= len(self.source):
            raise InvalidParameters(f"{self.name} has ground truth for frames that are not there")

    def limited(self, frames: int) -> "LabelledSequence":
        """Its first frames alone; of a video file, the annotated ones among them."""
        source = self.source if isinstance(self.source, Path) else self.source[:frames]
        return replace(self, source=source, annotated=tuple(t for t in self.annotated if t < frames))

    def frame_name(self, frame: int) -> str:
        """What the frame's file is called, without its ending; its number where a video file holds it."""
        return f"{frame:05d}" if isinstance(self.source, Path) else self.source[frame].stem

    def truth(self) -> Truth:
        """The label maps of all annotated frames, shape (A, H, W).

        Raises:
            InvalidParameters: one cannot be read, or they differ in size.
        """
        maps = [self.read(frame) for frame in self.annotated]
        if len({labels.shape for labels in maps}) > 1:
            raise InvalidParameters(f"the ground truth of {self.name} is not of one size")
        return np.stack(maps)


def folder(path: Path, *, holds: str) -> Path:
    """The folder, which must be there.

    Raises:
        InvalidParameters: it is not; the sentence says what it `holds`.
    """
    if not path.is_dir():
        raise InvalidParameters(f"there is no folder {path}; expected {holds}")
    return path


def pictures(path: Path) -> tuple[Path, ...]:
    """The pictures in a folder, by name."""
    return tuple(sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES))


def read_values(path: Path) -> NDArray[np.uint8 | np.uint16]:
    """A picture's values as they are stored: (H, W) ids or grey levels, or (H, W, channels).

    Raises:
        InvalidParameters: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            values: NDArray[np.uint8 | np.uint16] = np.asarray(image)
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidParameters(f"{path} cannot be read as an image") from error
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def grey(path: Path) -> NDArray[np.uint8]:
    """A picture as grey levels from 0 to 255, shape (H, W).

    Raises:
        InvalidParameters: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidParameters(f"{path} cannot be read as an image") from error


def matched(frames: Sequence[Path], truth: Iterable[Path], key: Callable[[Path], str]) -> dict[int, Path]:
    """Which frame each file of ground truth belongs to, by the key that both share; others are left out."""
    index = {key(frame): t for t, frame in enumerate(frames)}
    return {index[key(file)]: file for file in sorted(truth) if key(file) in index}


def stem(path: Path) -> str:
    return path.stem


def number(path: Path) -> str:
    """The last number in a file's name: camel01_0020_gt.ppm -> 20."""
    digits = re.findall(r"\d+", path.stem)
    return str(int(digits[-1])) if digits else path.stem


def names_in(file: Path) -> list[str]:
    """The names in a list of sequences, one a line.

    DAVIS-16 lists a line a frame, "/JPEGImages/480p/dog/00000.jpg /Annotations/…": its sequence is named by the
    folder; SegTrack-v2 puts an asterisk before a name.
    """
    names = []
    for line in file.read_text().splitlines():
        first = (line.split() or [""])[0]
        names.append(Path(first).parent.name if "/" in first.strip("/") else first.strip("/").lstrip("*"))
    return list(dict.fromkeys(name for name in names if name))
