"""Foreground of one kind that is apart in space becomes instances, whose ids survive contact and absence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.videos import Scene, Shape, make_scene
from worker.method.instances import Instances, track_instances
from worker.method.motion import PATCH_PX

COLOR = (60, 120, 214)


def square(side: int, start: tuple[int, int], velocity: tuple[int, int] = (0, 0), seen: range | None = None) -> Shape:
    return Shape("square", side * PATCH_PX, start, velocity, seen, COLOR)


def tracked(scene: Scene, groups_of: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The instance of each patch, -1 for background, and the shape that covers most of it, 0 for none."""
    length, height, width = scene.labels.shape
    cells = scene.labels.reshape(length, height // PATCH_PX, PATCH_PX, width // PATCH_PX, PATCH_PX)
    shapes = np.stack([(cells == label).mean((2, 4)) for label in range(scene.labels.max() + 1)])
    truth = shapes.argmax(0)
    group_of = np.array((-1, *(groups_of or (0,) * scene.labels.max())))
    score = 2 * (1 - shapes[0])
    groups = np.where(score > 1, group_of[np.where(truth > 0, truth, 1)], -1)
    instances = track_instances(groups, score, scene.frames)
    return labels_of(instances, groups.shape), np.where(score > 1, truth, 0)


def labels_of(instances: Instances, shape: tuple[int, ...]) -> np.ndarray:
    shares = np.stack([instances.shares(t) for t in range(shape[0])])
    return np.where(shares.any(-1), shares.argmax(-1), -1).reshape(shape)


def ids(labels: np.ndarray, truth: np.ndarray, shape: int) -> list[int]:
    """The most frequent instance of a shape in each frame that shows it."""
    return [
        int(np.bincount(frame[mask == shape]).argmax())
        for frame, mask in zip(labels, truth, strict=True)
        if (mask == shape).any()
    ]


@pytest.mark.parametrize("backwards", [False, True])
def test_two_objects_of_one_kind_keep_their_ids_through_contact(backwards):
    scene = make_scene([square(5, (40, 36), (0, 6)), square(5, (52, 140), (0, -2))], frames=12, size=(96, 176))
    if backwards:  # they are one component first, and then part
        scene = Scene(scene.frames[::-1].copy(), scene.labels[::-1].copy())
    labels, truth = tracked(scene)
    touching = sum(bool((np.diff(np.sign(frame), axis=1) != 0).sum(1).max() == 2) for frame in truth)
    assert 2 <= touching <= 6
    first, second = ids(labels, truth, 1), ids(labels, truth, 2)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]
    assert (labels[truth == 1] == first[0]).mean() > 0.9
    assert (labels[truth == 2] == second[0]).mean() > 0.9


def test_parts_that_are_apart_for_a_moment_are_one_object():
    scene = make_scene([square(6, (48, 48), (0, 2)), square(6, (48, 96), (0, 2))], frames=20, size=(96, 176))
    scene.labels[scene.labels == 2] = 1
    left, right = scene.labels[9] == 1, np.arange(176) > 96
    scene.labels[9] = np.where(left & right & (np.arange(176) < 112), 0, scene.labels[9])
    labels, truth = tracked(scene)
    assert len(np.unique(labels[truth > 0])) == 1


def test_an_object_of_its_kind_that_comes_back_has_its_id_and_one_of_another_kind_a_new_one():
    shapes = [square(5, (48, 48), (0, 2), range(6)), square(5, (48, 80), (0, 2), range(9, 16))]
    scene = make_scene(shapes, frames=16, size=(96, 176))
    for groups_of, same in (((0, 0), True), ((0, 1), False)):
        labels, truth = tracked(scene, groups_of)
        assert (ids(labels, truth, 1)[0] == ids(labels, truth, 2)[0]) is same


def test_an_object_keeps_its_id_behind_a_narrow_obstacle():
    scene = make_scene([square(5, (48, 40), (0, 6))], frames=18, size=(96, 176))
    scene.labels[:, :, 80:104] = 0
    scene.frames[:, :, 80:104] = 40
    labels, truth = tracked(scene)
    sides = [(frame[:, :10] > 0).any() and (frame[:, 13:] > 0).any() for frame in truth]
    assert any(sides)  # it appears on the right before it is gone on the left
    assert len(np.unique(labels[truth > 0])) == 1


def test_specks_belong_to_the_nearest_object():
    scene = make_scene([square(6, (48, 40)), square(6, (48, 130))], frames=8, size=(96, 176))
    scene.labels[:, 40:48, 88:96] = 2  # one patch, nearer to the second square
    labels, truth = tracked(scene)
    assert set(labels[:, 5, 11]) == set(ids(labels, truth, 2)) != set(ids(labels, truth, 1))


def test_objects_that_are_specks_stay_as_they_are():
    groups = np.full((6, 8, 12), -1)
    groups[:, 2, 2], groups[:, 5, 9] = 0, 1
    instances = track_instances(groups, 2.0 * (groups >= 0), np.zeros((6, 64, 96, 3), np.uint8))
    np.testing.assert_array_equal(labels_of(instances, groups.shape), groups)


@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_exactly_the_foreground_belongs_to_instances(seed, length, density):
    random = np.random.default_rng(seed)
    shape = (length, 6, 7)
    groups = np.where(random.random(shape) < density, random.integers(0, 3, shape), -1)
    score = np.where(groups >= 0, 1.01 + random.random(shape), random.random(shape))
    frames = random.integers(0, 255, (length, 48, 56, 3), np.uint8)
    instances = track_instances(groups, score, frames)
    shares = np.stack([instances.shares(t) for t in range(length)]).reshape(*shape, -1)
    np.testing.assert_allclose(shares.sum(-1), groups >= 0)
    assert set(np.flatnonzero(shares.any((0, 1, 2)))) == set(range(instances.count))
