"""The segmented frames as a small video, a thumbnail, and JPEG files in the size of the video."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.rendering.overlay import strip
from service.rendering.video import H264, VideoWriter
from uvos.contract import Format
from worker.run import SegmentationRun
from worker.video.clip import Clip
from worker.video.decode import stream_frames

PROXY_SIDE = 640  # pixels, the longer side of source.mp4
PROXY_ENCODER = {"crf": "23", "g": "24"}  # a key frame at least every 24 frames, for exact seeking
THUMBNAIL_SIDE = 320
THUMBNAIL_QUALITY, FRAME_QUALITY = 80, 95  # of JPEG, 0 to 100


def proxy_size(size: tuple[int, int], longer: int = PROXY_SIDE) -> tuple[int, int]:
    """The even size (h, w) of a proxy of a video of (H, W): at most `longer` pixels on its longer side."""
    scale = min(1.0, longer / max(size))
    height, width = (max(2, 2 * round(side * scale / 2)) for side in size)
    return height, width


@contextmanager
def original_frames(run: SegmentationRun, clip: Clip) -> Iterator[Iterator[NDArray[np.uint8]] | None]:
    """The frames of the clip, decoded again in the size that the outputs need; None if no output needs them.

    A damaged file may decode to fewer frames the second time; then the frames of the clip take their place.
    """
    full = not {Format.overlay, Format.frames}.isdisjoint(run.params.format)
    if not full and not run.extras.source:
        yield None
        return
    size = clip.video_size if full else proxy_size(clip.video_size)
    with ExitStack() as resources:
        decoded = stream_frames(run.decode_request, size=size, work=run.out)
        resources.callback(decoded.close)
        yield (_scaled(next(decoded, frame), size) for frame in clip.frames)


class SourceWriter:
    """Writes `source.mp4`, `thumbnail.jpg` and `frames/00000.jpg …`, as far as requested; a context manager."""

    def __init__(self, run: SegmentationRun, clip: Clip) -> None:
        self._files = ExitStack()
        self._index, self._middle = 0, len(clip.frames) // 2
        self._out, self._size = run.out, proxy_size(clip.video_size)
        self._proxy: VideoWriter | None = None
        if run.extras.source:
            proxy = VideoWriter(run.out / "source.mp4", self._size, clip.pts_s, H264.with_options(**PROXY_ENCODER))
            self._proxy = self._files.enter_context(proxy)
        self._frames = run.out / "frames" if Format.frames in run.params.format else None
        if self._frames is not None:
            self._frames.mkdir()

    def __enter__(self) -> "SourceWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._files.__exit__(*error)  # type: ignore[arg-type]

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append the next frame: RGB, shape (H, W, 3)."""
        if self._frames is not None:
            _write_jpeg(self._frames / f"{self._index:05d}.jpg", frame, FRAME_QUALITY)
        if self._proxy is not None:
            small = _scaled(frame, self._size)
            self._proxy.write(small)
            if self._index == self._middle:
                thumbnail = _scaled(small, proxy_size(self._size, THUMBNAIL_SIDE))
                _write_jpeg(self._out / "thumbnail.jpg", thumbnail, THUMBNAIL_QUALITY)
        self._index += 1


def write_strip(path: Path, clip: Clip, label_maps: Sequence[NDArray[np.uint16]]) -> None:
    """Write the frames of a short clip side by side, and below them with coloured objects, as JPEG."""
    size = clip.video_size
    frames = [_scaled(frame, size) for frame in clip.frames]
    partial = path.with_name(f".{path.name}")
    strip(frames, label_maps).save(partial, "JPEG", quality=THUMBNAIL_QUALITY)
    partial.rename(path)  # readers never see an incomplete picture


def _scaled(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if frame.shape[:2] == size:
        return frame
    return np.asarray(cv2.resize(np.ascontiguousarray(frame), size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _write_jpeg(path: Path, frame: NDArray[np.uint8], quality: int) -> None:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    path.write_bytes(cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)[1].tobytes())
