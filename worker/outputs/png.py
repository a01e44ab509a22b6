"""Label maps -> PNG: palette images with the VOC colours, as in DAVIS, or 16-bit grey beyond 255 objects."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from uvos.palette import MAX_PALETTE_ID, palette

COMPRESSION = 1  # zlib's fastest: label maps compress well, and higher levels take time and save little


def write_png(path: Path, label_map: NDArray[np.integer], *, objects: int | None = None) -> None:
    """Write a label map, shape (H, W), in palette mode, or as 16-bit grey for more than 255 objects.

    Args:
        path: The file; it ends in .png.
        label_map: Object ids, 0 for background.
        objects: Number of objects in the whole video, so that all its frames have the same mode; default: the largest
            id of this frame.
    """
    if (int(label_map.max()) if objects is None else objects) > MAX_PALETTE_ID:
        image = Image.fromarray(label_map.astype(np.uint16))
    else:
        image = Image.fromarray(label_map.astype(np.uint8), "P")
        image.putpalette(palette().tobytes())
    image.save(path, format="PNG", compress_level=COMPRESSION)
