"""FBMS-59 (Ochs, Malik, Brox, "Segmentation of moving objects by long term video analysis", TPAMI 2014).

Published layout: Trainingset/ and Testset/, <sequence>/*.jpg, <sequence>/GroundTruth/*.ppm|pgm for about every 20th
frame. Also read: the converted one with JPEGImages/<sequence>/*.jpg and Annotations/<sequence>/*.png, black and
white. The objects of a sequence count as one.
"""

from functools import partial
from pathlib import Path

import numpy as np

from uvos.errors import InvalidParameters
from worker.evaluation.datasets.sequence import (
    LabelledSequence,
    Truth,
    folder,
    grey,
    matched,
    number,
    pictures,
    read_values,
)

TEST = (
    *("camel01", "cars1", "cars10", "cars4", "cars5", "cats01", "cats03", "cats06", "dogs01", "dogs02", "farm01"),
    *("giraffes01", "goats01", "horses02", "horses04", "horses05", "lion01", "marple12", "marple2", "marple4"),
    *("marple6", "marple7", "marple9", "people03", "people1", "people2", "rabbits02", "rabbits03", "rabbits04"),
    "tennis",
)
PARTS = {"test": "Testset", "train": "Trainingset"}
DARKEST_OBJECT = 0.1  # share of full brightness above which a PGM's region is an object; background is black
DARKEST_OBJECT_OF = {"marple2": 0.4, "marple7": 0.05}  # whose background is grey, and whose object is darker


def read_fbms(root: Path, split: str) -> list[LabelledSequence]:
    """The sequences of `test` (30 in the published set), `train` (29) or `all`.

    Raises:
        InvalidParameters: folders are missing, or another split is asked for.
    """
    if split not in (*PARTS, "all"):
        raise InvalidParameters(f"FBMS-59 has the splits test, train and all, not {split!r}")
    if (root / "JPEGImages").is_dir():
        return _converted(root, split)
    parts = [PARTS[split]] if split in PARTS else sorted(PARTS.values())
    return [
        _published(place)
        for part in parts
        for place in sorted(folder(root / part, holds="FBMS-59: Trainingset/ and Testset/, or JPEGImages/").iterdir())
        if place.is_dir()
    ]


def _published(place: Path) -> LabelledSequence:
    frames = pictures(place)
    truth = folder(place / "GroundTruth", holds="the ground truth of a sequence")
    # Where there are colours, the grey file of the same frame is a rendering that merges some objects with the ground.
    files = [file for file in truth.glob("*.ppm") if "PROB" not in file.name] or list(truth.glob("*.pgm"))
    by_frame = matched(frames, files, number)
    return LabelledSequence(place.name, frames, tuple(sorted(by_frame)), partial(_regions, place.name, by_frame))


def _regions(name: str, files: dict[int, Path], frame: int) -> Truth:
    file = files[frame]
    threshold = 255 * DARKEST_OBJECT_OF.get(name, DARKEST_OBJECT)
    values = read_values(file)
    if file.suffix == ".ppm":
        return np.asarray((values < 255).any(-1), dtype=np.int32)  # each object a colour on white ground
    return np.asarray((values.max(-1) if values.ndim == 3 else values) > threshold, dtype=np.int32)


def _converted(root: Path, split: str) -> list[LabelledSequence]:
    truth = folder(root / "Annotations", holds="FBMS-59, converted: Annotations/<sequence>/*.png")
    sequences = []
    for place in sorted(path for path in (root / "JPEGImages").iterdir() if path.is_dir()):
        if split == "all" or (place.name in TEST) == (split == "test"):
            frames = pictures(place)
            inside = folder(truth / place.name, holds="the ground truth of a sequence")
            files = matched(frames, pictures(inside), number)
            sequences.append(LabelledSequence(place.name, frames, tuple(sorted(files)), partial(_white, files)))
    if not sequences:
        raise InvalidParameters(f"{root / 'JPEGImages'} has no sequences of the split {split!r}")
    return sequences


def _white(files: dict[int, Path], frame: int) -> Truth:
    return np.asarray(grey(files[frame]) > 255 * DARKEST_OBJECT, dtype=np.int32)
