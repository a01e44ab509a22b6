"""SegTrack-v2 (Li et al., "Video segmentation by tracking many figure-ground segments", ICCV 2013).

Layout: JPEGImages/<sequence>/*.png|bmp, GroundTruth/<sequence>/*.png|bmp, or GroundTruth/<sequence>/<object>/… where
a sequence has several objects; they count as one here, as in published figures.
"""

from functools import partial
from pathlib import Path

import numpy as np

from uvos.errors import InvalidParameters
from worker.evaluation.datasets.sequence import LabelledSequence, Truth, folder, grey, matched, pictures, stem

HALF = 128  # masks are 0 and 255, but for grey levels where contours were drawn smooth


def read_segtrack(root: Path, split: str) -> list[LabelledSequence]:
    """All sequences (14 in the published set); `all` is the only split.

    Raises:
        InvalidParameters: folders are missing, or another split is asked for.
    """
    if split != "all":
        raise InvalidParameters(f"SegTrack-v2 has one split, all, not {split!r}")
    truth = folder(root / "GroundTruth", holds="SegTrack-v2: GroundTruth/<sequence>/…")
    sequences = []
    for place in sorted(path for path in folder(root / "JPEGImages", holds="SegTrack-v2").iterdir() if path.is_dir()):
        frames = pictures(place)
        inside = folder(truth / place.name, holds="the ground truth of a sequence")
        objects = [part for part in sorted(inside.iterdir()) if part.is_dir()] or [inside]
        masks = [matched(frames, pictures(part), stem) for part in objects]
        annotated = sorted(set().union(*masks))
        sequences.append(LabelledSequence(place.name, frames, tuple(annotated), partial(_merged, masks)))
    if not sequences:
        raise InvalidParameters(f"{root / 'JPEGImages'} has no sequences")
    return sequences


def _merged(masks: list[dict[int, Path]], frame: int) -> Truth:
    objects = [grey(files[frame]) >= HALF for files in masks if frame in files]
    return np.asarray(np.any(objects, axis=0), dtype=np.int32)
