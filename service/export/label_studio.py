"""Label Studio tasks: one image per frame, with the masks as brush predictions."""

import json
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from service.export.conventions import LABEL, Classes, frame_fields, image_name, score
from uvos import rle
from uvos.contract import Manifest, ManifestLevel, RleDocument, RleFrame, RleObject

LABELING_CONFIG = f"""<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="tag" toName="image">
    <Label value="{LABEL}"/>
  </BrushLabels>
</View>"""
"""The labeling configuration of a project that imports the tasks; each name of an object is one more label."""
CHANNELS = 4  # brush masks are RGBA; all channels have the same value
VALUE_BITS = 8
LENGTH_BITS = 16
MAX_RUN = 1 << LENGTH_BITS
RUN_BITS = 3 + LENGTH_BITS + VALUE_BITS


def render(document: RleDocument, manifest: Manifest, level: ManifestLevel) -> str:
    """The tasks of one level, as JSON.

    `data.image` refers to the frame's image in Label Studio's local file storage. A region's id and its text are
    "object-<id>", in every frame of the object.

    Source: labelstud.io, "Import pre-annotated data", section on brush segmentation.
    """
    classes = Classes.of(document)
    scores = {summary.id: score(summary) for summary in level.objects}
    tasks: list[dict[str, Any]] = [
        {
            "data": {
                "image": f"/data/local-files/?d={quote(image_name(manifest, frame.index))}",
                "video": manifest.video.name,
                **frame_fields(frame),
            },
            "predictions": [_prediction(frame, f"uvos {manifest.model.name}, tau {level.name}", scores, classes)],
        }
        for frame in document.frames
    ]
    return json.dumps(tasks, separators=(",", ":"), allow_nan=False)


def _prediction(frame: RleFrame, model_version: str, scores: dict[int, float], classes: Classes) -> dict[str, Any]:
    regions = [_region(instance, scores[instance.id], classes.name(instance.id)) for instance in frame.objects]
    mean = sum(region["score"] for region in regions) / len(regions) if regions else 0.0
    return {"model_version": model_version, "score": round(mean, 6), "result": regions}


def _region(instance: RleObject, confidence: float, label: str) -> dict[str, Any]:
    height, width = instance.rle.size
    name = f"object-{instance.id}"
    return {
        "id": name,
        "type": "brushlabels",
        "from_name": "tag",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": confidence,
        "meta": {"text": [name]},
        "value": {"format": "rle", "rle": _brush_rle(rle.mask(instance.rle)), "brushlabels": [label]},
    }


def _brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """The bytes of a brush mask: RGBA values row by row, 255 inside the mask, packed as runs.

    Header: number of values (32 bits), bits per value - 1 (5 bits), four lengths of run length fields - 1 (4 bits
    each; all the same here). A run: 1, the index of its length field (2 bits), length - 1, value.

    Source: format of the package `rle-pack` of thi.ng/umbrella, which Label Studio uses.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = CHANNELS * np.diff(starts, append=flat.size)
    pieces = -(-lengths // MAX_RUN)
    run_lengths = np.full(pieces.sum(), MAX_RUN)
    run_lengths[pieces.cumsum() - 1] = lengths - (pieces - 1) * MAX_RUN
    values = (flat[starts] * ((1 << VALUE_BITS) - 1)).repeat(pieces)
    runs = 1 << (RUN_BITS - 1) | (run_lengths - 1) << VALUE_BITS | values
    header = f"{CHANNELS * flat.size:032b}{VALUE_BITS - 1:05b}" + f"{LENGTH_BITS - 1:04b}" * 4
    bits = [np.array(list(header), np.uint8), _bits(runs, RUN_BITS)]
    return np.packbits(np.concatenate(bits)).tolist()


def _bits(numbers: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """The lowest `width` bits of each number, highest first."""
    return (numbers[:, None] >> np.arange(width)[::-1] & 1).astype(np.uint8).ravel()
