"""Synthetic scenes with exact masks: textured objects that move, cast shadows and occlude each other.

Colour edges alone do not solve them: an object may have the texture of the background or several textures of its
own, cast a shadow, bend its limbs, and occlude another object of the same appearance. Articulated figures (people,
quadrupeds, birds, carts) consist of parts of different appearance that form one object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.training.scenes.sprites import CANVAS, Cutout, Sprite, draw_sprite
from worker.training.scenes.textures import Picture, Style, draw_noise, draw_style, draw_texture


@dataclass(frozen=True)
class Scene:
    """Frames with the object of each pixel.

    Attributes:
        frames: RGB, uint8, shape (T, H, W, 3).
        labels: 0 background, objects from 1, 255 unknown; uint8, shape (T, H, W).
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.frames.shape[:3] != self.labels.shape:
            raise ValueError(f"expected one label per pixel, got {self.frames.shape = } and {self.labels.shape = }")


def draw_scene(
    rng: np.random.Generator,
    *,
    frames: int = 2,
    size: tuple[int, int] = (128, 256),
    grounds: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None,
    cutouts: Sequence[Cutout] = (),
    photos: NDArray[np.uint8] | None = None,
    objects: int | None = None,
) -> Scene:
    """A scene of moving objects seen by a moving camera.

    Args:
        rng: Source of all random choices.
        frames: T.
        size: (H, W) in pixels.
        grounds: Real background frames (T, H, W, 3) and their labels (T, H, W); default: textures.
        cutouts: Cut-out objects to use besides drawn ones.
        photos: Real frames (n, H, W, 3), parts of which serve as surfaces besides textures; default: only textures.
        objects: Number of objects; default: one to four.

    Returns:
        The scene; object labels continue after the labels of `grounds`.
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
        if sprite is None or rng.random() > 0.15:  # else a second object of the same appearance
            sprite = draw_sprite(rng, styles, cutouts, photos)
        _place(rng, sprite, pictures, labels, number)
    return Scene(_with_camera_effects(rng, pictures), labels)


def _textured_ground(
    rng: np.random.Generator, styles: list[Style], frames: int, size: tuple[int, int]
) -> tuple[list[Picture], NDArray[np.uint8]]:
    """A background of one or two textures seen by a camera that pans, zooms and rolls."""
    large = (size[0] * 3 // 2, size[1] * 3 // 2)
    ground = draw_texture(rng, styles[0], large)
    if rng.random() < 0.5:  # two regions, such as wall and floor
        styles.append(draw_style(rng))
        border = large[0] * rng.uniform(0.2, 0.8) + 12 * draw_noise(rng, (1, large[1]), 60)[0]
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
    sprite: Sprite,
    pictures: list[Picture],
    labels: NDArray[np.uint8],
    number: int,
) -> None:
    """Draw a sprite into every frame, over the existing content."""
    size = (pictures[0].shape[0], pictures[0].shape[1])
    scale = size[0] / CANVAS * np.exp(rng.uniform(np.log(0.28), np.log(1.15)))
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
    """Affine map from source to target pixels: centre to centre, scaled, rotated, shifted by (down, right)."""
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    matrix = np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])
    middle = np.array([source[1] / 2, source[0] / 2])
    matrix[:, 2] = np.array([target[1] / 2, target[0] / 2]) + shift[::-1] - matrix[:, :2] @ middle
    return matrix


def _with_camera_effects(rng: np.random.Generator, pictures: list[Picture]) -> NDArray[np.uint8]:
    """Camera effects: exposure, blur, grain."""
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
