"""COCO instances: one image per frame, one annotation per mask."""

import json
from typing import Any

from pycocotools import mask as coco

from service.export.conventions import Classes, frame_fields, image_name, score
from uvos.contract import Manifest, ManifestLevel, RleDocument


def render(document: RleDocument, manifest: Manifest, level: ManifestLevel) -> str:
    """The data set of one level, as JSON.

    Segmentations are compressed COCO RLE with `iscrowd` 0. The object id is `track_id`, also under `attributes`, where
    CVAT and Datumaro read it. Image ids count from 1; `frame_index` is the index in the result, `source_frame` and
    `time_s` are the number and the time of the frame in the file.

    Source: cocodataset.org, "Data format", object detection.
    """
    height, width = document.size
    classes = Classes.of(document)
    scores = {summary.id: score(summary) for summary in level.objects}
    images = [
        {
            "id": frame.index + 1,
            "file_name": image_name(manifest, frame.index),
            "height": height,
            "width": width,
            **frame_fields(frame),
        }
        for frame in document.frames
    ]
    annotations: list[dict[str, Any]] = []
    for frame in document.frames:
        for instance in frame.objects:
            segmentation = instance.rle.model_dump(mode="json")
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": frame.index + 1,
                    "category_id": classes.category_id(instance.id),
                    "segmentation": segmentation,
                    "area": int(coco.area(segmentation)),
                    "bbox": coco.toBbox(segmentation).tolist(),
                    "iscrowd": 0,
                    "score": scores[instance.id],
                    "track_id": instance.id,
                    "attributes": {"track_id": instance.id},
                }
            )
    dataset = {
        "info": {"description": f"{manifest.video.name}, tau {level.name}", "date_created": str(manifest.created_at)},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(classes.names, 1)],
    }
    return json.dumps(dataset, separators=(",", ":"), allow_nan=False)
