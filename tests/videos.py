"""Synthetic test videos with ground-truth masks: textured shapes that move over a textured background.

scene = make_scene([Shape("disc", 24, (30, 10), (0, 4)), Shape("square", 20, (40, 60))], frames=8)
path = write_video(tmp_path / "clip.mp4", scene.frames)
scene.labels  # (T, H, W): 0 background, 1 the disc, 2 the square, which occludes the disc
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

MILLISECONDS = Fraction(1, 1000)


@dataclass(frozen=True)
class Shape:
    """A disc or a square; later shapes lie over earlier ones.

    Attributes:
        kind: "disc" or "square".
        size: Diameter or side, pixels.
        start: (y, x) of the centre in frame 0, pixels; may be outside the frame.
        velocity: (dy, dx), pixels per frame; a shape may leave the frame.
        seen: Frames that contain the shape; None: all.
        color: Mean RGB of the texture; None: the next of `COLORS`.
    """

    kind: str = "disc"
    size: int = 32
    start: tuple[float, float] = (48.0, 48.0)
    velocity: tuple[float, float] = (0.0, 3.0)
    seen: range | None = None
    color: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Scene:
    """Frames (T, H, W, 3) uint8 and labels (T, H, W) uint8: 0 is background, i + 1 the i-th shape."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]


COLORS = ((214, 70, 60), (60, 120, 214), (80, 180, 90), (230, 190, 60), (160, 80, 190), (60, 190, 190))


def make_scene(
    shapes: Sequence[Shape] = (Shape(),),
    *,
    frames: int = 8,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
    camera: tuple[float, float] = (0.0, 0.0),
    texture: float = 24.0,
) -> Scene:
    """Draw shapes over a background; each has a texture that moves with it.

    Args:
        shapes: Later ones lie over earlier ones.
        frames: T.
        size: (H, W), pixels.
        seed: Seed of the textures.
        camera: (dy, dx), movement of the background, pixels per frame.
        texture: Standard deviation of the textures, grey levels; 0: uniform colours.
    """
    height, width = size
    random = np.random.default_rng(seed)
    background = _texture(random, (height, width), (112, 118, 104), texture)
    skins = [
        _texture(random, (shape.size, shape.size), shape.color or COLORS[i % len(COLORS)], texture)
        for i, shape in enumerate(shapes)
    ]
    out = np.empty((frames, height, width, 3), np.uint8)
    labels = np.zeros((frames, height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for t in range(frames):
        out[t] = np.roll(background, (round(t * camera[0]), round(t * camera[1])), (0, 1))
        for i, shape in enumerate(shapes):
            if shape.seen is not None and t not in shape.seen:
                continue
            top = round(shape.start[0] + t * shape.velocity[0] - shape.size / 2)
            left = round(shape.start[1] + t * shape.velocity[1] - shape.size / 2)
            row, column = y - top, x - left
            inside = (row >= 0) & (row < shape.size) & (column >= 0) & (column < shape.size)
            if shape.kind == "disc":
                centre = (shape.size - 1) / 2
                inside &= (row - centre) ** 2 + (column - centre) ** 2 <= (shape.size / 2) ** 2
            out[t][inside] = skins[i][row[inside], column[inside]]
            labels[t][inside] = i + 1
    return Scene(out, labels)


def _texture(
    random: np.random.Generator, size: tuple[int, int], color: tuple[int, int, int], deviation: float
) -> NDArray[np.uint8]:
    """Noise around a colour, in blocks of 4x4 pixels, which survive compression."""
    noise = random.normal(0.0, deviation, (-(-size[0] // 4), -(-size[1] // 4), 1))
    noise = noise.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    return np.clip(np.asarray(color) + noise, 0, 255).astype(np.uint8)


def write_video(  # noqa: PLR0913 - one parameter per property of a file
    path: Path,
    frames: NDArray[np.uint8],
    *,
    codec: str = "libx264",
    fps: float | Fraction = 25,
    times_s: Sequence[float] | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    audio: bool = False,
    sample_aspect_ratio: Fraction | None = None,
    **stream_attributes: Any,
) -> Path:
    """Write RGB frames (T, H, W, 3) as a video; returns `path`.

    Args:
        path: Output file; its suffix selects the container unless `container` does ("mp4", "matroska", "mpegts", ...).
        frames: Frames as displayed; stored pixels are transformed so that `rotation` and `mirrored` restore them.
        codec: Encoder name of libav.
        fps: Frames per second.
        times_s: Presentation times in seconds instead of `fps`, rounded to milliseconds.
        pix_fmt, options: Encoder settings; default options: fast, good quality.
        rotation: Display rotation, degrees clockwise.
        mirrored: Display mirrored left to right, after the rotation.
        audio: Add an audio stream (a tone in AAC, or Opus in WebM).
        stream_attributes: Attributes of the codec context, set before it opens, for example `color_range=2`.
    """
    if options is None:
        options = {"libx264": {"preset": "ultrafast", "crf": "12"}, "libx265": {"x265-params": "log-level=none"}}.get(
            codec, {}
        )
    stored = frames[:, :, ::-1] if mirrored else frames
    stored = np.rot90(stored, rotation // 90, axes=(1, 2))
    with av.open(str(path), "w", format=container, options=container_options) as output:
        rate = Fraction(fps).limit_denominator(1001)
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = stored.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = MILLISECONDS if times_s is not None else 1 / rate
        if sample_aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        if rotation or mirrored:
            stream.set_display_rotation(-rotation, hflip=mirrored)
        for name, value in stream_attributes.items():
            setattr(stream.codec_context, name, value)
        if audio:
            audio_stream = output.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48000, layout="mono")
            tone = np.sin(np.arange(48000) / 20)[None].astype(np.float32) / 4
            output.mux(audio_stream.encode(_audio_frame(tone)))
        for i, pixels in enumerate(stored):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = i if times_s is None else round(1000 * times_s[i])
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if audio:
            output.mux(audio_stream.encode())
    return path


def _audio_frame(samples: NDArray[np.float32]) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
    frame.sample_rate = 48000
    return frame
