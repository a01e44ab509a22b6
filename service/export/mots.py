"""MOTS PNG: one 16-bit image per frame, 1000 * class + object id."""

import io

import numpy as np
from PIL import Image

from service.export.archive import archive
from service.export.conventions import CATEGORY_ID, LABEL, image_name
from uvos import rle
from uvos.contract import Manifest, RleDocument, RleFrame
from uvos.errors import ResultNotFound

INSTANCES_PER_CLASS = 1000
COMPRESSION = 1  # zlib's fastest; label maps compress well


def render(document: RleDocument, manifest: Manifest) -> bytes:
    """The ZIP archive of one level: `instances/labels.txt` and `instances/<video name>/00000.png` for every frame.

    Source: vision.rwth-aachen.de, "MOTS: Multi-Object Tracking and Segmentation", annotation format; `labels.txt`
    names the classes, as Datumaro and CVAT read it.

    Raises:
        ResultNotFound: an object id is above 999.
    """
    highest = max((instance.id for frame in document.frames for instance in frame.objects), default=0)
    if highest >= INSTANCES_PER_CLASS:
        limit = INSTANCES_PER_CLASS - 1
        raise ResultNotFound(
            f"MOTS holds at most {limit} objects, this level has {highest}", limit=limit, actual=highest
        )
    images = (
        (f"instances/{image_name(manifest, frame.index).removesuffix('.jpg')}.png", _png(frame, document.size))
        for frame in document.frames
    )
    return archive([("instances/labels.txt", f"{LABEL}\n"), *images])


def _png(frame: RleFrame, size: tuple[int, int]) -> bytes:
    label_map = rle.label_map(frame, size)
    values = np.where(label_map > 0, CATEGORY_ID * INSTANCES_PER_CLASS + label_map, 0).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()
