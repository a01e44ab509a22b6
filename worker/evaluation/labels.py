"""Read label maps from PNG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from uvos.errors import InvalidParameters

VOID = -1  # pixels of a ground truth that are excluded from scoring
WHITE = 255  # void in a label map with other ids (DAVIS-17); the object in a binary mask (DAVIS-16)


def read_ids(path: Path) -> NDArray[np.uint16]:
    """The ids in a palette, grey or one-bit PNG, shape (H, W).

    Raises:
        InvalidParameters: the file is missing, is no image, or has colours where ids were expected.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except FileNotFoundError:
        raise InvalidParameters(f"there is no file {path}") from None
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidParameters(f"{path} cannot be read as an image") from error
    if values.ndim == 3:
        if (values[..., :3] != values[..., :1]).any():
            raise InvalidParameters(f"{path} has colours instead of ids; expected a palette or grey PNG")
        values = values[..., 0]
    return values.astype(np.uint16)


def read_all(paths: Sequence[Path]) -> NDArray[np.uint16]:
    """The ids of several frames of one size, shape (T, H, W).

    Raises:
        InvalidParameters: as `read_ids`, or the frames differ in size.
    """
    first = read_ids(paths[0])
    labels = np.empty((len(paths), *first.shape), dtype=np.uint16)
    for frame, path in enumerate(paths):
        ids = first if frame == 0 else read_ids(path)
        if ids.shape != first.shape:
            raise InvalidParameters(
                f"{path} is {ids.shape[1]}x{ids.shape[0]} pixels, {paths[0].name} beside it "
                f"{first.shape[1]}x{first.shape[0]}"
            )
        labels[frame] = ids
    return labels


def with_void(ids: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Ground truth as the metrics take it: 255 is void where the sequence has other ids, else the object, id 1."""
    white = ids == WHITE
    truth = ids.astype(np.int32)
    truth[white] = VOID if (truth[~white] > 0).any() else 1
    return truth


def as_foreground(ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Any id above 0 is the one object."""
    return (ids > 0).astype(np.uint8)
