"""MOVi-E (Greff et al., "Kubric: a scalable dataset generator", CVPR 2022), exported to pictures.

<root>/<split>/<video>/ holds the frames and their segmentation, in one of the forms that common exports have:
`000000.jpg` + `000000_mask.png`; `rgba_00000.png` + `segmentation_00000.png`; `00000000_image.png` +
`00000000_mask_00.png`, one binary mask an id, 00 the background.
"""

import re
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from uvos.errors import InvalidParameters
from worker.evaluation.datasets.sequence import (
    LabelledSequence,
    Truth,
    folder,
    grey,
    number,
    pictures,
)
from worker.evaluation.labels import read_ids

ONE_MASK_AN_ID = re.compile(r"(\d+)_mask_(\d+)")
HALF = 128


def read_movi(root: Path, split: str) -> list[LabelledSequence]:
    """The videos of a split: `validation` (250 in the published set), or any folder's name.

    Raises:
        InvalidParameters: the folder is missing or holds no exported videos.
    """
    inside = folder(root / split, holds="MOVi-E as pictures: <split>/<video>/")
    sequences = [_sequence(place) for place in sorted(inside.iterdir()) if place.is_dir()]
    if not sequences:
        raise InvalidParameters(f"{inside} has no videos")
    return sequences


def _sequence(place: Path) -> LabelledSequence:
    files = pictures(place)
    masks = [file for file in files if "mask" in file.stem or file.stem.startswith("segmentation")]
    frames = tuple(
        file for file in files if file not in set(masks) and re.fullmatch(r"\d+|rgba_\d+|\d+_image", file.stem)
    )
    by_number: dict[str, dict[int, Path]] = defaultdict(dict)
    for file in masks:
        several = ONE_MASK_AN_ID.fullmatch(file.stem)
        by_number[str(int(several[1])) if several else number(file)][int(several[2]) if several else -1] = file
    truth = {t: by_number[number(frame)] for t, frame in enumerate(frames) if number(frame) in by_number}
    return LabelledSequence(place.name, frames, tuple(sorted(truth)), partial(_label_map, truth))


def _label_map(truth: dict[int, dict[int, Path]], frame: int) -> Truth:
    files = truth[frame]
    if -1 in files:
        return read_ids(files[-1]).astype(np.int32)
    labels = np.zeros(grey(next(iter(files.values()))).shape, dtype=np.int32)
    for object_id, file in files.items():
        labels[grey(file) >= HALF] = object_id
    return labels
