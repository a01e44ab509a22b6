"""Clusters become objects by rules that hold for every assignment, and label maps that the slow twin confirms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.worker import reference
from uvos.contract import Background, Edges, Mode
from worker.method import masks
from worker.method.masks import Decision, as_drawn, decide, frame_labels
from worker.video.clip import PatchGrid


def all_clusters(count: int) -> Decision:
    """Every cluster an object of its own: cluster 0 is object 1."""
    return decide(np.arange(count).reshape(1, 1, count), count, background=Background.keep)


@st.composite
def assignments(draw, min_clusters: int = 1):
    clusters = draw(st.integers(min_clusters, 6))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)))
    return draw(npst.arrays(np.int64, shape, elements=st.integers(0, clusters - 1))), clusters


@st.composite
def measured_videos(draw):
    """Distances of every frame and the assignment that follows from them."""
    length, height, width, clusters = (draw(st.integers(1, 4)) for _ in range(4))
    distances = draw(npst.arrays(np.float32, (length, height * width, clusters), elements=st.floats(0, 4, width=16)))
    return distances, distances.argmin(2).reshape(length, height, width)


@st.composite
def frames(draw, whole_numbers: bool = False):
    """Distances of one frame, the grid, and a size in pixels: larger or smaller than the grid."""
    height, width, clusters = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    size = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    elements = st.integers(0, 3) if whole_numbers else st.floats(0, 10, width=16)
    distances = draw(npst.arrays(np.float16, (height * width, clusters), elements=elements))
    return distances, PatchGrid(height, width), size


# --- label maps


@given(frames())
@settings(max_examples=100, deadline=None)
def test_smooth_labels_match_the_definition(frame):
    distances, grid, size = frame
    decision = all_clusters(distances.shape[1])
    labels = frame_labels(distances, grid, size=size, decision=decision).astype(int)

    exact = reference.interpolated_distances(distances, grid.height, grid.width, size)
    present = np.unique(distances.argmin(1))
    chosen = np.take_along_axis(exact, labels[None] - 1, axis=0)[0]
    assert np.isin(labels - 1, present).all()
    np.testing.assert_allclose(chosen, exact[present].min(0), atol=1e-5)  # float32 decides only between equals


@given(frames(whole_numbers=True))
@settings(max_examples=100, deadline=None)
def test_smooth_labels_match_the_definition_where_many_distances_are_equal(frame):
    distances, grid, size = frame
    labels = frame_labels(distances, grid, size=size, decision=all_clusters(distances.shape[1])).astype(int)
    exact = reference.interpolated_distances(distances, grid.height, grid.width, size)
    chosen = np.take_along_axis(exact, labels[None] - 1, axis=0)[0]
    np.testing.assert_allclose(chosen, exact[np.unique(distances.argmin(1))].min(0), atol=1e-5)


@given(frames(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_smooth_labels_do_not_see_a_constant_added_to_a_token(frame, seed):
    distances, grid, size = frame
    decision = all_clusters(distances.shape[1])
    shift = np.random.default_rng(seed).integers(0, 8, (len(distances), 1))
    shifted = frame_labels(distances.astype(np.float64) + shift, grid, size=size, decision=decision).astype(int)
    exact = reference.interpolated_distances(distances, grid.height, grid.width, size)
    chosen = np.take_along_axis(exact, shifted[None] - 1, axis=0)[0]
    np.testing.assert_allclose(chosen, exact[np.unique(distances.argmin(1))].min(0), atol=1e-4)


@given(frames())
@settings(deadline=None)
def test_patch_labels_repeat_the_patch(frame):
    distances, grid, size = frame
    decision = all_clusters(distances.shape[1])
    labels = frame_labels(distances, grid, size=size, decision=decision, edges=Edges.patch)
    nearest = distances.argmin(1) + 1
    np.testing.assert_array_equal(labels, reference.nearest_patch(nearest, grid.height, grid.width, size))


@pytest.mark.parametrize("edges", Edges)
def test_a_pixel_per_patch_is_the_assignment_itself(edges):
    distances = np.random.default_rng(0).random((6 * 5, 4))
    labels = frame_labels(distances, PatchGrid(6, 5), size=(6, 5), decision=all_clusters(4), edges=edges)
    np.testing.assert_array_equal(labels, distances.argmin(1).reshape(6, 5) + 1)


def test_smooth_edges_cross_where_the_distances_do():
    distances = np.array([[0.0, 3.0], [1.0, 0.0]])  # one row of two patches; equal at 3/4 of the way
    labels = frame_labels(distances, PatchGrid(1, 2), size=(1, 32), decision=all_clusters(2))
    assert labels[0].tolist() == [1] * 20 + [2] * 12  # patch centres at 8 and 24


def test_a_cluster_may_win_between_patches_that_are_nearer_to_others():
    distances = np.array([[0.0, 1.0, 9.0], [9.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    labels = frame_labels(distances, PatchGrid(1, 3), size=(1, 96), decision=all_clusters(3))
    assert labels[0, 32] == 2  # halfway between the first two patches


def test_a_cluster_that_is_nearest_to_no_patch_of_the_frame_does_not_compete():
    distances = np.array([[0.0, 1.0, 9.0], [9.0, 1.0, 0.0]])
    labels = frame_labels(distances, PatchGrid(1, 2), size=(1, 64), decision=all_clusters(3))
    assert set(labels.ravel().tolist()) == {1, 3}


def test_distances_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="distances"):
        frame_labels(np.zeros((5, 2)), PatchGrid(2, 2), size=(4, 4), decision=all_clusters(2))


# --- what becomes of a cluster


@st.composite
def energies(draw, shape):
    """Nothing, everything, or each token as it likes: moving tokens are few values, so that clusters may tie."""
    return draw(npst.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.1, 0.5, 1.0])))


@given(assignments(min_clusters=2), st.sampled_from(Mode), st.sampled_from(Background), st.data())
@settings(deadline=None)
def test_an_answer_is_never_degenerate(video, mode, background, data):
    assignment, clusters = video
    motion = data.draw(st.none() | energies(assignment.shape))
    decision = decide(assignment, clusters, mode=mode, background=background, motion=motion)
    labels = decision.object_of[assignment]
    assert labels.any()
    if len(np.unique(assignment)) > 1 and (mode is Mode.single or background is Background.auto):
        assert (labels == 0).any()
    if mode is Mode.single:
        assert labels.max() == 1


@pytest.mark.parametrize(("limit", "moving", "join"), [(-1.0, -1.0, 0.0), (0.3, 0.05, 0.5), (1.0, 2.0, 0.9)])
@given(video=assignments(min_clusters=2), mode=st.sampled_from(Mode), data=st.data())
@settings(deadline=None, max_examples=50)
def test_no_choice_of_the_constants_makes_an_answer_degenerate(limit, moving, join, video, mode, data):
    assignment, clusters = video
    motion = data.draw(st.none() | energies(assignment.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "BACKGROUND_SCORE", limit)
        patch.setattr(masks, "SINGLE_MOVING", moving)
        patch.setattr(masks, "SINGLE_JOIN", join)
        labels = decide(assignment, clusters, mode=mode, motion=motion).object_of[assignment]
    assert labels.any()
    assert (labels == 0).any() == (len(np.unique(assignment)) > 1)


@given(assignments(), st.sampled_from(Mode), st.sampled_from(Background))
@settings(deadline=None)
def test_objects_are_what_the_label_maps_show(video, mode, background):
    assignment, clusters = video
    decision = decide(assignment, clusters, mode=mode, background=background)
    labels = decision.object_of[assignment]
    assert [each.id for each in decision.objects] == sorted(set(labels.ravel().tolist()) - {0})
    assert decision.background_clusters == len(set(assignment[labels == 0].tolist()))
    for each in decision.objects:
        seen = np.flatnonzero((labels == each.id).any((1, 2)))
        assert (each.first_frame, each.last_frame, each.frames) == (seen[0], seen[-1], len(seen))
        assert each.area == pytest.approx((labels[seen] == each.id).mean())
        assert 0 <= each.background_score <= 1


@given(assignments())
@settings(deadline=None)
def test_ids_follow_first_appearance_and_then_area(video):
    decision = decide(*video)
    keys = [(each.first_frame, -each.area) for each in decision.objects]
    assert keys == sorted(keys)
    assert [each.id for each in decision.objects] == list(range(1, len(keys) + 1))


@given(assignments(min_clusters=2))
@settings(deadline=None)
def test_background_holds_more_of_the_border_than_its_area_warrants(video):
    assignment, clusters = video
    labels = decide(assignment, clusters).object_of[assignment]
    border = np.ones(assignment.shape[1:], bool)
    border[1:-1, 1:-1] = False
    excess = {c: np.mean(assignment[:, border] == c) - np.mean(assignment == c) for c in np.unique(assignment)}
    background = {c for c in excess if (labels[assignment == c] == 0).all()}
    if max(excess.values()) > 1e-12:
        assert background == {c for c in excess if excess[c] > 1e-12}


def test_a_surrounded_object_is_told_from_its_background_and_kept_on_request():
    assignment = np.zeros((3, 8, 8), int)
    assignment[:, 3:5, 2:5] = 1
    told = decide(assignment, 2)
    assert told.object_of.tolist() == [0, 1]
    assert told.background_clusters == 1
    kept = decide(assignment, 2, background=Background.keep)
    assert kept.object_of.tolist() == [1, 2]  # the larger first
    assert kept.objects[0].background_score > 0.5 > kept.objects[1].background_score


def test_a_video_of_one_cluster_is_one_object():
    for mode in Mode:
        assert decide(np.zeros((2, 4, 4), int), 1, mode=mode).object_of.tolist() == [1]


def test_the_main_object_is_central_persistent_and_no_speck():
    assignment = np.zeros((4, 12, 12), int)
    assignment[:, 4:8, 4:8] = 1  # the one
    assignment[0, 4:8, 4:8] = 2  # as central, seen once
    assignment[:, 6, 6] = 3  # a speck in its middle
    assignment[:, 9:11, 9:11] = 4  # aside
    assert decide(assignment, 5, mode=Mode.single).object_of.tolist() == [0, 1, 0, 0, 0]


def still_and_moving():
    """A frame of background, a thing that rests, one that moves, and a moving strip along the border."""
    assignment = np.zeros((4, 12, 12), int)
    assignment[:, 4:9, 4:7] = 1
    assignment[:, 3:6, 8:10] = 2
    assignment[:, 4:8, 11:] = 3
    return assignment, np.isin(assignment, (2, 3)).astype(np.float32) * 0.8


def test_an_object_may_rest_beside_one_that_moves():
    assignment, motion = still_and_moving()
    for known in (None, motion):
        assert decide(assignment, 4, motion=known).object_of.astype(bool).tolist() == [False, True, True, False]
    assert decide(assignment, 4, motion=motion, background=Background.keep).object_of.all()


def test_where_nothing_moves_for_certain_motion_decides_nothing():
    assignment, motion = still_and_moving()
    for mode in Mode:
        without = decide(assignment, 4, mode=mode)
        for quiet in (np.zeros_like(motion), 0.05 * motion):
            np.testing.assert_array_equal(decide(assignment, 4, mode=mode, motion=quiet).object_of, without.object_of)


def test_the_main_object_moves():
    assignment, motion = still_and_moving()
    assert decide(assignment, 4, mode=Mode.single).object_of.tolist() == [0, 1, 0, 0]
    assert decide(assignment, 4, mode=Mode.single, motion=motion).object_of.tolist() == [0, 0, 1, 0]


def test_moving_parts_of_the_main_object_join_it_and_resting_ones_do_not():
    assignment, motion = still_and_moving()
    assignment[:, 6:8, 8:10] = 4  # below the moving thing, nearly as large
    for energy, expected in ((0.7, [0, 0, 1, 0, 1]), (0.2, [0, 0, 1, 0, 0])):
        motion[assignment == 4] = energy
        assert decide(assignment, 5, mode=Mode.single, motion=motion).object_of.tolist() == expected
    assert decide(assignment, 5, mode=Mode.single).object_of.sum() == 1


def test_motion_of_other_tokens_is_refused():
    with pytest.raises(ValueError, match="motion of each token"):
        decide(np.zeros((2, 4, 4), int), 1, motion=np.zeros((2, 4, 5), np.float32))


@given(measured_videos(), st.data())
def test_merged_tokens_take_their_motion_along(video, data):
    """Dropping clusters and deciding says what deciding on the merged assignment says."""
    distances, assignment = video
    motion = data.draw(energies(assignment.shape))
    clusters = distances.shape[2]
    once = decide(assignment, clusters, min_area=0.3, distances=distances, motion=motion)
    kept = np.where(np.isin(np.arange(clusters), once.merged), np.inf, distances)
    kept[:, :, ~once.competes] = np.inf
    merged = kept.argmin(2).reshape(assignment.shape)
    again = decide(merged, clusters, motion=motion)
    np.testing.assert_array_equal(once.object_of[merged] > 0, again.object_of[merged] > 0)


# --- min_area


@given(measured_videos(), st.floats(0.01, 0.9))
@settings(deadline=None)
def test_no_object_is_smaller_than_min_area_but_the_last(video, min_area):
    distances, assignment = video
    decision = decide(assignment, distances.shape[2], min_area=min_area, distances=distances)
    if decision.competes.sum() > 1:
        assert all(each.area >= min_area for each in decision.objects)
    assert not decision.competes[list(decision.merged)].any()
    assert not decision.object_of[list(decision.merged)].any()


@given(measured_videos(), st.floats(0.01, 0.9))
@settings(deadline=None)
def test_tokens_of_dropped_clusters_go_to_their_nearest_remaining_cluster(video, min_area):
    distances, assignment = video
    length, height, width = assignment.shape
    decision = decide(
        assignment, distances.shape[2], background=Background.keep, min_area=min_area, distances=distances
    )
    left = np.flatnonzero(decision.competes)
    expected = decision.object_of[left[distances[:, :, left].argmin(2)]].reshape(assignment.shape)
    for t in range(length):
        labels = frame_labels(
            distances[t], PatchGrid(height, width), size=(height, width), decision=decision, edges=Edges.patch
        )
        np.testing.assert_array_equal(labels, expected[t])
    assert sum(each.area * each.frames for each in decision.objects) == pytest.approx(length)


def test_min_area_needs_the_distances():
    with pytest.raises(ValueError, match="distances"):
        decide(np.zeros((1, 2, 2), int), 1, min_area=0.1)


@pytest.mark.parametrize("assignment", [np.zeros((0, 2, 2), int), np.zeros((2, 2), int), np.full((1, 2, 2), 3)])
def test_an_assignment_that_does_not_fit_is_refused(assignment):
    with pytest.raises(ValueError, match="expected"):
        decide(assignment, 3)


# --- objects as the files show them


@given(measured_videos(), st.tuples(st.integers(1, 30), st.integers(1, 30)), st.sampled_from(Edges))
@settings(deadline=None)
def test_objects_as_drawn_are_what_the_label_maps_show(video, size, edges):
    distances, assignment = video
    grid = PatchGrid(*assignment.shape[1:])
    decision = decide(assignment, distances.shape[2], background=Background.keep)

    def draw(decision):
        return np.stack([frame_labels(each, grid, size=size, decision=decision, edges=edges) for each in distances])

    before = draw(decision)
    labels = len(decision.objects) + 1
    decision = as_drawn(decision, np.stack([np.bincount(each.ravel(), minlength=labels) for each in before]))
    after = draw(decision)

    assert len(set(zip(before.ravel().tolist(), after.ravel().tolist(), strict=True))) == len(np.unique(before))
    assert [each.id for each in decision.objects] == np.unique(after[after > 0]).tolist()
    keys = []
    for each in decision.objects:
        seen = np.flatnonzero((after == each.id).any((1, 2)))
        assert (each.first_frame, each.last_frame, each.frames) == (seen[0], seen[-1], len(seen))
        assert each.area == pytest.approx((after[seen] == each.id).mean())
        keys.append((each.first_frame, -each.area))
    assert keys == sorted(keys)


def test_an_object_without_pixels_is_none():
    decision = decide(np.array([[[0, 1, 2]]]), 3, background=Background.keep)
    drawn = as_drawn(decision, np.array([[0, 5, 0, 9]]))
    assert drawn.object_of.tolist() == [2, 0, 1]
    assert [each.area for each in drawn.objects] == pytest.approx([9 / 14, 5 / 14])


def test_areas_of_other_labels_are_refused():
    with pytest.raises(ValueError, match="areas"):
        as_drawn(all_clusters(2), np.ones((1, 2), int))
