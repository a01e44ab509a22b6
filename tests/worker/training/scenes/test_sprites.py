"""Sprites: every kind occurs, a seed determines the sprite, and it fits its canvas."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.training.scenes.sprites import CANVAS, ArticulatedSprite, Cutout, CutoutSprite, DrawnSprite, draw_sprite
from worker.training.scenes.textures import draw_style


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 9))
def test_a_seed_determines_a_sprite_that_fits_its_canvas(seed: int, time: float) -> None:
    drawn = []
    for _ in range(2):
        rng = np.random.default_rng(seed)
        drawn.append(draw_sprite(rng, [draw_style(rng)], [], None).draw(time))
    picture, alpha = drawn[0]
    assert picture.shape == (CANVAS, CANVAS, 3)
    assert alpha.shape == (CANVAS, CANVAS)
    assert set(np.unique(alpha)) <= {0, 255}
    assert (alpha > 0).mean() > 0.001, "a polygon of three close corners is a sliver"
    np.testing.assert_array_equal(picture, drawn[1][0])
    np.testing.assert_array_equal(alpha, drawn[1][1])


def test_all_kinds_occur() -> None:
    cutout = Cutout(np.zeros((CANVAS, CANVAS, 3), np.uint8), np.zeros((CANVAS, CANVAS), np.uint8))
    rng = np.random.default_rng(0)
    kinds = {type(draw_sprite(rng, [draw_style(rng)], [cutout], None)) for _ in range(40)}
    assert kinds == {CutoutSprite, DrawnSprite, ArticulatedSprite}


def test_parts_of_a_figure_differ_in_appearance() -> None:
    spreads = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        picture, alpha = ArticulatedSprite(rng, [draw_style(rng)], None).draw(0.0)
        spreads.append(picture[alpha > 0].std(0).max())
    assert max(spreads) > 40
