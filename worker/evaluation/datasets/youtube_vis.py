"""YouTube-VIS 2019 (Yang, Fan, Xu, "Video Instance Segmentation", ICCV 2019).

Layout: train/JPEGImages/<video>/*.jpg and train.json (or train/train.json, train/instances.json), COCO-like:
`videos` with `file_names`, `annotations` with a run-length mask or null a frame.
"""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvos.errors import InvalidParameters
from worker.evaluation.datasets.sequence import LabelledSequence, Truth, folder

SEED = 0  # published figures are on 300 of the training videos; which ones was not published


def read_youtube_vis(root: Path, split: str) -> list[LabelledSequence]:
    """The videos of `train` (2,238 in the published set), or, of a split named by a number, as many by a fixed seed.

    Raises:
        InvalidParameters: folders or the annotations are missing, or another split is asked for.
    """
    if split != "train" and not split.isdecimal():
        raise InvalidParameters(f"YouTube-VIS has the split train here, or a number of its videos, not {split!r}")
    pictures = folder(root / "train" / "JPEGImages", holds="YouTube-VIS 2019: train/JPEGImages/<video>/00000.jpg")
    document = _annotations(root)
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in document["annotations"]:
        objects.setdefault(annotation["video_id"], []).append(annotation)
    videos = sorted((v for v in document["videos"] if v["id"] in objects), key=lambda v: Path(v["file_names"][0]).parts)
    if split.isdecimal() and len(videos) > int(split):
        chosen = set(random.Random(SEED).sample(range(len(videos)), int(split)))
        videos = [video for place, video in enumerate(videos) if place in chosen]
    return [_sequence(pictures, video, objects[video["id"]]) for video in videos]


def _annotations(root: Path) -> dict[str, Any]:
    places = [root / "train.json", root / "train" / "train.json", root / "train" / "instances.json"]
    for file in places:
        if file.is_file():
            try:
                document: dict[str, Any] = json.loads(file.read_bytes())
                document["videos"], document["annotations"]
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidParameters(f"{file} is no YouTube-VIS annotation") from error
            return document
    raise InvalidParameters(f"there are no annotations: none of {', '.join(map(str, places))}")


def _sequence(pictures: Path, video: dict[str, Any], objects: list[dict[str, Any]]) -> LabelledSequence:
    frames = tuple(pictures / name for name in video["file_names"])
    segmentations = [annotation["segmentations"] for annotation in sorted(objects, key=lambda a: a["id"])]
    size = (video["height"], video["width"])
    name = Path(video["file_names"][0]).parent.name
    return LabelledSequence(name, frames, tuple(range(len(frames))), partial(_label_map, segmentations, size))


def _label_map(segmentations: list[list[dict[str, Any] | None]], size: tuple[int, int], frame: int) -> Truth:
    """Objects numbered as they are listed; where two overlap, the later lies on top."""
    labels = np.zeros(size, dtype=np.int32)
    for place, masks in enumerate(segmentations):
        rle = masks[frame]
        if rle is not None:
            labels[mask_of(rle["counts"], size)] = place + 1
    return labels


def mask_of(counts: list[int] | str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask from COCO run lengths: column by column, zeros first; a list in the data set's own file."""
    lengths = counts if isinstance(counts, list) else _run_lengths(counts)
    if sum(lengths) != size[0] * size[1]:
        raise InvalidParameters(f"a run-length mask has {sum(lengths)} pixels, its video {size[0] * size[1]}")
    values: NDArray[np.bool_] = np.arange(len(lengths)) % 2 == 1
    return values.repeat(lengths).reshape(size, order="F")


def _run_lengths(compressed: str) -> list[int]:
    """COCO's compressed counts: five bits a character, from the fourth run on less the run two before."""
    lengths: list[int] = []
    value = shift = 0
    for character in compressed:
        digit = ord(character) - 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:  # the last character of a number carries its sign
            value -= (1 << shift) if digit & 16 else 0
            lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
            value = shift = 0
    return lengths
