"""H.264 in MP4 for browsers, written frame by frame."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

TIME_BASE = Fraction(1, 90_000)  # MPEG's clock, a multiple of 24, 25, 30 and 60 frames a second
BT709 = 1  # FFmpeg's number for matrix, primaries and transfer
# No B-frames: with variable frame times their reordering makes the muxer's edit list drop the last frame.
ENCODER: dict[str, object] = {"preset": "veryfast", "bf": "0"}


class Mp4Writer:
    """An MP4, written frame by frame; a context manager.

    H.264, yuv420p, index first so that playback starts while loading. Frames keep their time differences; the first
    is at 0. Odd sides, which yuv420p does not support, are padded with a copy of the last row or column.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], times: Sequence[float] | NDArray[np.float64], **options: str
    ) -> None:
        """Open the file.

        Args:
            path: The file; it ends in .mp4.
            size: (H, W) of the frames.
            times: The time of each frame in seconds, ascending.
            options: Options of libx264, such as `crf`.
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
        self._stream.options = {**ENCODER, **options}
        context = self._stream.codec_context
        context.time_base = TIME_BASE
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append the next frame: RGB, shape (H, W, 3)."""
        picture = av.VideoFrame.from_ndarray(np.pad(frame, self._padding, mode="edge"), format="rgb24").reformat(
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
