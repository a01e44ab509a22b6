"""Frames with coloured and outlined objects: an H.264 MP4 for browsers, and a strip of a few frames."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from worker.outputs.png import palette

OPACITY = 0.5  # of an object's colour over the frame
OUTLINE_WHITENESS = 0.6  # share of white in an outline's colour
OUTLINE_LINES = 540  # lines of video per pixel of outline thickness
TIME_BASE = Fraction(1, 90_000)  # MPEG's clock, a multiple of 24, 25, 30 and 60 frames a second
BT709 = 1  # FFmpeg's number for matrix, primaries and transfer
# No B-frames: with variable frame times their reordering makes the muxer's edit list drop the last frame.
ENCODER = {"preset": "veryfast", "crf": "21", "bf": "0"}


def blend(frame: NDArray[np.uint8], label_map: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """A frame with objects tinted in the palette's colours and outlined in a brighter tone.

    Args:
        frame: RGB, shape (h, w, 3); scaled to the size of the label map.
        label_map: Object ids, 0 for background, shape (H, W).

    Returns:
        RGB, shape (H, W, 3).
    """
    height, width = label_map.shape
    if frame.shape[:2] != (height, width):
        frame = np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    colors = palette(int(label_map.max()) + 1)
    blended = np.asarray(cv2.addWeighted(frame, 1 - OPACITY, colors[label_map], OPACITY, 0), np.uint8)
    objects = label_map > 0
    thickness = 1 + 2 * max(1, round(height / OUTLINE_LINES))
    window = np.ones((thickness, thickness), np.uint8)
    # An object's outline: its own pixels within the outline's thickness of another label.
    edge = objects & (cv2.dilate(label_map, window) != cv2.erode(label_map, window))
    result = np.where(objects[..., None], blended, frame)
    bright = (255 * OUTLINE_WHITENESS + colors * (1 - OUTLINE_WHITENESS)).astype(np.uint8)
    result[edge] = bright[label_map[edge]]
    return result


class OverlayWriter:
    """An MP4 of blended frames, written frame by frame; a context manager.

    H.264, yuv420p, index first so that playback starts while loading. Frames keep their time differences; the first
    is at 0. Odd sides, which yuv420p does not support, are padded with a copy of the last row or column.
    """

    def __init__(self, path: Path, size: tuple[int, int], times: Sequence[float] | NDArray[np.float64]) -> None:
        """Open the file.

        Args:
            path: The file; it ends in .mp4.
            size: (H, W) of the label maps.
            times: The time of each frame in seconds, ascending.
        """
        ticks = [round((float(time) - float(times[0])) / TIME_BASE) for time in times]
        # Timestamps must increase: frames with equal times are a tick apart.
        self._ticks = np.maximum.accumulate(np.array(ticks) - np.arange(len(ticks))) + np.arange(len(ticks))
        steps = np.diff(self._ticks)
        self._durations = [*steps.tolist(), int(np.median(steps)) if len(steps) else round(1 / (25 * TIME_BASE))]
        self._padding = [(0, size[0] % 2), (0, size[1] % 2), (0, 0)]
        self._written = 0
        self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=Fraction(int(1 / TIME_BASE), self._durations[-1]))
        self._stream.height, self._stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = dict(ENCODER)
        context = self._stream.codec_context
        context.time_base = TIME_BASE
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG

    def write(self, frame: NDArray[np.uint8], label_map: NDArray[np.uint16]) -> None:
        """Append the next frame: RGB of any size, and its label map of the size passed to the constructor."""
        blended = np.pad(blend(frame, label_map), self._padding, mode="edge")
        picture = av.VideoFrame.from_ndarray(blended, format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709
        )
        picture.pts = int(self._ticks[self._written])
        picture.time_base = TIME_BASE
        picture.duration = self._durations[self._written]
        self._written += 1
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


def strip(
    frames: Sequence[NDArray[np.uint8]], label_maps: Sequence[NDArray[np.uint16]], *, width: int = 1600, gap: int = 6
) -> Image.Image:
    """A picture of a few frames side by side: the frames above, with coloured objects below.

    Args:
        frames: RGB, shape (h, w, 3) each.
        label_maps: The label map of each frame, shape (H, W).
        width: Width of the picture, pixels.
        gap: White space between frames, pixels.
    """
    height, across = label_maps[0].shape
    tile = max(1, (width - gap * (len(frames) - 1)) // len(frames))
    size = tile, max(1, round(tile * height / across))
    picture = Image.new("RGB", (len(frames) * (tile + gap) - gap, 2 * size[1] + gap), "white")
    for column, (frame, label_map) in enumerate(zip(frames, label_maps, strict=True)):
        for row, image in enumerate([frame, blend(frame, label_map)]):
            scaled = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
            picture.paste(scaled, (column * (tile + gap), row * (size[1] + gap)))
    return picture
