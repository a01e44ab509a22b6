"""Objects of synthetic scenes, each drawn on a square canvas before it is placed."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.training.scenes.articulated import draw_articulated, draw_limb, place_parts
from worker.training.scenes.textures import Picture, Style, draw_style, draw_surface

CANVAS = 128  # side of the canvas in pixels
SQUARE = (CANVAS, CANVAS)


@dataclass(frozen=True)
class Cutout:
    """An object cut out of a frame: RGB (CANVAS, CANVAS, 3) and alpha (CANVAS, CANVAS), uint8."""

    picture: NDArray[np.uint8]
    alpha: NDArray[np.uint8]


def draw_sprite(
    rng: np.random.Generator, styles: list[Style], cutouts: Sequence[Cutout], photos: NDArray[np.uint8] | None
) -> "Sprite":
    """A cut-out, an articulated figure or another shape; a new style is appended to `styles`."""
    if cutouts and rng.random() < 0.4:
        return CutoutSprite(rng, cutouts)
    if rng.random() < 0.6:
        return ArticulatedSprite(rng, styles, photos)
    return DrawnSprite(rng, styles, photos)


class DrawnSprite:
    """A blob, a polygon or a body with limbs, in one or several textures."""

    def __init__(self, rng: np.random.Generator, styles: list[Style], photos: NDArray[np.uint8] | None) -> None:
        self.kind = str(rng.choice(["blob", "polygon", "body", "body"]))
        style = _draw_own_style(rng, styles)
        self.textures = [draw_surface(rng, style, photos, SQUARE)]
        other = draw_style(rng) if rng.random() < 0.5 else style
        self.textures.append(draw_surface(rng, other, photos, SQUARE))
        self.light = _draw_light(rng)
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


class ArticulatedSprite:
    """An articulated figure: parts of different appearance that move together."""

    def __init__(self, rng: np.random.Generator, styles: list[Style], photos: NDArray[np.uint8] | None) -> None:
        self.parts = draw_articulated(rng)
        first = _draw_own_style(rng, styles)
        alike = rng.random() < 0.35  # one surface for all parts, as fur
        self.surfaces = [draw_surface(rng, first, photos, SQUARE)]
        for _ in range(3):
            self.surfaces.append(self.surfaces[0] if alike else draw_surface(rng, draw_style(rng), photos, SQUARE))
        self.light = _draw_light(rng)
        self.far_shade = rng.uniform(0.6, 1.0)  # brightness of the first part drawn, the farthest
        self.side = -1 if rng.random() < 0.5 else 1
        ends = np.concatenate([np.concatenate(place_parts(self.parts, time)) for time in (0.0, 1.5, 3.0, 4.5)])
        thick = max(max(part.widths) for part in self.parts)
        low, high = ends.min(0) - thick / 2, ends.max(0) + thick / 2
        self.scale = (CANVAS - 6) / float((high - low).max())
        self.middle = (low + high) / 2

    def draw(self, time: float) -> tuple[Picture, NDArray[np.uint8]]:
        picture, alpha = np.zeros((CANVAS, CANVAS, 3), np.float32), np.zeros((CANVAS, CANVAS), np.uint8)
        starts, ends = ((CANVAS / 2 + self.scale * (points - self.middle)) for points in place_parts(self.parts, time))
        for number, (part, start, end) in enumerate(zip(self.parts, starts, ends, strict=True)):
            cover = np.zeros((CANVAS, CANVAS), np.uint8)
            draw_limb(cover, start, end, self.scale * part.widths[0] / 2, self.scale * part.widths[1] / 2)
            shade = self.far_shade + (1 - self.far_shade) * number / len(self.parts)
            inside = cover > 0
            picture[inside] = self.surfaces[part.surface][inside] * np.float32(shade)
            alpha |= cover
        picture = picture * self.light
        return picture[:, :: self.side].astype(np.float32), np.ascontiguousarray(alpha[:, :: self.side])


class CutoutSprite:
    """A cut-out, mirrored at random, its colours shifted."""

    def __init__(self, rng: np.random.Generator, cutouts: Sequence[Cutout]) -> None:
        chosen = cutouts[int(rng.integers(len(cutouts)))]
        side = -1 if rng.random() < 0.5 else 1
        gain, shift = rng.uniform(0.75, 1.25, 3), rng.uniform(-20, 20, 3)
        self.picture = np.clip(chosen.picture[:, ::side] * gain + shift, 0, 255).astype(np.float32)
        self.alpha = np.ascontiguousarray(chosen.alpha[:, ::side])

    def draw(self, _time: float) -> tuple[Picture, NDArray[np.uint8]]:
        return self.picture, self.alpha


def _draw_own_style(rng: np.random.Generator, styles: list[Style]) -> Style:
    """An object's style, appended to `styles`; in a quarter of cases that of the background or of another object."""
    known = styles[int(rng.integers(len(styles)))]
    style = known if rng.random() < 0.25 else draw_style(rng)
    styles.append(style)
    return style


def _draw_light(rng: np.random.Generator) -> Picture:
    """A linear brightness gradient, shape (CANVAS, CANVAS, 1)."""
    turn = rng.uniform(0, 6.28)
    rows, columns = (np.mgrid[:CANVAS, :CANVAS].astype(np.float32) - CANVAS / 2) / CANVAS
    light: Picture = (1 + rng.uniform(0, 0.7) * (np.cos(turn) * columns + np.sin(turn) * rows))[..., None]
    return light


Sprite = DrawnSprite | ArticulatedSprite | CutoutSprite
