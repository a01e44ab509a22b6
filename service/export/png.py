"""Label maps as palette PNG, and archives of them in the layouts of DAVIS and YouTube-VOS."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from uvos import rle
from uvos.contract import ManifestLevel, RleDocument, RleFrame
from uvos.palette import MAX_PALETTE_ID, palette

COMPRESSION = 1  # zlib's fastest; label maps compress well


def render(frame: RleFrame, document: RleDocument, level: ManifestLevel) -> bytes:
    """The label map of a frame: palette mode, or 16-bit grey if ids of the level exceed 255."""
    label_map = rle.label_map(frame, document.size)
    if max((summary.id for summary in level.objects), default=0) > MAX_PALETTE_ID:
        image = Image.fromarray(label_map)
    else:
        image = Image.fromarray(label_map.astype(np.uint8), "P")
        image.putpalette(palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()


def masks(document: RleDocument, level: ManifestLevel, folder: str) -> Iterator[tuple[str, bytes]]:
    """The files of an archive of masks: `<folder>/00000.png …`, and `objects.json` with the names, if any."""
    for frame in document.frames:
        yield f"{folder}/{frame.index:05d}.png", render(frame, document, level)
    if document.names:
        yield "objects.json", json.dumps(document.names, indent=1, ensure_ascii=False).encode()


def frames_and_masks(document: RleDocument, level: ManifestLevel, images: Path) -> Iterator[tuple[str, bytes]]:
    """The files of an archive of frames and masks: `JPEGImages/00000.jpg …`, then `Annotations/00000.png …`.

    Args:
        document: Masks of the level.
        level: Its objects.
        images: Folder of the JPEG files, one per frame.
    """
    for frame in document.frames:
        name = f"{frame.index:05d}.jpg"
        yield f"JPEGImages/{name}", (images / name).read_bytes()
    yield from masks(document, level, "Annotations")
