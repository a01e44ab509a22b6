import numpy as np
import pytest

from worker.evaluation.measures import (
    ONE_OBJECT,
    SEVERAL_OBJECTS,
    WITH_BOUNDARIES,
    Measure,
    Segmentation,
    measure_one_object,
    measure_several_objects,
)


def quarters(frames=4):
    """Four clusters, a quarter of the frame each."""
    labels = np.zeros((frames, 20, 40), dtype=np.uint16)
    labels[:, :10, :20], labels[:, :10, 20:], labels[:, 10:, :20], labels[:, 10:, 20:] = 1, 2, 3, 4
    return labels


def found(labels, *, main=frozenset({1}), objects=frozenset({1, 2})):
    return Segmentation(labels, main, objects, clusters=len(np.unique(labels)))


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
    one = measure_one_object(found(np.ones_like(quarters())), (truth == 1).astype(np.int32)).total
    assert one[Measure.best_cluster_j] == 0.25
    assert one[Measure.best_union_j] == 0
