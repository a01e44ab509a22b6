"""Generated scenes with exact masks: textured objects over like-textured ground, moving, shaded, occluding.

Made so that edges of colour alone do not solve them: an object may wear its ground's own texture or several
textures of its own, cast a shadow, bend its limbs, and stand before another that looks the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CANVAS = 128  # pixels a side on which an object is drawn before it is placed
Picture = NDArray[np.float32]  # (H, W, 3) in 0..255


@dataclass(frozen=True)
class Scene:
    """Frames and which object each pixel shows.

    Attributes:
        frames: RGB, uint8, shape (T, H, W, 3).
        labels: 0 for ground, from 1 for objects, 255 where nobody knows; uint8, shape (T, H, W).
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.frames.shape[:3] != self.labels.shape:
            raise ValueError(f"expected one label a pixel, got {self.frames.shape = } and {self.labels.shape = }")


@dataclass(frozen=True)
class Cutout:
    """The picture of an object and its shape, both on a square canvas: (CANVAS, CANVAS, 3) uint8, (CANVAS, CANVAS)."""

    picture: NDArray[np.uint8]
    alpha: NDArray[np.uint8]


@dataclass(frozen=True)
class Style:
    """What a texture looks like; two textures of one style differ as two views of one material do."""

    kind: str
    palette: Picture
    scale: float
    angle: float  # radians


def draw_style(rng: np.random.Generator) -> Style:
    kind = str(rng.choice(["noise", "noise", "stripes", "checks", "cells", "plain"]))
    grey, tint = rng.uniform(20, 235), rng.choice([8.0, 25.0, 60.0])  # most of the world is nearly grey
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
    bent = _noise(rng, size, 2 * style.scale) * style.scale * 0.5
    cos, sin = float(np.cos(style.angle)), float(np.sin(style.angle))  # Python's own keep float32
    along = (cos * columns + sin * rows + bent) / style.scale
    across = (-sin * columns + cos * rows + bent) / style.scale
    if style.kind == "stripes":
        value = 0.5 + 0.5 * np.sin(6.28 * along)
    elif style.kind == "checks":
        value = ((np.floor(along) + np.floor(across)) % 2).astype(np.float32)
    elif style.kind == "cells":
        value = np.abs(_noise(rng, size, style.scale)) * 0.9
    elif style.kind == "plain":
        value = 0.5 + 0.15 * _noise(rng, size, 4 * style.scale)
    else:
        value = 0.5 + 0.35 * _noise(rng, size, style.scale) + 0.2 * _noise(rng, size, max(2, style.scale / 3))
    value = np.clip(255 * value + 15 * _noise(rng, size, 2.5), 0, 255).astype(np.uint8)
    shades = np.linspace(0, 255, len(style.palette))
    ramp = np.stack([np.interp(np.arange(256), shades, channel) for channel in style.palette.T], 1)
    texture: Picture = ramp.astype(np.float32)[value]
    return texture


def draw_scene(
    rng: np.random.Generator,
    *,
    frames: int = 2,
    size: tuple[int, int] = (128, 256),
    grounds: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None,
    cutouts: Sequence[Cutout] = (),
    objects: int | None = None,
) -> Scene:
    """A scene of moving objects before a moving camera.

    Args:
        rng: Where every choice comes from.
        frames: T.
        size: (H, W) in pixels.
        grounds: Real frames (T, H, W, 3) to stand on and their labels (T, H, W); default: textures.
        cutouts: Objects to show beside drawn ones.
        objects: How many; default: one to four.

    Returns:
        The scene; objects count on from the labels of `grounds`.
    """
    styles = [draw_style(rng)]
    if grounds is None:
        pictures, labels = _textured_ground(rng, styles, frames, size)
    else:
        pictures = [ground.astype(np.float32) for ground in grounds[0]]
        labels = grounds[1].copy()
    known = labels[labels < 255]
    first = int(known.max(initial=0)) + 1
    count = int(rng.integers(1, 5)) if objects is None else objects
    sprite = None
    for number in range(first, first + count):
        if sprite is None or rng.random() > 0.15:  # else a second one of the same looks
            sprite = _CutoutSprite(rng, cutouts) if cutouts and rng.random() < 0.6 else _DrawnSprite(rng, styles)
        _place(rng, sprite, pictures, labels, number)
    return Scene(_filmed(rng, pictures), labels)


class _DrawnSprite:
    """A blob, a polygon or a body with limbs, in one or several textures."""

    def __init__(self, rng: np.random.Generator, styles: list[Style]) -> None:
        self.kind = str(rng.choice(["blob", "polygon", "body", "body"]))
        known = styles[int(rng.integers(len(styles)))]
        style = known if rng.random() < 0.25 else draw_style(rng)  # like-textured now and then
        styles.append(style)
        square = (CANVAS, CANVAS)
        self.textures = [draw_texture(rng, style, square)]
        self.textures.append(draw_texture(rng, draw_style(rng) if rng.random() < 0.5 else style, square))
        turn = rng.uniform(0, 6.28)
        rows, columns = (np.mgrid[:CANVAS, :CANVAS].astype(np.float32) - CANVAS / 2) / CANVAS
        self.light = (1 + rng.uniform(0, 0.7) * (np.cos(turn) * columns + np.sin(turn) * rows))[..., None]
        angles = np.linspace(0, 6.28, 48, endpoint=False)
        if self.kind == "polygon":
            angles = np.sort(rng.uniform(0, 6.28, int(rng.integers(3, 8))))
            radius = rng.uniform(0.6, 1.0, len(angles))
        else:
            waves = [rng.normal(0, 0.3 / wave) * np.cos(wave * angles + rng.uniform(0, 6.28)) for wave in range(1, 6)]
            radius = 0.75 + np.sum(waves, 0)
        stretch = rng.uniform(0.45, 1.0)
        reach = 0.28 if self.kind == "body" else 0.48
        points = np.stack([np.cos(angles) * radius, np.sin(angles) * radius * stretch], 1)
        self.outline = (CANVAS / 2 + CANVAS * reach * points / np.abs(points).max()).astype(np.int32)
        limbs = int(rng.integers(2, 6)) if self.kind == "body" else 0
        self.limbs = [
            (self.outline[int(rng.integers(len(self.outline)))], rng.uniform(0, 6.28), rng.uniform(12, 38),
             int(rng.integers(4, 14)), rng.uniform(-0.6, 0.6))
            for _ in range(limbs)
        ]  # fmt: skip

    def draw(self, time: float) -> tuple[Picture, NDArray[np.uint8]]:
        alpha, second = np.zeros((CANVAS, CANVAS), np.uint8), np.zeros((CANVAS, CANVAS), np.uint8)
        cv2.fillPoly(alpha, [self.outline], 255)
        for joint, angle, length, thickness, swing in self.limbs:
            angle = angle + swing * np.sin(2 * time)
            knee = joint + length * np.array([np.cos(angle), np.sin(angle)])
            foot = knee + length * np.array([np.cos(angle + swing), np.sin(angle + swing)])
            path = [np.array([joint, knee, foot]).round().astype(np.int32)]
            cv2.polylines(alpha, path, False, 255, thickness)
            cv2.polylines(second, path, False, 255, thickness)
        picture = np.where(second[..., None] > 0, self.textures[1], self.textures[0]) * self.light
        return picture.astype(np.float32), alpha


class _CutoutSprite:
    """A real object as it was cut out, mirrored now and then, its colours shifted."""

    def __init__(self, rng: np.random.Generator, cutouts: Sequence[Cutout]) -> None:
        chosen = cutouts[int(rng.integers(len(cutouts)))]
        side = -1 if rng.random() < 0.5 else 1
        gain, shift = rng.uniform(0.75, 1.25, 3), rng.uniform(-20, 20, 3)
        self.picture = np.clip(chosen.picture[:, ::side] * gain + shift, 0, 255).astype(np.float32)
        self.alpha = np.ascontiguousarray(chosen.alpha[:, ::side])

    def draw(self, _time: float) -> tuple[Picture, NDArray[np.uint8]]:
        return self.picture, self.alpha


def _textured_ground(
    rng: np.random.Generator, styles: list[Style], frames: int, size: tuple[int, int]
) -> tuple[list[Picture], NDArray[np.uint8]]:
    """Ground of one or two textures seen by a camera that pans, zooms and rolls."""
    large = (size[0] * 3 // 2, size[1] * 3 // 2)
    ground = draw_texture(rng, styles[0], large)
    if rng.random() < 0.5:  # a wall over a floor, a hill before the sky
        styles.append(draw_style(rng))
        border = large[0] * rng.uniform(0.2, 0.8) + 12 * _noise(rng, (1, large[1]), 60)[0]
        below = np.mgrid[: large[0], : large[1]][0] > border
        ground[below] = draw_texture(rng, styles[1], large)[below]
    at = rng.uniform(-0.12, 0.12, 2) * size
    pan, zoom, roll = rng.normal(0, 5, 2), rng.normal(0, 0.02), rng.normal(0, 0.02)
    pictures = []
    for index in range(frames):
        view = _affine(large, size, at + pan * index, 1.0 + zoom * index, roll * index)
        pictures.append(cv2.warpAffine(ground, view, size[::-1], borderMode=cv2.BORDER_REFLECT).astype(np.float32))
    return pictures, np.zeros((frames, *size), np.uint8)


def _place(
    rng: np.random.Generator,
    sprite: _DrawnSprite | _CutoutSprite,
    pictures: list[Picture],
    labels: NDArray[np.uint8],
    number: int,
) -> None:
    """Draw a sprite into every frame, over what is there."""
    size = (pictures[0].shape[0], pictures[0].shape[1])
    scale = size[0] / CANVAS * np.exp(rng.uniform(np.log(0.22), np.log(1.0)))
    at = rng.uniform(-0.42, 0.42, 2) * size
    speed = rng.normal(0, 1, 2) * rng.choice([2.0, 6.0, 16.0])
    grow, turn, spin = rng.normal(0, 0.03), rng.normal(0, 0.4), rng.normal(0, 0.08)
    shadow = rng.uniform(0.4, 0.9) if rng.random() < 0.3 else 1.0
    falls = rng.uniform(-8, 8, 2)
    phase, pace = rng.uniform(0, 6), rng.uniform(0, 0.6)
    for index, picture in enumerate(pictures):
        drawn, alpha = sprite.draw(phase + pace * index)
        move = _affine((CANVAS, CANVAS), size, np.zeros(2), scale * (1 + grow * index), turn + spin * index)
        move[:, 2] += (at + speed * index)[::-1]
        if shadow < 1:
            fallen = move.copy()
            fallen[:, 2] += falls
            dark = cv2.blur(cv2.warpAffine(alpha, fallen, size[::-1]), (7, 7)).astype(np.float32)[..., None] / 255
            picture *= 1 - dark * (1 - shadow)
        colour = cv2.warpAffine(drawn, move, size[::-1], borderMode=cv2.BORDER_REPLICATE)
        cover = cv2.warpAffine(alpha, move, size[::-1]).astype(np.float32)[..., None] / 255
        picture += cover * (colour - picture)
        labels[index][cover[..., 0] > 0.5] = number


def _affine(
    source: tuple[int, int], target: tuple[int, int], shift: NDArray[np.float64], scale: float, turn: float
) -> NDArray[np.float64]:
    """From source to target pixels: middle upon middle, scaled, turned, moved by (down, right)."""
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    matrix = np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])
    middle = np.array([source[1] / 2, source[0] / 2])
    matrix[:, 2] = np.array([target[1] / 2, target[0] / 2]) + shift[::-1] - matrix[:, :2] @ middle
    return matrix


def _filmed(rng: np.random.Generator, pictures: list[Picture]) -> NDArray[np.uint8]:
    """What a camera makes of it: exposure, softness, grain."""
    gain, gamma = rng.uniform(0.7, 1.25), rng.uniform(0.75, 1.35)
    soft = float(rng.choice([0, 0, 0.5, 0.9]))
    grain = float(rng.choice([0, 2, 5, 9]))
    filmed = np.stack(pictures)
    if soft:
        filmed = np.stack([cv2.GaussianBlur(picture, (0, 0), soft) for picture in filmed])
    if grain:
        filmed = filmed + grain * rng.standard_normal(filmed.shape, np.float32)
    curve = 255 * np.clip(gain * np.arange(256) / 255, 0, 1) ** gamma
    exposed: NDArray[np.uint8] = curve.astype(np.uint8)[np.clip(filmed, 0, 255).astype(np.uint8)]
    return exposed


def _noise(rng: np.random.Generator, size: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """Smooth noise of mean 0 and deviation about 1, features about `scale` pixels wide."""
    coarse = rng.standard_normal((int(size[0] / scale) + 3, int(size[1] / scale) + 3), np.float32)
    fine: NDArray[np.float32] = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) * 1.3
    return fine
