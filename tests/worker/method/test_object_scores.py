"""Object scores: the regression equals its definition, and objects are found in videos of synthetic features."""

import numpy as np
import pytest

from worker.method.object_scores import FeatureRegression, combined_saliency, object_scores, smooth_over_time

T, H, W, D = 5, 10, 14, 24


class Rows:
    """Keys of all frames in memory."""

    def __init__(self, keys):
        self._keys = keys

    def __len__(self):
        return len(self._keys)

    def read(self, start, stop):
        return self._keys[start:stop]


def ridge_by_definition(keys, values, ridge):
    """Minimise |values - X w - b|² + penalty |w|² as a least-squares problem with additional rows, in float64."""
    rows = keys.reshape(-1, keys.shape[-1]).astype(np.float64)
    features = rows - rows.mean(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    penalty = ridge * (features**2).sum() / features.shape[1]
    left = np.block([[features, np.ones((len(features), 1))], [np.sqrt(penalty) * np.eye(features.shape[1] + 1)[:-1]]])
    right = np.concatenate([values.ravel().astype(np.float64), np.zeros(features.shape[1])])
    solution = np.linalg.lstsq(left, right, rcond=None)[0]
    return (features @ solution[:-1] + solution[-1]).reshape(values.shape)


def test_the_regression_equals_its_definition():
    random = np.random.default_rng(0)
    keys = random.normal(size=(T, H * W, D)).astype(np.float32) + 3
    values = random.random((T, H, W))
    found = FeatureRegression(Rows(keys))(values)
    np.testing.assert_allclose(found, ridge_by_definition(keys, values, 0.1), atol=1e-4)


def scene(seed=0):
    """Keys and masks of a video: two objects of different features on a background of a third kind, with noise."""
    random = np.random.default_rng(seed)
    kinds = random.normal(size=(3, D))
    first, second = np.zeros((2, T, H, W), bool)
    for t in range(T):
        first[t, 3:7, 2 + t : 6 + t] = True
        second[t, 4:8, 10:13] = True
    kind = np.where(first, 1, np.where(second, 2, 0))
    keys = kinds[kind] + 0.3 * random.normal(size=(T, H, W, D)) + 5
    return keys.reshape(T, H * W, D).astype(np.float16), first, second


def noisy(mask, seed, share=0.5):
    """An incomplete and noisy cue: part of the mask, and some tokens elsewhere."""
    random = np.random.default_rng(seed)
    return np.where(mask, random.random(mask.shape) > 1 - share, random.random(mask.shape) > 0.97).astype(np.float32)


def agreement(score, mask):
    return ((score > 1) & mask).sum() / ((score > 1) | mask).sum()


def test_foreground_completes_a_noisy_saliency():
    keys, first, second = scene()
    objects = first | second
    saliency = noisy(objects, 1)[..., None] + 0.01
    assert agreement(2 * saliency[..., 0], objects) < 0.6
    scores = object_scores(Rows(keys), saliency)
    assert agreement(scores.foreground, objects) > 0.95
    assert scores.main is scores.foreground


def test_the_main_object_is_the_salient_one_that_moves():
    keys, first, second = scene()
    ground = np.zeros_like(first)
    ground[:, 8:] = True  # moves too, like leaves, and is not salient
    motion = np.maximum(noisy(first, 2), noisy(ground, 3, share=0.2))
    scores = object_scores(Rows(keys), noisy(first | second, 1)[..., None] + 0.01, motion)
    assert agreement(scores.main, first) > 0.95
    assert agreement(scores.foreground, first | second) > 0.95


def test_motion_too_weak_for_a_mover_changes_nothing():
    keys, first, second = scene()
    saliency = noisy(first | second, 1)[..., None] + 0.01
    scores = object_scores(Rows(keys), saliency, 0.4 * first.astype(np.float32))
    np.testing.assert_array_equal(scores.main, object_scores(Rows(keys), saliency).main)


@pytest.mark.parametrize(("ratio", "has_objects"), [(3, False), (7, True)])
def test_objects_get_several_times_the_attention_of_other_tokens(ratio, has_objects):
    keys, first, _ = scene()
    saliency = np.where(first, ratio, 1)[..., None] + 0.1 * np.random.default_rng(0).random((T, H, W, 2))
    scores = object_scores(Rows(keys), saliency)
    assert (scores.foreground > 1).any() == has_objects
    moving = object_scores(Rows(keys), saliency, first.astype(np.float32))
    assert agreement(moving.main, first) > 0.95  # a mover is an object in either case


@pytest.mark.parametrize("length", [1, 2, 6])
def test_scores_are_limited_and_averaged_over_three_frames(length):
    scores = np.random.default_rng(0).normal(1, 2, (length, 3, 4)).astype(np.float32)
    expected = np.empty_like(scores)
    for t in range(length):
        before, now, after = (np.clip(scores[min(max(t + step, 0), length - 1)], 0, 2) for step in (-1, 0, 1))
        expected[t] = (before + 2 * now + after) / 4
    np.testing.assert_allclose(smooth_over_time(scores), expected, atol=1e-6)


def test_heads_that_attend_to_the_border_have_no_weight():
    objects = np.zeros((T, H, W))
    objects[:, 3:7, 3:9] = 1
    heads = np.stack([objects + 0.1, 5 * (1.1 - objects), 2 * objects + 0.4], -1)
    combined = combined_saliency(heads)
    assert np.unique(combined.round(9)).size == 2
    assert combined[0, 4, 4] > combined[0, 0, 0]
    np.testing.assert_allclose(combined.mean(), 1)
    np.testing.assert_allclose(combined, combined_saliency(heads * [3.0, 0.2, 7.0]))
    only_border = combined_saliency(heads[..., 1:2])
    assert only_border[0, 0, 0] > only_border[0, 4, 4]


def test_shapes_that_do_not_agree_are_refused():
    keys, _, _ = scene()
    with pytest.raises(ValueError, match="expected saliency"):
        object_scores(Rows(keys), np.ones((T - 1, H, W, 2)))
    with pytest.raises(ValueError, match="expected saliency"):
        object_scores(Rows(keys), np.ones((T, H, W, 2)), np.ones((T, H, W + 1)))
