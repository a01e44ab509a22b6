"""Synthetic scenes: a seed determines the scene, labels mark the objects, real backgrounds are kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.training.scenes.scene import Scene, draw_scene
from worker.training.scenes.sprites import CANVAS, Cutout


@settings(max_examples=15, deadline=None)
@given(st.integers(1_000_000, 2_000_000))
def test_a_seed_determines_the_scene(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed), frames=2, size=(48, 96))
    again = draw_scene(np.random.default_rng(seed), frames=2, size=(48, 96))
    np.testing.assert_array_equal(scene.frames, again.frames)
    np.testing.assert_array_equal(scene.labels, again.labels)
    assert scene.frames.shape == (2, 48, 96, 3)
    assert scene.labels.max() <= 4
    assert scene.frames.std() > 0


def test_object_labels_continue_after_the_labels_of_real_backgrounds() -> None:
    grounds = np.full((2, 48, 96, 3), 90, np.uint8), np.zeros((2, 48, 96), np.uint8)
    grounds[1][:, :8] = 3
    scenes = [draw_scene(np.random.default_rng(seed), size=(48, 96), grounds=grounds, objects=1) for seed in range(8)]
    assert all(set(np.unique(scene.labels)) <= {0, 3, 4} for scene in scenes)
    assert any((scene.labels == 4).any() for scene in scenes)
    assert grounds[0].min() == 90, "the given background is not modified"


def test_cutouts_appear_in_scenes() -> None:
    picture = np.zeros((CANVAS, CANVAS, 3), np.uint8)
    picture[..., 0] = 255
    cutout = Cutout(picture, np.full((CANVAS, CANVAS), 255, np.uint8))
    grounds = np.full((1, 64, 64, 3), 60, np.uint8), np.zeros((1, 64, 64), np.uint8)
    scenes = [
        draw_scene(np.random.default_rng(seed), frames=1, size=(64, 64), grounds=grounds, cutouts=[cutout], objects=1)
        for seed in range(12)
    ]
    red = [scene for scene in scenes if (scene.labels == 1).sum() > 200]
    assert red
    excess = [scene.frames[scene.labels == 1].astype(int) @ [2, -1, -1] for scene in red]
    assert max(float(np.median(values)) for values in excess) > 200


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one label per pixel"):
        Scene(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 8, 8), np.uint8))
