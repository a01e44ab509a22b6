"""The frames of a sequence where a segmenter can read them: alone in a folder, and only as many as wanted."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from worker.evaluation.datasets.sequence import LabelledSequence
from worker.video.decode import stream_frames
from worker.video.request import DecodeRequest
from worker.video.sources import PICTURE_SUFFIXES


@contextmanager
def frames_of(sequence: LabelledSequence, limit: int | None) -> Iterator[Path]:
    """A folder or file that holds exactly the sequence's frames, or its first ones."""
    if isinstance(sequence.source, Path) and limit is None:
        yield sequence.source
        return
    with tempfile.TemporaryDirectory(prefix="uvos-frames-") as name:
        folder = Path(name)
        if isinstance(sequence.source, Path):
            frames = stream_frames(DecodeRequest(sequence.source))
            for index, frame in zip(range(limit or 0), frames, strict=False):
                Image.fromarray(frame).save(folder / f"{index:05d}.png", compress_level=1)
        else:
            for index, file in enumerate(sequence.source[:limit]):
                place = folder / f"{index:05d}"
                if file.suffix.lower() in PICTURE_SUFFIXES:
                    place.with_suffix(file.suffix.lower()).symlink_to(file.resolve())
                else:  # SegTrack-v2 has bitmaps too
                    Image.open(file).convert("RGB").save(place.with_suffix(".png"), compress_level=1)
        yield folder
