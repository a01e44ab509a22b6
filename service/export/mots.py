"""MOTS PNG: one 16-bit image per frame, 1000 * class + object id."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.export.archive import archive
from service.export.conventions import Classes, image_name
from uvos import rle
from uvos.contract import Manifest, RleDocument, RleFrame
from uvos.errors import ResultNotFound

INSTANCES_PER_CLASS = 1000
MAX_CLASSES = 64  # of 16-bit values
COMPRESSION = 1  # zlib's fastest; label maps compress well


def render(document: RleDocument, manifest: Manifest) -> bytes:
    """The ZIP archive of one level: `instances/labels.txt` and `instances/<video name>/00000.png` for every frame.

    Source: vision.rwth-aachen.de, "MOTS: Multi-Object Tracking and Segmentation", annotation format; `labels.txt`
    names the classes, as Datumaro and CVAT read it.

    Raises:
        ResultNotFound: an object id is above 999, or there are more than 64 names.
    """
    highest = max((instance.id for frame in document.frames for instance in frame.objects), default=0)
    if highest >= INSTANCES_PER_CLASS:
        limit = INSTANCES_PER_CLASS - 1
        raise ResultNotFound(
            f"MOTS holds at most {limit} objects, this level has {highest}", limit=limit, actual=highest
        )
    classes = Classes.of(document)
    if len(classes.names) > MAX_CLASSES:
        raise ResultNotFound(
            f"MOTS holds at most {MAX_CLASSES} classes, this level has {len(classes.names)} names",
            limit=MAX_CLASSES,
            actual=len(classes.names),
        )
    values = np.zeros(highest + 1, np.uint16)
    for object_id in classes.index:
        values[object_id] = classes.category_id(object_id) * INSTANCES_PER_CLASS + object_id
    images = (
        (f"instances/{image_name(manifest, frame.index).removesuffix('.jpg')}.png", _png(frame, document.size, values))
        for frame in document.frames
    )
    return archive([("instances/labels.txt", "".join(f"{name}\n" for name in classes.names)), *images])


def _png(frame: RleFrame, size: tuple[int, int], values: NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values[rle.label_map(frame, size)]).save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()
