"""Labelled clips of one's own: a video or a folder of frames, and a folder of PNG label maps beside it.

<root>/<name>.mp4 (or another video, or <name>_orig.mp4) with <root>/<name>/00000.png …, frame by frame from the
first; or <root>/<name>/frames/*.jpg|png with <root>/<name>/masks/*.png of the same names.
"""

from functools import partial
from pathlib import Path

import numpy as np

from uvos.contract import VIDEO_SUFFIXES
from uvos.errors import InvalidParameters
from worker.evaluation.datasets.sequence import LabelledSequence, Truth, folder, matched, pictures, stem
from worker.evaluation.labels import read_ids


def read_clips(root: Path, split: str) -> list[LabelledSequence]:
    """All labelled clips of a folder; `all` is the only split.

    Raises:
        InvalidParameters: there are none, or another split is asked for.
    """
    if split != "all":
        raise InvalidParameters(f"clips have one split, all, not {split!r}")
    places = sorted(place for place in folder(root, holds="clips and their masks").iterdir() if place.is_dir())
    sequences = [sequence for place in places if (sequence := _sequence(place)) is not None]
    if not sequences:
        raise InvalidParameters(
            f"{root} has no labelled clips: expected <name>.mp4 beside <name>/00000.png, "
            "or <name>/frames beside <name>/masks"
        )
    return sequences


def _sequence(place: Path) -> LabelledSequence | None:
    if (place / "frames").is_dir() and (place / "masks").is_dir():
        frames = pictures(place / "frames")
        files = matched(frames, (place / "masks").glob("*.png"), stem)
        return LabelledSequence(place.name, frames, tuple(sorted(files)), partial(_ids, files))
    videos = [
        file
        for file in sorted(place.parent.iterdir())
        if file.suffix.lower() in VIDEO_SUFFIXES and file.stem in (place.name, f"{place.name}_orig")
    ]
    if not videos:
        return None
    by_frame = {int(file.stem): file for file in place.glob("*.png") if file.stem.isdigit()}
    return LabelledSequence(place.name, videos[0], tuple(sorted(by_frame)), partial(_ids, by_frame))


def _ids(files: dict[int, Path], frame: int) -> Truth:
    return read_ids(files[frame]).astype(np.int32)
