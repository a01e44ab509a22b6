import numpy as np
import pytest

from worker.evaluation.measures import (
    WITH_BOUNDARIES,
    Measure,
    Segmentation,
    measure_one_object,
    measure_several_objects,
)
from worker.evaluation.metrics import boundary_f, intersection_over_union

ONE_OBJECT = (
    *(Measure.best_cluster_j, Measure.best_union_j, Measure.j_per_frame, Measure.single_j, Measure.single_f),
    *(Measure.single_j_inner, Measure.foreground_j, Measure.best_object_j, Measure.clusters),
)
SEVERAL_OBJECTS = (
    *(Measure.fg_ari, Measure.fg_ari_per_frame, Measure.miou, Measure.miou_per_frame),
    *(Measure.objects_fg_ari, Measure.objects_fg_ari_per_frame, Measure.objects_miou, Measure.clusters),
)


def quarters(frames=4):
    """Four clusters, a quarter of the frame each."""
    labels = np.zeros((frames, 20, 40), dtype=np.uint16)
    labels[:, :10, :20], labels[:, :10, 20:], labels[:, 10:, :20], labels[:, 10:, 20:] = 1, 2, 3, 4
    return labels


def found(labels, *, main=frozenset({1}), objects=frozenset({1, 2})):
    of_objects = np.where(np.isin(labels, sorted(objects)), labels, 0).astype(np.uint16)
    return Segmentation(labels, np.isin(labels, sorted(main)), of_objects, clusters=len(np.unique(labels)))


def test_the_best_cluster_is_one_for_the_whole_sequence_and_may_differ_in_each_frame():
    truth = np.zeros((4, 20, 40), dtype=np.int32)
    truth[:3, :10, :20], truth[3:, 10:, 20:] = 1, 1
    measured = measure_one_object(found(quarters()), truth).total
    assert measured[Measure.best_cluster_j] == 0.75
    assert measured[Measure.j_per_frame] == 1


def test_answers_without_ground_truth_do_not_know_it():
    truth = np.zeros((4, 20, 40), dtype=np.int32)
    truth[:, 10:, 20:] = 1
    measured = measure_one_object(found(quarters()), truth).total
    assert measured[Measure.best_cluster_j] == 1
    assert measured[Measure.single_j] == 0
    assert measured[Measure.foreground_j] == 0
    right = measure_one_object(found(quarters(), main=frozenset({4}), objects=frozenset({2, 4})), truth).total
    assert right[Measure.single_j] == 1
    assert right[Measure.single_f] == 1
    assert right[Measure.foreground_j] == 0.5


def test_the_best_union_is_all_clusters_that_lie_mostly_inside():
    truth = np.zeros((4, 20, 40), dtype=np.int32)
    truth[:, :, :22] = 1
    assert measure_one_object(found(quarters()), truth).total[Measure.best_union_j] == pytest.approx(20 / 22)


def test_the_benchmarks_frames_leave_out_the_first_and_the_last():
    truth = np.zeros((4, 20, 40), dtype=np.int32)
    truth[1:3, :10, :20] = 1
    truth[[0, 3], 10:, :20] = 1
    measured = measure_one_object(found(quarters()), truth).total
    assert measured[Measure.single_j] == 0.5
    assert measured[Measure.single_j_inner] == 1


def test_every_measure_of_one_object_is_there():
    truth = (quarters() == 1).astype(np.int32)
    measured = measure_one_object(found(quarters()), truth)
    assert set(measured.total) == set(ONE_OBJECT)
    assert all(len(values) == 4 for values in measured.per_frame.values())


@pytest.mark.parametrize("boundaries", [True, False])
def test_every_measure_of_several_objects_is_there(boundaries):
    truth = np.where(quarters() < 3, quarters(), 0).astype(np.int32)
    measured = measure_several_objects(found(quarters()), truth, boundaries=boundaries, last_frame_is_copied=False)
    assert set(measured.total) == {*SEVERAL_OBJECTS, *(WITH_BOUNDARIES if boundaries else ())}
    assert {value for measure, value in measured.total.items() if measure is not Measure.clusters} == {1}
    assert set(measured.per_object) == (set(WITH_BOUNDARIES) if boundaries else set())


def test_the_published_evaluation_repeats_the_masks_before_the_last_frame():
    labels = quarters()
    labels[-1] = np.roll(labels[-1], 5, axis=1)
    truth = np.where(labels < 3, labels, 0).astype(np.int32)
    for copied in (False, True):
        measured = measure_several_objects(found(labels), truth, boundaries=True, last_frame_is_copied=copied)
        assert measured.total[Measure.j_and_f] == 1
        values = measured.per_frame[Measure.j_and_f_per_frame]
        assert values[:3] == [1, 1, 1]
        assert (values[3] == 1) is not copied


def test_one_cluster_and_no_cluster_score_low():
    truth = np.where(quarters() < 3, quarters(), 0).astype(np.int32)
    everything = measure_several_objects(
        found(np.ones_like(quarters())), truth, boundaries=False, last_frame_is_copied=False
    ).total
    assert everything[Measure.fg_ari] == 0
    assert everything[Measure.miou] == pytest.approx(0.25 / 2)
    assert everything[Measure.objects_fg_ari] == 0
    two = measure_several_objects(found(quarters()), truth, boundaries=False, last_frame_is_copied=False).total
    assert two[Measure.objects_fg_ari] == two[Measure.objects_fg_ari_per_frame] == two[Measure.objects_miou] == 1
    one = measure_one_object(found(np.ones_like(quarters())), (truth == 1).astype(np.int32)).total
    assert one[Measure.best_cluster_j] == 0.25
    assert one[Measure.best_union_j] == 0


def test_measures_equal_those_of_the_metrics_on_masks():
    """The slow twin builds the mask of every set of clusters, void pixels among them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (5, 20, 40)).astype(np.uint16)
    truth = rng.integers(-1, 2, (5, 20, 40)).astype(np.int32)
    truth[4] = 0
    segmentation = found(labels, main=frozenset({2, 5}), objects=frozenset({1, 2, 4}))
    done = []
    measured = measure_one_object(segmentation, truth, on_frame=done.append)
    the_object = np.array([1])

    def j(ids, t):
        return intersection_over_union(np.isin(labels[t], ids).astype(np.uint8), truth[t], the_object, the_object)[0, 0]

    each = np.array([[j([cluster], t) for cluster in range(1, 6)] for t in range(5)])
    judged = truth != -1
    inside = [c for c in range(1, 6) if 2 * (truth[(labels == c) & judged] == 1).sum() > ((labels == c) & judged).sum()]
    expected = {
        Measure.best_cluster_j: each[:, each.mean(0).argmax()],
        Measure.best_union_j: [j(inside, t) for t in range(5)],
        Measure.j_per_frame: each.max(1),
        Measure.single_j: [j([2, 5], t) for t in range(5)],
        Measure.foreground_j: [j([1, 2, 4], t) for t in range(5)],
        Measure.best_object_j: max(([j([c], t) for t in range(5)] for c in (1, 2, 4)), key=np.mean),
        Measure.single_f: [
            boundary_f(np.isin(labels[t], [2, 5]).astype(np.uint8), truth[t], the_object, the_object)[0, 0]
            for t in range(5)
        ],
    }
    for measure, values in expected.items():
        np.testing.assert_allclose(measured.per_frame[measure], values, err_msg=measure)
    assert done == [1, 2, 3, 4, 5]
