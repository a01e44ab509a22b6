"""Surfaces: textures of a style, parts of real frames."""

import numpy as np

from worker.training.scenes.textures import draw_style, draw_surface, draw_texture


def test_textures_have_the_size_asked_for_and_stay_in_range() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        texture = draw_texture(rng, draw_style(rng), (40, 56))
        assert texture.shape == (40, 56, 3)
        assert 0 <= texture.min() <= texture.max() <= 255


def test_some_surfaces_are_parts_of_real_frames() -> None:
    photos = np.zeros((2, 32, 64, 3), np.uint8)
    photos[:, ::2, :, 1] = 200  # bright rows that no texture has
    striped = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        surface = draw_surface(rng, draw_style(rng), photos, (64, 64))
        along, across = np.abs(np.diff(surface[..., 1], axis=1)).mean(), np.abs(np.diff(surface[..., 1], axis=0)).mean()
        striped += bool(along < 0.01 < across)
    assert 12 < striped < 36


def test_frames_smaller_than_a_part_are_accepted() -> None:
    photos = np.full((1, 8, 8, 3), 90, np.uint8)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        assert draw_surface(rng, draw_style(rng), photos, (16, 16)).shape == (16, 16, 3)
