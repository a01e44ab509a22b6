"""YOLO segmentation labels, in the layout of Ultralytics."""

import json

from service.export.archive import archive
from service.export.conventions import LABEL, Classes, image_name
from service.export.polygons import pixel_outline
from uvos import rle
from uvos.contract import Manifest, RleDocument, RleMask

# Readers scale the coordinates back to pixels; Ultralytics then truncates, supervision rounds. Between 0 and 1/2,
# both arrive at the same pixel.
PIXEL_OFFSET = 0.25


def render(document: RleDocument, manifest: Manifest) -> bytes:
    """The ZIP archive of one level: `data.yaml` and `labels/train/<video name>/00000.txt` for every frame.

    A line is an object: its class and the polygon of its mask, coordinates divided by width and height. Parts and
    holes are joined into one polygon by bridges, as Ultralytics joins the polygons of COCO; readers draw a bridge one
    pixel wide. The format has no place for object ids or times.

    Source: docs.ultralytics.com, "Instance Segmentation Datasets Overview".
    """
    classes = Classes.of(document)
    labels = (
        (
            f"labels/train/{image_name(manifest, frame.index).removesuffix('.jpg')}.txt",
            "".join(_line(classes.index[instance.id], instance.rle) for instance in frame.objects),
        )
        for frame in document.frames
    )
    return archive([("data.yaml", _data_yaml(classes.names)), *labels])


def _data_yaml(names: list[str]) -> str:
    lines = (
        f"  {index}: {name if name == LABEL else json.dumps(name, ensure_ascii=False)}\n"
        for index, name in enumerate(names)
    )
    return "path: .\ntrain: images/train\nval: images/train\nnames:\n" + "".join(lines)


def _line(class_index: int, mask: RleMask) -> str:
    height, width = mask.size
    polygon = (pixel_outline(rle.mask(mask)) + PIXEL_OFFSET) / (width, height)
    return f"{class_index} {' '.join(f'{coordinate:.6f}' for coordinate in polygon.ravel().tolist())}\n"
