"""Videos written frame by frame: H.264 for browsers, VP9 and ProRes 4444 with an alpha channel."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

BT709 = 1  # FFmpeg's number for matrix, primaries and transfer


@dataclass(frozen=True)
class Encoding:
    """A codec in a container.

    Attributes:
        container, codec: Names of libav.
        pixels: Pixel format of the file.
        source: Pixel format of the frames: rgb24, or rgba with an alpha channel.
        options: Options of the encoder.
        container_options: Options of the container.
        time_base: Unit of the timestamps, seconds.
    """

    container: str
    codec: str
    pixels: str
    source: str = "rgb24"
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    time_base: Fraction = Fraction(1, 90_000)  # MPEG's clock, a multiple of 24, 25, 30 and 60 frames a second

    def with_options(self, **options: str) -> "Encoding":
        """The same encoding with more options of the encoder, such as `crf`."""
        return replace(self, options={**self.options, **options})


H264 = Encoding(
    "mp4",
    "libx264",
    "yuv420p",
    # No B-frames: with variable frame times their reordering makes the muxer's edit list drop the last frame.
    options={"preset": "veryfast", "bf": "0"},
    container_options={"movflags": "+faststart"},  # index first, so that playback starts while loading
)
VP9_ALPHA = Encoding(
    "webm",
    "libvpx-vp9",
    "yuva420p",
    source="rgba",
    options={"deadline": "realtime", "cpu-used": "6", "crf": "24", "b": "0", "auto-alt-ref": "0"},
    time_base=Fraction(1, 1000),  # of WebM
)
PRORES_4444 = Encoding("mov", "prores_ks", "yuva444p10le", source="rgba", options={"profile": "4444", "vendor": "apl0"})


class VideoWriter:
    """A video, written frame by frame; a context manager.

    Frames keep their time differences; the first is at 0. Odd sides, which most encoders do not support, are padded
    with a copy of the last row or column.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        times: Sequence[float] | NDArray[np.float64],
        encoding: Encoding,
    ) -> None:
        """Open the file.

        Args:
            path: The file.
            size: (H, W) of the frames.
            times: The time of each frame in seconds, ascending.
            encoding: Codec and container.
        """
        self._encoding, base = encoding, encoding.time_base
        ticks = [round((float(time) - float(times[0])) / base) for time in times]
        # Timestamps must increase: frames with equal times are a tick apart.
        self._ticks = np.maximum.accumulate(np.array(ticks) - np.arange(len(ticks))) + np.arange(len(ticks))
        steps = np.diff(self._ticks)
        self._durations = [*steps.tolist(), int(np.median(steps)) if len(steps) else round(1 / (25 * base))]
        self._padding = [(0, size[0] % 2), (0, size[1] % 2), (0, 0)]
        self._written = 0
        self._container = av.open(str(path), "w", format=encoding.container, options=dict(encoding.container_options))
        rate = Fraction(int(1 / base), self._durations[-1])
        self._stream = cast(VideoStream, self._container.add_stream(encoding.codec, rate=rate))
        self._stream.height, self._stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._stream.pix_fmt = encoding.pixels
        self._stream.options = dict(encoding.options)
        context = self._stream.codec_context
        context.time_base = base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append the next frame: RGB, shape (H, W, 3), or RGBA, shape (H, W, 4)."""
        padded = np.pad(frame, self._padding, mode="edge")
        picture = av.VideoFrame.from_ndarray(padded, format=self._encoding.source).reformat(
            format=self._encoding.pixels, dst_colorspace=Colorspace.ITU709
        )
        picture.pts = int(self._ticks[self._written])
        picture.time_base = self._encoding.time_base
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
