import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tests.worker import reference
from worker.evaluation import metrics
from worker.evaluation.labels import VOID

DATA = Path(__file__).parents[4] / "shared" / "data" / "metrics"


def label_maps(high, *, low=0, shape=None):
    """Blocky label maps, so that masks have insides; ids `low` to `high`."""
    coarse = arrays.arrays(np.int16, shape or (3, 4), elements=st.integers(low, high))
    return coarse.map(lambda labels: np.kron(labels, np.ones((3, 4), dtype=np.int16)))


@given(label_maps(4), label_maps(3))
def test_j_of_all_pairs_is_the_jaccard_index_of_each(prediction, truth):
    proposals, objects = np.arange(1, 6), np.arange(1, 4)
    j = metrics.intersection_over_union(prediction, truth, proposals, objects)
    expected = [[reference.jaccard(prediction == p, truth == g) for g in objects] for p in proposals]
    np.testing.assert_allclose(j, expected)


@settings(max_examples=25)
@given(label_maps(5), label_maps(3))
def test_f_of_all_pairs_is_the_boundary_measure_of_each(prediction, truth):
    proposals, objects = np.arange(1, 7), np.arange(1, 4)
    f = metrics.boundary_f(prediction, truth, proposals, objects)
    expected = [[reference.boundary_f(prediction == p, truth == g) for g in objects] for p in proposals]
    np.testing.assert_allclose(f, expected)


def test_f_tolerates_a_shift_within_the_radius_and_no_more():
    def square(left):
        mask = np.zeros((120, 160), dtype=np.uint8)
        mask[40:80, left : left + 40] = 1
        return mask

    radius = metrics.boundary_radius((120, 160))
    assert radius == 2
    one = np.array([1])
    assert metrics.boundary_f(square(50), square(50 + radius), one, one) == 1
    assert metrics.boundary_f(square(50), square(51 + radius), one, one) < 1


def test_void_pixels_count_for_nobody():
    truth = np.zeros((12, 12), dtype=np.int16)
    truth[:, :6] = 1
    prediction = np.zeros((12, 12), dtype=np.uint16)
    prediction[:, :9] = 1
    one = np.array([1])
    assert metrics.intersection_over_union(prediction, truth, one, one) == 6 / 9
    truth[:, 6:9] = VOID
    assert metrics.intersection_over_union(prediction, truth, one, one) == 1
    assert metrics.boundary_f(prediction, truth, one, one) == 1
    assert metrics.foreground_ari(prediction, truth) == 1


def test_an_empty_mask_agrees_with_an_empty_mask_alone():
    empty = np.zeros((9, 9), dtype=np.uint8)
    some = empty.copy()
    some[3:6, 3:6] = 1
    one = np.array([1])
    for measure in (metrics.intersection_over_union, metrics.boundary_f):
        assert measure(empty, empty, one, one) == 1
        assert measure(some, empty, one, one) == 0
        assert measure(empty, some, one, one) == 0


def test_shapes_that_differ_are_refused():
    a, b, one = np.zeros((4, 4), dtype=np.uint8), np.zeros((4, 5), dtype=np.uint8), np.array([1])
    for measure in (metrics.intersection_over_union, metrics.boundary_f):
        with pytest.raises(ValueError, match="shape"):
            measure(a, b, one, one)
    with pytest.raises(ValueError, match="shape"):
        metrics.foreground_ari(a, b)


def scores(j, f):
    j, f = np.asarray(j, dtype=float), np.asarray(f, dtype=float)
    return metrics.PairScores(np.arange(1, j.shape[1] + 1), np.arange(1, j.shape[2] + 1), j, f)


def gains():
    return arrays.arrays(np.float64, (2, 2, 4, 3), elements=st.floats(0, 1))


@given(gains())
def test_the_official_matching_is_the_best_of_all_over_the_sequence(gain):
    pairs = scores(*gain)
    matched = metrics.match_per_sequence(pairs)
    best = reference.best_matching((pairs.j + pairs.f).mean(0))
    expected = sum((pairs.j + pairs.f)[:, row, column].mean() for column, row in enumerate(best))
    assert (matched.j + matched.f).mean(0).sum() == pytest.approx(expected)


@given(gains())
def test_the_published_matching_is_the_best_of_all_in_each_frame(gain):
    pairs = scores(*gain)
    matched = metrics.match_per_frame(pairs)
    for t, frame in enumerate(pairs.j + pairs.f):
        best = reference.best_matching(frame)
        expected = sum(frame[row, column] for column, row in enumerate(best))
        assert (matched.j + matched.f)[t].sum() == pytest.approx(expected)


@given(gains())
def test_matching_per_frame_never_scores_less_than_once_per_sequence(gain):
    pairs = scores(*gain)
    per_frame, per_sequence = metrics.match_per_frame(pairs), metrics.match_per_sequence(pairs)
    assert (per_frame.j + per_frame.f).sum() >= (per_sequence.j + per_sequence.f).sum() - 1e-9


def test_ids_that_swap_half_way_cost_half_under_the_official_protocol_and_nothing_per_frame():
    truth = np.zeros((4, 24, 24), dtype=np.int16)
    truth[:, 2:10, 2:10], truth[:, 14:22, 14:22] = 1, 2
    prediction = truth.astype(np.uint16)
    prediction[2:][truth[2:] > 0] = 3 - truth[2:][truth[2:] > 0]
    ids = np.array([1, 2])
    pairs = metrics.pair_scores(prediction, truth, ids, ids)
    assert metrics.match_per_sequence(pairs).j.mean() == 0.5
    assert metrics.match_per_frame(pairs).j.mean() == 1
    assert metrics.foreground_ari(prediction, truth) < 0.5
    assert metrics.foreground_ari(prediction[0], truth[0]) == 1
    np.testing.assert_allclose(metrics.matched_iou(prediction, truth), [1 / 3, 1 / 3])


def test_an_object_without_a_proposal_scores_nothing_unless_it_is_absent():
    truth = np.zeros((2, 12, 12), dtype=np.int16)
    truth[0, :6, :6], truth[:, 6:, 6:] = 1, 2
    prediction = np.where(truth == 2, 1, 0).astype(np.uint16)
    objects = np.array([1, 2])
    proposals = metrics.at_least(metrics.object_ids(prediction), len(objects))
    matched = metrics.match_per_sequence(metrics.pair_scores(prediction, truth, proposals, objects))
    np.testing.assert_array_equal(matched.j, [[0, 1], [1, 1]])
    np.testing.assert_array_equal(matched.f, [[0, 1], [1, 1]])


@given(label_maps(3), label_maps(3, low=-1))
def test_fg_ari_is_the_adjusted_rand_index_of_the_foreground(prediction, truth):
    inside = truth > 0
    if inside.any():
        expected = reference.adjusted_rand_index(prediction[inside], truth[inside])
        assert metrics.foreground_ari(prediction, truth) == pytest.approx(expected, abs=1e-9)
    else:
        assert math.isnan(metrics.foreground_ari(prediction, truth))


@given(label_maps(3), label_maps(3), st.permutations([1, 2, 3]))
def test_scores_do_not_depend_on_the_names_of_ids(prediction, truth, names):
    renamed = np.array([0, *names])[prediction]
    assert metrics.foreground_ari(prediction, truth) == pytest.approx(
        metrics.foreground_ari(renamed, truth), nan_ok=True
    )
    np.testing.assert_allclose(metrics.matched_iou(prediction, truth).sum(), metrics.matched_iou(renamed, truth).sum())


@given(label_maps(4), label_maps(3))
def test_matched_iou_is_the_best_of_all_matchings(prediction, truth):
    objects = [g for g in (1, 2, 3) if (truth == g).any()]
    iou = np.array([[reference.jaccard(prediction == p, truth == g) for g in objects] for p in range(1, 5)])
    iou = iou.reshape(4, len(objects))
    best = sum(iou[row, column] for column, row in enumerate(reference.best_matching(iou)))
    assert metrics.matched_iou(prediction, truth).sum() == pytest.approx(best)


def test_degenerate_answers_score_low():
    truth = np.zeros((24, 24), dtype=np.int16)
    truth[2:10, 2:10], truth[14:22, 14:22] = 1, 2
    everything, nothing = np.ones_like(truth), np.zeros_like(truth)
    assert metrics.foreground_ari(everything, truth) == 0
    assert metrics.foreground_ari(nothing, truth) == 0
    assert metrics.matched_iou(everything, truth).mean() < 0.06
    assert metrics.matched_iou(nothing, truth).mean() == 0


def test_the_largest_proposals_are_kept():
    labels = np.repeat(np.arange(6, dtype=np.uint16), [50, 1, 5, 2, 4, 3]).reshape(5, 13)
    np.testing.assert_array_equal(metrics.largest(labels, 3), [2, 4, 5])
    np.testing.assert_array_equal(metrics.largest(labels, 20), [1, 2, 3, 4, 5])


@given(arrays.arrays(st.sampled_from([np.uint8, np.int16, np.uint16, np.int32]), (4, 5), elements=st.integers(0, 99)))
def test_object_ids_are_the_positive_labels(labels):
    np.testing.assert_array_equal(metrics.object_ids(labels), sorted(set(labels.ravel().tolist()) - {0}))


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data")
def test_j_and_f_agree_with_the_official_code_on_published_masks():
    def mask(folder, row):
        return np.array(Image.open(DATA / folder / row["sequence"] / f"{row['frame']}.png")) > 0

    with (DATA / "official_per_frame.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 120
    one = np.array([1])
    for row in itertools.islice(rows, 0, None, 3):
        prediction, truth = mask(row["method"], row).astype(np.uint8), mask("ground-truth", row).astype(np.int16)
        assert metrics.intersection_over_union(prediction, truth, one, one)[0, 0] == pytest.approx(
            float(row["J"]), abs=1e-6
        )
        assert metrics.boundary_f(prediction, truth, one, one)[0, 0] == pytest.approx(float(row["F"]), abs=1e-6)
