"""Frames as JPEG with their masks as palette PNG, in the layout of DAVIS and YouTube-VOS."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from uvos import rle
from uvos.contract import ManifestLevel, RleDocument
from uvos.palette import MAX_PALETTE_ID, palette

COMPRESSION = 1  # zlib's fastest; label maps compress well


def entries(document: RleDocument, level: ManifestLevel, images: Path) -> Iterator[tuple[str, bytes]]:
    """The files of the archive of one level: `JPEGImages/00000.jpg …`, then `Annotations/00000.png …`.

    Args:
        document: Masks of the level.
        level: Its objects; beyond 255, the PNGs are 16-bit grey.
        images: Folder of the JPEG files, one per frame.
    """
    for frame in document.frames:
        name = f"{frame.index:05d}.jpg"
        yield f"JPEGImages/{name}", (images / name).read_bytes()
    highest = max((summary.id for summary in level.objects), default=0)
    for frame in document.frames:
        label_map = rle.label_map(frame, document.size)
        if highest > MAX_PALETTE_ID:
            image = Image.fromarray(label_map)
        else:
            image = Image.fromarray(label_map.astype(np.uint8), "P")
            image.putpalette(palette().tobytes())
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=COMPRESSION)
        yield f"Annotations/{frame.index:05d}.png", buffer.getvalue()
