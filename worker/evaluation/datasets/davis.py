"""DAVIS-16 and DAVIS-17 in their published layout: JPEGImages/480p, Annotations/480p, ImageSets.

DAVIS-16 (Perazzi et al., CVPR 2016) has one object a sequence; DAVIS-17 (Pont-Tuset et al., arXiv:1704.00675), as
annotated for the unsupervised task (Caelles et al., arXiv:1905.00737), several, and 255 for void.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from uvos.errors import InvalidParameters
from worker.evaluation.datasets.sequence import (
    LabelledSequence,
    Truth,
    folder,
    matched,
    names_in,
    pictures,
    read_values,
    stem,
)
from worker.evaluation.labels import VOID, WHITE, read_ids

DAVIS16_VAL = (
    *("blackswan", "bmx-trees", "breakdance", "camel", "car-roundabout", "car-shadow", "cows", "dance-twirl", "dog"),
    *("drift-chicane", "drift-straight", "goat", "horsejump-high", "kite-surf", "libby", "motocross-jump"),
    *("paragliding-launch", "parkour", "scooter-black", "soapbox"),
)


def read_davis16(root: Path, split: str, wanted: Sequence[str] = ()) -> list[LabelledSequence]:
    """The sequences of a split: `val` (20), or any split that ImageSets lists; or the wanted ones of any split.

    Raises:
        InvalidParameters: Folders or lists are missing.
    """
    annotations = folder(root / "Annotations" / "480p", holds="DAVIS-16: Annotations/480p/<sequence>/00000.png")
    return _sequences(
        root, annotations, _present(root, wanted) or _names(root, split, "2016", DAVIS16_VAL), _foreground
    )


def read_davis17(root: Path, split: str, wanted: Sequence[str] = ()) -> list[LabelledSequence]:
    """The sequences of a split, `val` (30) or `train` (60), or the wanted ones of any split.

    Annotations are those of the unsupervised task.

    Raises:
        InvalidParameters: Folders or lists are missing.
    """
    annotations = folder(
        root / "Annotations_unsupervised" / "480p",
        holds="DAVIS-17 as packed for the unsupervised task (DAVIS-2017-Unsupervised-trainval-480p)",
    )
    return _sequences(root, annotations, _present(root, wanted) or _names(root, split, "2017", ()), _objects)


def _present(root: Path, wanted: Sequence[str]) -> Sequence[str]:
    missing = [name for name in wanted if not (root / "JPEGImages" / "480p" / name).is_dir()]
    if missing:
        raise InvalidParameters(f"DAVIS has no sequence {', '.join(missing)} in {root}")
    return wanted


def _names(root: Path, split: str, year: str, known: tuple[str, ...]) -> list[str]:
    lists = [root / "ImageSets" / place / f"{split}.txt" for place in (year, "480p", "")]
    for file in lists:
        if file.is_file():
            return names_in(file)
    if split == "val" and known:
        return list(known)
    raise InvalidParameters(f"there is no list of the split {split!r}: none of {', '.join(map(str, lists))}")


def _sequences(
    root: Path, annotations: Path, names: Sequence[str], read: Callable[[dict[int, Path], int], Truth]
) -> list[LabelledSequence]:
    sequences = []
    for name in names:
        frames = pictures(folder(root / "JPEGImages" / "480p" / name, holds="the frames of the sequence"))
        files = matched(frames, folder(annotations / name, holds="its ground truth").glob("*.png"), stem)
        sequences.append(LabelledSequence(name, frames, tuple(sorted(files)), partial(read, files)))
    return sequences


def _foreground(files: dict[int, Path], frame: int) -> Truth:
    values = read_values(files[frame])
    return np.asarray(values.any(-1) if values.ndim == 3 else values > 0, dtype=np.int32)


def _objects(files: dict[int, Path], frame: int) -> Truth:
    ids = read_ids(files[frame]).astype(np.int32)
    return np.where(ids == WHITE, VOID, ids)
