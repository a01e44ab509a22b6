"""Images as a video without loss."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

FRAME_RATE = 25


def encode(images: Sequence[Path], video: Path) -> None:
    """Write images of equal size as FFV1 in Matroska, at 25 frames a second.

    Raises:
        ValueError: an image is damaged, or has another size than the first.
    """
    with av.open(str(video), "w") as container:
        stream = container.add_stream("ffv1", rate=FRAME_RATE)
        stream.pix_fmt = "bgr0"
        for index, path in enumerate(images):
            picture = _read(path)
            if index == 0:
                stream.width, stream.height = picture.size
            elif picture.size != (stream.width, stream.height):
                raise ValueError(
                    f"all frames must have the size of the first, {stream.width}x{stream.height}: {path} has "
                    f"{picture.width}x{picture.height}"
                )
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24").reformat(format="bgr0")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _read(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"the image {path} cannot be read: {error}") from error
