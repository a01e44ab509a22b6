"""YouTube-VIS results: one entry an object, with its mask in each frame, as that benchmark's servers take them."""

import json

from uvos.contract import ManifestLevel, RleDocument

VIDEO_ID = 1  # one video a document; who merges several gives them the ids of their own data set
CATEGORY_ID = 1  # the method finds objects, not classes


def render(document: RleDocument, level: ManifestLevel) -> str:
    """The results of one level: `[{video_id, category_id, score, segmentations}]`, by object id.

    `segmentations` has an entry for every frame of the video, a COCO RLE or null where the object is not seen.
    `score` is 1 - background score: how little the object clings to the frame's border. The format has no place for
    times; frames are in the order of the manifest's `pts_s`.
    """
    masks: dict[int, list[dict[str, object] | None]] = {
        each.id: [None] * len(document.frames) for each in level.objects
    }
    for position, frame in enumerate(document.frames):
        for each in frame.objects:
            masks[each.id][position] = each.rle.model_dump(mode="json")
    results = [
        {
            "video_id": VIDEO_ID,
            "category_id": CATEGORY_ID,
            "score": round(1 - each.background_score, 6),
            "segmentations": masks[each.id],
        }
        for each in level.objects
    ]
    return json.dumps(results, separators=(",", ":"), allow_nan=False)
