"""Cut-outs with an alpha channel, a GIF preview, an overlay video."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.rendering.overlay import blend, spread
from service.rendering.request import Product
from service.rendering.scenes import Scene
from service.rendering.video import H264, PRORES_4444, VP9_ALPHA, Encoding, VideoWriter

GIF_SIDE, GIF_FRAMES, GIF_FPS = 320, 60, 10.0  # bounds of a preview: pixels of the longer side, frames, frames a second
GIF_COLORS = 128
GIF_LAST_S = 0.5  # how long a preview shows its last frame
MARGIN = 4  # pixels around objects that keep their colour, so that players do not blend their edges with black
OVERLAY = H264.with_options(crf="21")


def render(product: Product, scene: Scene, path: Path) -> None:
    """Write one file."""
    RENDERERS[product](scene, path)


def cutout(frame: NDArray[np.uint8], label_map: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """A frame with the objects opaque and all else transparent.

    Args:
        frame: RGB, shape (h, w, 3).
        label_map: Object ids, 0 for background, shape (H, W); averaged to the size of the frame.

    Returns:
        RGBA, not premultiplied, shape (h, w, 4).
    """
    alpha = np.asarray(_scaled(np.where(label_map > 0, np.uint8(255), np.uint8(0)), frame.shape[:2]))
    near = spread(alpha, MARGIN, np.maximum) > 0
    return np.dstack([np.where(near[..., None], frame, np.uint8(0)), alpha])


def _cutouts(scene: Scene, path: Path, encoding: Encoding) -> None:
    _write((cutout(*pair) for pair in scene), scene.pts_s, path, encoding)


def _overlay(scene: Scene, path: Path) -> None:
    _write((_blended(*pair) for pair in scene), scene.pts_s, path, OVERLAY)


def _write(frames: Iterator[NDArray[np.uint8]], pts_s: list[float], path: Path, encoding: Encoding) -> None:
    first = next(frames)
    height, width = first.shape[:2]
    with VideoWriter(path, (height, width), pts_s, encoding) as writer:
        for frame in chain([first], frames):
            writer.write(frame)


def _gif(scene: Scene, path: Path) -> None:
    """An animated GIF of blended frames, small enough for a chat or an issue."""
    chosen = gif_frames(scene.pts_s)
    pictures: list[Image.Image] = []
    for index, (frame, label_map) in enumerate(scene):
        if index in chosen:
            scale = min(1.0, GIF_SIDE / max(frame.shape[:2]))
            size = max(1, round(frame.shape[0] * scale)), max(1, round(frame.shape[1] * scale))
            small = np.asarray(_scaled(frame, size))
            pictures.append(Image.fromarray(_blended(small, label_map)).quantize(GIF_COLORS))
    times = [scene.pts_s[index] for index in sorted(chosen)]
    durations = [*np.diff(times).tolist(), GIF_LAST_S]
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[max(20, round(1000 * seconds)) for seconds in durations],
        loop=0,
    )


def gif_frames(pts_s: list[float]) -> set[int]:
    """Indices of the frames of a preview: evenly spaced, at most `GIF_FRAMES` and at most `GIF_FPS` a second."""
    count = min(len(pts_s), GIF_FRAMES, 1 + int(GIF_FPS * (pts_s[-1] - pts_s[0])))
    return set(np.linspace(0, len(pts_s) - 1, max(1, count)).round().astype(int).tolist())


def _blended(frame: NDArray[np.uint8], label_map: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """A frame with coloured objects, in its own size."""
    height, width = frame.shape[:2]
    if label_map.shape != (height, width):
        rows = (np.arange(height) * label_map.shape[0] + label_map.shape[0] // 2) // height
        columns = (np.arange(width) * label_map.shape[1] + label_map.shape[1] // 2) // width
        label_map = label_map[np.minimum(rows, label_map.shape[0] - 1)][:, np.minimum(columns, label_map.shape[1] - 1)]
    return blend(frame, label_map)


def _scaled(pixels: NDArray[np.uint8], size: tuple[int, ...]) -> Image.Image:
    image = Image.fromarray(pixels)
    return image if pixels.shape[:2] == size else image.resize((size[1], size[0]), Image.Resampling.BOX)


RENDERERS: dict[Product, Callable[[Scene, Path], None]] = {
    Product.cutout_webm: lambda scene, path: _cutouts(scene, path, VP9_ALPHA),
    Product.cutout_mov: lambda scene, path: _cutouts(scene, path, PRORES_4444),
    Product.preview_gif: _gif,
    Product.overlay_mp4: _overlay,
}
