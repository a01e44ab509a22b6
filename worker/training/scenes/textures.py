"""Surfaces of synthetic objects: procedural textures and parts of real frames."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # (H, W, 3) in 0..255
REAL = 0.6  # share of surfaces taken from real frames, where there are some


@dataclass(frozen=True)
class Style:
    """Parameters of a texture; two textures of one style resemble two views of one material."""

    kind: str
    palette: Picture
    scale: float
    angle: float  # radians


def draw_style(rng: np.random.Generator) -> Style:
    kind = str(rng.choice(["noise", "noise", "stripes", "checks", "cells", "plain"]))
    grey, tint = rng.uniform(20, 235), rng.choice([8.0, 25.0, 60.0])  # natural surfaces are mostly of low saturation
    middle = grey + rng.normal(0, tint, (1, 3))
    shades = int(rng.integers(2, 5))
    palette = middle + rng.normal(0, rng.choice([12, 30, 60]), (shades, 1)) + rng.normal(0, tint / 2, (shades, 3))
    palette = np.clip(palette, 0, 255)
    return Style(
        kind, palette.astype(np.float32), float(np.exp(rng.uniform(np.log(4), np.log(48)))), rng.uniform(0, 3.2)
    )


def draw_texture(rng: np.random.Generator, style: Style, size: tuple[int, int]) -> Picture:
    """A texture of (H, W) pixels."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    bent = draw_noise(rng, size, 2 * style.scale) * style.scale * 0.5
    cos, sin = float(np.cos(style.angle)), float(np.sin(style.angle))  # Python floats keep the arrays float32
    along = (cos * columns + sin * rows + bent) / style.scale
    across = (-sin * columns + cos * rows + bent) / style.scale
    if style.kind == "stripes":
        value = 0.5 + 0.5 * np.sin(6.28 * along)
    elif style.kind == "checks":
        value = ((np.floor(along) + np.floor(across)) % 2).astype(np.float32)
    elif style.kind == "cells":
        value = np.abs(draw_noise(rng, size, style.scale)) * 0.9
    elif style.kind == "plain":
        value = 0.5 + 0.15 * draw_noise(rng, size, 4 * style.scale)
    else:
        value = 0.5 + 0.35 * draw_noise(rng, size, style.scale) + 0.2 * draw_noise(rng, size, max(2, style.scale / 3))
    value = np.clip(255 * value + 15 * draw_noise(rng, size, 2.5), 0, 255).astype(np.uint8)
    shades = np.linspace(0, 255, len(style.palette))
    ramp = np.stack([np.interp(np.arange(256), shades, channel) for channel in style.palette.T], 1)
    texture: Picture = ramp.astype(np.float32)[value]
    return texture


def draw_surface(
    rng: np.random.Generator, style: Style, photos: NDArray[np.uint8] | None, size: tuple[int, int]
) -> Picture:
    """The surface of an object part, (H, W) pixels: a texture, or a part of one of the given frames."""
    if photos is None or rng.random() > REAL:
        return draw_texture(rng, style, size)
    frame = photos[int(rng.integers(len(photos)))]
    shortest = min(frame.shape[:2])
    side = int(rng.integers(min(24, shortest), shortest + 1))
    top, left = (int(rng.integers(length - side + 1)) for length in frame.shape[:2])
    piece = cv2.resize(frame[top : top + side, left : left + side], size[::-1], interpolation=cv2.INTER_LINEAR)
    shades = piece * rng.uniform(0.6, 1.3, 3) + rng.uniform(-30, 30, 3)
    surface: Picture = np.clip(shades, 0, 255).astype(np.float32)
    return surface


def draw_noise(rng: np.random.Generator, size: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """Smooth noise of mean 0 and standard deviation about 1, with features about `scale` pixels wide."""
    coarse = rng.standard_normal((int(size[0] / scale) + 3, int(size[1] / scale) + 3), np.float32)
    fine: NDArray[np.float32] = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) * 1.3
    return fine
