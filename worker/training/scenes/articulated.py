"""Articulated figures: people, quadrupeds, birds and carts made of connected, tapering limbs."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

UP, DOWN = -np.pi / 2, np.pi / 2


@dataclass(frozen=True)
class Part:
    """A tapering limb: lengths relative to the figure, angles in radians (0 points right, pi/2 down).

    `joint` is the index of the parent part and the position along it; `swing` and `phase` describe the motion.
    """

    joint: tuple[int, float] | None
    angle: float
    length: float
    widths: tuple[float, float]
    surface: int
    swing: float = 0.0
    phase: float = 0.0


def draw_articulated(rng: np.random.Generator) -> list[Part]:
    """The parts of a random figure in drawing order, far ones first."""
    draw = {"person": _person, "quadruped": _quadruped, "bird": _bird, "cart": _cart}
    return draw[str(rng.choice(["person", "person", "quadruped", "bird", "cart"]))](rng)


def place_parts(parts: list[Part], time: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Start and end of each part as (x, y) relative to the figure, shape (n, 2) each."""
    starts, ends = np.zeros((2, len(parts), 2))
    for number, part in enumerate(parts):
        if part.joint is not None:
            on, along = part.joint
            starts[number] = starts[on] + along * (ends[on] - starts[on])
        angle = part.angle + part.swing * np.sin(2 * time + part.phase)
        ends[number] = starts[number] + part.length * np.array([np.cos(angle), np.sin(angle)])
    return starts, ends


def draw_limb(
    cover: NDArray[np.uint8], start: NDArray[np.float64], end: NDArray[np.float64], first: float, last: float
) -> None:
    """Fill a limb with round ends with 255; points as (x, y) and the radii at both ends, in pixels."""
    along = end - start
    length = float(np.hypot(*along))
    if length > 1:
        aside = np.array([-along[1], along[0]]) / length
        corners = [start + first * aside, end + last * aside, end - last * aside, start - first * aside]
        cv2.fillConvexPoly(cover, np.array(corners).round().astype(np.int32), 255)
    for point, radius in ((start, first), (end, last)):
        cv2.circle(cover, (round(float(point[0])), round(float(point[1]))), max(1, round(radius)), 255, -1)


def _person(rng: np.random.Generator) -> list[Part]:
    lean, gait, reach = rng.normal(0, 0.15), rng.uniform(0, 0.7), rng.uniform(-2.6, 0.6)
    build = rng.uniform(0.8, 1.3)
    torso = Part(None, UP + lean, 0.32, (0.15 * build, 0.2 * build), 0)
    parts = [torso]
    for far, phase in ((True, 0.0), (False, np.pi)):
        bend, lift = rng.normal(0, 0.3), rng.normal(0, 0.4) + (reach if rng.random() < 0.3 else 0)
        hip = len(parts)
        parts.append(
            Part(
                (0, 0.0),
                DOWN + bend * 0.5 + rng.normal(0, gait * 0.5),
                0.26,
                (0.12 * build, 0.09 * build),
                1,
                gait,
                phase,
            )
        )
        parts.append(Part((hip, 1.0), DOWN - abs(bend) * 0.8, 0.25, (0.09 * build, 0.06 * build), 1, gait, phase + 0.5))
        parts.append(Part((hip + 1, 1.0), 0.1, 0.09, (0.055, 0.045), 3))
        shoulder = len(parts)
        parts.append(Part((0, 0.92), DOWN + lift, 0.18, (0.08 * build, 0.06 * build), 0, gait, phase + np.pi))
        parts.append(
            Part(
                (shoulder, 1.0),
                DOWN + lift - 0.5,
                0.17,
                (0.055 * build, 0.045),
                2 if rng.random() < 0.6 else 0,
                gait,
                phase + np.pi,
            )
        )
        if far:  # the torso again, in front of the far limbs
            parts.append(Part((0, 0.0), torso.angle, torso.length, torso.widths, 0))
    neck = len(parts)
    parts.append(Part((0, 1.0), UP + lean, 0.06, (0.06, 0.06), 2))
    parts.append(Part((neck, 1.0), UP + lean, 0.08, (0.12, 0.13), 2))
    if rng.random() < 0.6:  # hair, a hat
        parts.append(Part((neck + 1, 0.9), UP + lean, 0.03, (0.13, 0.1), 3))
    return parts


def _quadruped(rng: np.random.Generator) -> list[Part]:
    height, stout, gait = rng.uniform(0.15, 0.4), rng.uniform(0.2, 0.38), rng.uniform(0, 0.6)
    trunk = Part(None, rng.normal(0, 0.1), 0.5, (stout, stout * rng.uniform(0.8, 1.1)), 0)
    leg = rng.uniform(0.05, 0.12)
    parts = [trunk]
    for along, phase in ((0.05, 0.0), (0.95, 1.5), (0.0, np.pi), (1.0, np.pi + 1.5)):
        thigh = len(parts)
        parts.append(
            Part((0, along), DOWN + rng.normal(0, 0.2), stout / 2 + height / 2, (leg * 1.6, leg), 1, gait, phase)
        )
        parts.append(Part((thigh, 1.0), DOWN + rng.normal(0, 0.25), height / 2, (leg, leg * 0.8), 1, gait, phase + 0.6))
        if along == 0.95:
            parts.append(Part((0, 0.0), trunk.angle, trunk.length, trunk.widths, 0))
    neck = len(parts)
    rise = -rng.uniform(0.0, 1.2)
    parts.append(Part((0, 1.0), rise, rng.uniform(0.08, 0.3), (stout * 0.7, stout * 0.5), 0, 0.1))
    parts.append(
        Part((neck, 1.0), rise + rng.uniform(0.3, 1.3), rng.uniform(0.12, 0.22), (stout * 0.55, stout * 0.3), 2, 0.15)
    )
    parts.append(Part((0, 0.0), np.pi + rng.normal(0, 0.6), rng.uniform(0.05, 0.3), (leg * 0.6, leg * 0.4), 3, 0.3))
    return parts


def _bird(rng: np.random.Generator) -> list[Part]:
    stout = rng.uniform(0.2, 0.32)
    trunk = Part(None, rng.normal(-0.3, 0.2), 0.3, (stout * 0.6, stout), 0)
    parts = [trunk]
    for along in (0.4, 0.6):
        leg = len(parts)
        parts.append(
            Part((0, along), DOWN + rng.normal(0, 0.2), rng.uniform(0.15, 0.5), (0.035, 0.03), 1, 0.2, along * 9)
        )
        parts.append(Part((leg, 1.0), 0.1, 0.08, (0.03, 0.03), 1))
    parts.append(Part((0, 0.0), trunk.angle, trunk.length, trunk.widths, 0))
    parts.append(Part((0, 0.7), np.pi + rng.normal(0, 0.4), 0.35, (stout * 0.6, 0.05), 2, rng.uniform(0, 0.6)))
    neck = len(parts)
    rise = UP + rng.uniform(-0.4, 0.8)
    parts.append(Part((0, 1.0), rise, rng.uniform(0.05, 0.4), (0.09, 0.06), 0, 0.2))
    parts.append(Part((neck, 1.0), rng.normal(0.1, 0.2), 0.07, (0.11, 0.09), 0))
    parts.append(Part((neck + 1, 1.0), rng.normal(0.2, 0.2), 0.09, (0.05, 0.02), 3))
    return parts


def _cart(rng: np.random.Generator) -> list[Part]:
    height, wheel = rng.uniform(0.16, 0.3), rng.uniform(0.12, 0.22)
    body = Part(None, 0.0, rng.uniform(0.5, 0.8), (height, height * rng.uniform(0.7, 1.0)), 0)
    parts = [body]
    start, end = sorted(rng.uniform(0.1, 0.9, 2))
    parts.append(Part((0, start), UP, height * rng.uniform(0.4, 0.8), (0.3 * (1 + end - start), 0.2), 0))
    parts.append(Part((0, (start + end) / 2), UP, height * 0.55, (0.2 * (1 + end - start), 0.14), 2))
    for along in (0.15, 0.85):
        parts.append(Part((0, along), DOWN, height / 2, (wheel, wheel), 1))
        axle = len(parts)
        parts.append(Part((axle - 1, 1.0), DOWN, 0.001, (wheel * 0.5, wheel * 0.5), 3))
    return parts
