"""YouTube-VIS results, as the evaluation servers of the benchmark accept them."""

import json

from uvos.contract import ManifestLevel, RleDocument

VIDEO_ID = 1  # a document holds one video; replace it when merging several
CATEGORY_ID = 1  # the method does not classify objects


def render(document: RleDocument, level: ManifestLevel) -> str:
    """The results of one level: `[{video_id, category_id, score, segmentations}]`, by object id.

    `segmentations` has one entry per frame: a COCO RLE, or null if the frame does not contain the object. `score` is
    1 - background score. The format has no timestamps; frames are in the order of `pts_s` in the manifest.
    """
    masks: dict[int, list[dict[str, object] | None]] = {
        item.id: [None] * len(document.frames) for item in level.objects
    }
    for position, frame in enumerate(document.frames):
        for item in frame.objects:
            masks[item.id][position] = item.rle.model_dump(mode="json")
    results = [
        {
            "video_id": VIDEO_ID,
            "category_id": CATEGORY_ID,
            "score": round(1 - item.background_score, 6),
            "segmentations": masks[item.id],
        }
        for item in level.objects
    ]
    return json.dumps(results, separators=(",", ":"), allow_nan=False)
