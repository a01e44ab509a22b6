"""A folder of frames as a video: images in natural order, encoded without loss."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


def frame_files(folder: Path) -> list[Path]:
    """The images in a folder in natural order: 2.png before 10.png."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name) if part]


@contextmanager
def video_file(path: Path) -> Iterator[Path]:
    """A video as given; of a folder of frames a temporary video, FFV1 in Matroska at 25 frames a second.

    Raises:
        ValueError: an image is damaged, or has another size than the first.
    """
    if not path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="uvos-frames-") as folder:
        video = Path(folder) / f"{path.resolve().name}.mkv"
        from service.rendering.lossless import encode  # only here: the API loads no av

        encode(frame_files(path), video)
        yield video
