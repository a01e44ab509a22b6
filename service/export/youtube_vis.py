"""YouTube-VIS results: one entry per object with its mask in every frame, as the benchmark's servers accept them."""

import json

from service.export.conventions import Classes, score
from uvos.contract import ManifestLevel, RleDocument

VIDEO_ID = 1  # a document holds one video; set the id of your data set when you merge several


def render(document: RleDocument, level: ManifestLevel) -> str:
    """The results of one level, ordered by object id: `[{video_id, category_id, score, segmentations}]`.

    `segmentations` has one entry per frame: a COCO RLE, or null in frames without the object. The format has no field
    for times; frames are in the order of `pts_s` of the manifest. Objects that a user has named also have a `name`.
    """
    masks: dict[int, list[dict[str, object] | None]] = {
        summary.id: [None] * len(document.frames) for summary in level.objects
    }
    for position, frame in enumerate(document.frames):
        for instance in frame.objects:
            masks[instance.id][position] = instance.rle.model_dump(mode="json")
    classes = Classes.of(document)
    results = [
        {
            "video_id": VIDEO_ID,
            "category_id": classes.index.get(summary.id, 0) + 1,
            "score": score(summary),
            "segmentations": masks[summary.id],
            **({"name": document.names[summary.id]} if summary.id in document.names else {}),
        }
        for summary in level.objects
    ]
    return json.dumps(results, separators=(",", ":"), allow_nan=False)
