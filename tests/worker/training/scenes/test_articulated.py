"""Articulated figures: parts are connected, limbs swing, the silhouette is one region."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.training.scenes.articulated import draw_articulated, draw_limb, place_parts

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0, 10))
def test_every_part_starts_on_its_parent(seed: int, time: float) -> None:
    parts = draw_articulated(np.random.default_rng(seed))
    starts, ends = place_parts(parts, time)
    for number, part in enumerate(parts):
        length = np.hypot(*(ends[number] - starts[number]))
        np.testing.assert_allclose(length, part.length, atol=1e-9)
        if part.joint is None:
            np.testing.assert_array_equal(starts[number], 0)
        else:
            on, along = part.joint
            assert on < number, "a parent precedes its children"
            np.testing.assert_allclose(starts[number], (1 - along) * starts[on] + along * ends[on], atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_figure_is_one_connected_region(seed: int) -> None:
    parts = draw_articulated(np.random.default_rng(seed))
    starts, ends = place_parts(parts, 0.0)
    cover = np.zeros((400, 400), np.uint8)
    for part, start, end in zip(parts, starts, ends, strict=True):
        draw_limb(cover, 200 + 120 * start, 200 + 120 * end, 60 * part.widths[0], 60 * part.widths[1])
    pieces, _ = cv2.connectedComponents(cover, connectivity=8)
    assert pieces == 2, "background and figure"


def test_limbs_swing_with_time() -> None:
    moved = []
    for seed in range(20):
        parts = draw_articulated(np.random.default_rng(seed))
        moved.append(np.abs(place_parts(parts, 0.0)[1] - place_parts(parts, 0.7)[1]).max())
    assert max(moved) > 0.05


def test_a_limb_covers_the_line_between_its_ends() -> None:
    cover = np.zeros((40, 80), np.uint8)
    draw_limb(cover, np.array([10.0, 20.0]), np.array([70.0, 20.0]), 8.0, 3.0)
    assert (cover[20, 10:71] == 255).all()
    widths = (cover > 0).sum(0)
    assert widths[12] > widths[40] > widths[68] > 0, "it tapers"
