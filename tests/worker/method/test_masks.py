"""Object rules hold for every assignment; label maps are compared with a slow reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.worker import reference
from uvos.contract import Background, Edges, Mode
from worker.method import foreground
from worker.method.edges import draw_label_map
from worker.method.masks import ObjectDecision, decide_objects, renumber_as_drawn, without_whole_frame
from worker.video.clip import PatchGrid


def all_clusters(count: int) -> ObjectDecision:
    """Every cluster is an object: cluster 0 is object 1."""
    return decide_objects(np.arange(count).reshape(1, 1, count), count, background=Background.keep)


@st.composite
def assignments(draw, min_clusters: int = 1):
    clusters = draw(st.integers(min_clusters, 6))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)))
    return draw(npst.arrays(np.int64, shape, elements=st.integers(0, clusters - 1))), clusters


@st.composite
def measured_videos(draw):
    """Distances of every frame and the assignment derived from them."""
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
    labels = draw_label_map(distances, grid, size=size, decision=decision).astype(int)

    exact = reference.interpolated_distances(distances, grid.height, grid.width, size)
    present = np.unique(distances.argmin(1))
    chosen = np.take_along_axis(exact, labels[None] - 1, axis=0)[0]
    assert np.isin(labels - 1, present).all()
    np.testing.assert_allclose(chosen, exact[present].min(0), atol=1e-5)  # only ties may differ in float32


@given(frames(whole_numbers=True))
@settings(max_examples=100, deadline=None)
def test_smooth_labels_match_the_definition_with_many_equal_distances(frame):
    distances, grid, size = frame
    labels = draw_label_map(distances, grid, size=size, decision=all_clusters(distances.shape[1])).astype(int)
    exact = reference.interpolated_distances(distances, grid.height, grid.width, size)
    chosen = np.take_along_axis(exact, labels[None] - 1, axis=0)[0]
    np.testing.assert_allclose(chosen, exact[np.unique(distances.argmin(1))].min(0), atol=1e-5)


@given(frames(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_smooth_labels_do_not_depend_on_a_constant_added_to_a_token(frame, seed):
    distances, grid, size = frame
    decision = all_clusters(distances.shape[1])
    shift = np.random.default_rng(seed).integers(0, 8, (len(distances), 1))
    shifted = draw_label_map(distances.astype(np.float64) + shift, grid, size=size, decision=decision).astype(int)
    exact = reference.interpolated_distances(distances, grid.height, grid.width, size)
    chosen = np.take_along_axis(exact, shifted[None] - 1, axis=0)[0]
    np.testing.assert_allclose(chosen, exact[np.unique(distances.argmin(1))].min(0), atol=1e-4)


@given(frames())
@settings(deadline=None)
def test_patch_labels_repeat_the_patch(frame):
    distances, grid, size = frame
    decision = all_clusters(distances.shape[1])
    labels = draw_label_map(distances, grid, size=size, decision=decision, edges=Edges.patch)
    nearest = distances.argmin(1) + 1
    np.testing.assert_array_equal(labels, reference.nearest_patch(nearest, grid.height, grid.width, size))


@pytest.mark.parametrize("edges", [Edges.smooth, Edges.patch])
def test_a_pixel_per_patch_is_the_assignment_itself(edges):
    distances = np.random.default_rng(0).random((6 * 5, 4))
    labels = draw_label_map(distances, PatchGrid(6, 5), size=(6, 5), decision=all_clusters(4), edges=edges)
    np.testing.assert_array_equal(labels, distances.argmin(1).reshape(6, 5) + 1)


def test_smooth_edges_cross_where_the_distances_do():
    distances = np.array([[0.0, 3.0], [1.0, 0.0]])  # one row of two patches; equal at 3/4 of the way
    labels = draw_label_map(distances, PatchGrid(1, 2), size=(1, 32), decision=all_clusters(2))
    assert labels[0].tolist() == [1] * 20 + [2] * 12  # patch centres at 8 and 24


def test_a_cluster_can_win_between_patches_that_are_nearer_to_others():
    distances = np.array([[0.0, 1.0, 9.0], [9.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    labels = draw_label_map(distances, PatchGrid(1, 3), size=(1, 96), decision=all_clusters(3))
    assert labels[0, 32] == 2  # halfway between the first two patches


def test_a_cluster_that_is_nearest_to_no_patch_of_the_frame_gets_no_pixels():
    distances = np.array([[0.0, 1.0, 9.0], [9.0, 1.0, 0.0]])
    labels = draw_label_map(distances, PatchGrid(1, 2), size=(1, 64), decision=all_clusters(3))
    assert set(labels.ravel().tolist()) == {1, 3}


def test_distances_of_another_grid_are_rejected():
    with pytest.raises(ValueError, match="distances"):
        draw_label_map(np.zeros((5, 2)), PatchGrid(2, 2), size=(4, 4), decision=all_clusters(2))


# --- the role of each cluster


@st.composite
def energies(draw, shape):
    """Motion energy of few distinct values, so that clusters can tie."""
    return draw(npst.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.1, 0.5, 1.0])))


@given(assignments(min_clusters=2), st.sampled_from(Mode), st.sampled_from(Background), st.data())
@settings(deadline=None)
def test_a_result_is_never_degenerate(video, mode, background, data):
    assignment, clusters = video
    motion = data.draw(st.none() | energies(assignment.shape))
    decision = decide_objects(assignment, clusters, mode=mode, background=background, motion=motion)
    labels = decision.object_ids[assignment]
    separates_background = mode is Mode.single or background is Background.auto
    assert labels.any() == (len(np.unique(assignment)) > 1 or not separates_background)
    assert (labels == 0).any() == separates_background
    if mode is Mode.single:
        assert labels.max() <= 1


@pytest.mark.parametrize(("limit", "moving", "join"), [(-1.0, -1.0, 0.0), (0.3, 0.05, 0.5), (1.0, 2.0, 0.9)])
@given(video=assignments(min_clusters=2), mode=st.sampled_from(Mode), data=st.data())
@settings(deadline=None, max_examples=50)
def test_no_choice_of_the_constants_makes_a_result_degenerate(limit, moving, join, video, mode, data):
    assignment, clusters = video
    motion = data.draw(st.none() | energies(assignment.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreground, "BACKGROUND_SCORE", limit)
        patch.setattr(foreground, "MOVING_ENERGY", moving)
        patch.setattr(foreground, "JOIN_SCORE", join)
        labels = decide_objects(assignment, clusters, mode=mode, motion=motion).object_ids[assignment]
    assert labels.any() == (len(np.unique(assignment)) > 1)
    assert (labels == 0).any()


@given(assignments(), st.sampled_from(Mode), st.sampled_from(Background))
@settings(deadline=None)
def test_objects_agree_with_the_label_maps(video, mode, background):
    assignment, clusters = video
    decision = decide_objects(assignment, clusters, mode=mode, background=background)
    labels = decision.object_ids[assignment]
    assert [video_object.id for video_object in decision.objects] == sorted(set(labels.ravel().tolist()) - {0})
    assert decision.background_clusters == len(set(assignment[labels == 0].tolist()))
    for video_object in decision.objects:
        seen = np.flatnonzero((labels == video_object.id).any((1, 2)))
        assert (video_object.first_frame, video_object.last_frame, video_object.frames) == (
            seen[0],
            seen[-1],
            len(seen),
        )
        assert video_object.area == pytest.approx((labels[seen] == video_object.id).mean())
        assert 0 <= video_object.background_score <= 1


@given(assignments())
@settings(deadline=None)
def test_ids_follow_first_appearance_and_then_area(video):
    decision = decide_objects(*video)
    keys = [(video_object.first_frame, -video_object.area) for video_object in decision.objects]
    assert keys == sorted(keys)
    assert [video_object.id for video_object in decision.objects] == list(range(1, len(keys) + 1))


@given(assignments(min_clusters=2))
@settings(deadline=None)
def test_the_border_share_of_background_exceeds_its_area_share(video):
    assignment, clusters = video
    labels = decide_objects(assignment, clusters).object_ids[assignment]
    border = np.ones(assignment.shape[1:], bool)
    border[1:-1, 1:-1] = False
    excess = {c: np.mean(assignment[:, border] == c) - np.mean(assignment == c) for c in np.unique(assignment)}
    background = {c for c in excess if (labels[assignment == c] == 0).all()}
    if max(excess.values()) > 1e-12:
        assert background == {c for c in excess if excess[c] > 1e-12}


def test_a_surrounded_object_is_separated_from_background_that_is_kept_on_request():
    assignment = np.zeros((3, 8, 8), int)
    assignment[:, 3:5, 2:5] = 1
    decision = decide_objects(assignment, 2)
    assert decision.object_ids.tolist() == [0, 1]
    assert decision.background_clusters == 1
    with_background = decide_objects(assignment, 2, background=Background.keep)
    assert with_background.object_ids.tolist() == [1, 2]  # the larger first
    assert with_background.objects[0].background_score > 0.5 > with_background.objects[1].background_score


def test_a_video_of_one_cluster_has_no_object_unless_background_is_kept():
    assignment = np.zeros((2, 4, 4), int)
    for mode in Mode:
        decision = decide_objects(assignment, 1, mode=mode)
        assert decision.object_ids.tolist() == [0]
        assert decision.objects == ()
    assert decide_objects(assignment, 1, background=Background.keep).object_ids.tolist() == [1]


@pytest.mark.parametrize(("rows_outside", "is_object"), [(0, False), (1, False), (2, True)])
def test_an_object_of_nearly_the_whole_frame_becomes_background(rows_outside, is_object):
    assignment = np.ones((3, 40, 8), int)
    assignment[:, :rows_outside] = 0
    decision = decide_objects(assignment, 2, is_background=np.array([True, False]))
    assert decision.objects
    kept = without_whole_frame(decision)
    assert bool(kept.objects) == bool(kept.object_ids.any()) == is_object
    assert kept.nothing_stands_apart != is_object
    assert kept.background_clusters == (1 if is_object else kept.is_candidate.sum())


def test_known_background_replaces_the_rules():
    assignment = np.zeros((3, 8, 8), int)
    assignment[:, 3:5, 2:5] = 1
    for mode in Mode:
        decision = decide_objects(assignment, 2, mode=mode, is_background=np.array([False, True]))
        assert decision.object_ids.tolist() == [1, 0]


def test_the_main_object_is_central_persistent_and_no_speck():
    assignment = np.zeros((4, 12, 12), int)
    assignment[:, 4:8, 4:8] = 1  # the main object
    assignment[0, 4:8, 4:8] = 2  # as central, in one frame only
    assignment[:, 6, 6] = 3  # a speck in its middle
    assignment[:, 9:11, 9:11] = 4  # off centre
    assert decide_objects(assignment, 5, mode=Mode.single).object_ids.tolist() == [0, 1, 0, 0, 0]


def static_and_moving():
    """Background, a static object (1), a moving one (2), and a moving strip along the border (3)."""
    assignment = np.zeros((4, 12, 12), int)
    assignment[:, 4:9, 4:7] = 1
    assignment[:, 3:6, 8:10] = 2
    assignment[:, 4:8, 11:] = 3
    return assignment, np.isin(assignment, (2, 3)).astype(np.float32) * 0.8


def test_a_static_object_stays_an_object_beside_a_moving_one():
    assignment, motion = static_and_moving()
    for energy in (None, motion):
        assert decide_objects(assignment, 4, motion=energy).object_ids.astype(bool).tolist() == [
            False,
            True,
            True,
            False,
        ]
    assert decide_objects(assignment, 4, motion=motion, background=Background.keep).object_ids.all()


def test_motion_has_no_effect_below_its_threshold():
    assignment, motion = static_and_moving()
    for mode in Mode:
        without = decide_objects(assignment, 4, mode=mode)
        for quiet in (np.zeros_like(motion), 0.05 * motion):
            np.testing.assert_array_equal(
                decide_objects(assignment, 4, mode=mode, motion=quiet).object_ids, without.object_ids
            )


def test_the_main_object_moves():
    assignment, motion = static_and_moving()
    assert decide_objects(assignment, 4, mode=Mode.single).object_ids.tolist() == [0, 1, 0, 0]
    assert decide_objects(assignment, 4, mode=Mode.single, motion=motion).object_ids.tolist() == [0, 0, 1, 0]


def test_moving_parts_join_the_main_object_and_static_ones_do_not():
    assignment, motion = static_and_moving()
    assignment[:, 6:8, 8:10] = 4  # below the moving object, nearly as large
    for energy, expected in ((0.7, [0, 0, 1, 0, 1]), (0.2, [0, 0, 1, 0, 0])):
        motion[assignment == 4] = energy
        assert decide_objects(assignment, 5, mode=Mode.single, motion=motion).object_ids.tolist() == expected
    assert decide_objects(assignment, 5, mode=Mode.single).object_ids.sum() == 1


def test_motion_of_another_shape_is_rejected():
    with pytest.raises(ValueError, match="motion of each token"):
        decide_objects(np.zeros((2, 4, 4), int), 1, motion=np.zeros((2, 4, 5), np.float32))


@given(measured_videos(), st.data())
def test_merged_tokens_keep_their_motion(video, data):
    """`min_area` gives the same result as deciding on an assignment that was merged before."""
    distances, assignment = video
    motion = data.draw(energies(assignment.shape))
    clusters = distances.shape[2]
    direct = decide_objects(assignment, clusters, min_area=0.3, distances=distances, motion=motion)
    remaining = np.where(np.isin(np.arange(clusters), direct.merged_clusters), np.inf, distances)
    remaining[:, :, ~direct.is_candidate] = np.inf
    merged = remaining.argmin(2).reshape(assignment.shape)
    premerged = decide_objects(merged, clusters, motion=motion)
    np.testing.assert_array_equal(direct.object_ids[merged] > 0, premerged.object_ids[merged] > 0)


# --- min_area


@given(measured_videos(), st.floats(0.01, 0.9))
@settings(deadline=None)
def test_no_object_is_smaller_than_min_area_except_a_single_one(video, min_area):
    distances, assignment = video
    decision = decide_objects(assignment, distances.shape[2], min_area=min_area, distances=distances)
    if decision.is_candidate.sum() > 1:
        assert all(video_object.area >= min_area for video_object in decision.objects)
    assert not decision.is_candidate[list(decision.merged_clusters)].any()
    assert not decision.object_ids[list(decision.merged_clusters)].any()


@given(measured_videos(), st.floats(0.01, 0.9))
@settings(deadline=None)
def test_tokens_of_dropped_clusters_go_to_their_nearest_remaining_cluster(video, min_area):
    distances, assignment = video
    length, height, width = assignment.shape
    decision = decide_objects(
        assignment, distances.shape[2], background=Background.keep, min_area=min_area, distances=distances
    )
    remaining = np.flatnonzero(decision.is_candidate)
    expected = decision.object_ids[remaining[distances[:, :, remaining].argmin(2)]].reshape(assignment.shape)
    for t in range(length):
        labels = draw_label_map(
            distances[t], PatchGrid(height, width), size=(height, width), decision=decision, edges=Edges.patch
        )
        np.testing.assert_array_equal(labels, expected[t])
    assert sum(video_object.area * video_object.frames for video_object in decision.objects) == pytest.approx(length)


def test_min_area_requires_distances():
    with pytest.raises(ValueError, match="distances"):
        decide_objects(np.zeros((1, 2, 2), int), 1, min_area=0.1)


@pytest.mark.parametrize("assignment", [np.zeros((0, 2, 2), int), np.zeros((2, 2), int), np.full((1, 2, 2), 3)])
def test_an_invalid_assignment_is_rejected(assignment):
    with pytest.raises(ValueError, match="expected"):
        decide_objects(assignment, 3)


# --- objects as drawn


@given(
    measured_videos(), st.tuples(st.integers(1, 30), st.integers(1, 30)), st.sampled_from([Edges.smooth, Edges.patch])
)
@settings(deadline=None)
def test_renumbered_objects_agree_with_the_label_maps(video, size, edges):
    distances, assignment = video
    grid = PatchGrid(*assignment.shape[1:])
    decision = decide_objects(assignment, distances.shape[2], background=Background.keep)

    def draw(decision):
        return np.stack([draw_label_map(each, grid, size=size, decision=decision, edges=edges) for each in distances])

    before = draw(decision)
    labels = len(decision.objects) + 1
    decision, new_ids = renumber_as_drawn(
        decision, np.stack([np.bincount(each.ravel(), minlength=labels) for each in before])
    )
    after = draw(decision)
    np.testing.assert_array_equal(after, new_ids[before])

    assert len(set(zip(before.ravel().tolist(), after.ravel().tolist(), strict=True))) == len(np.unique(before))
    assert [video_object.id for video_object in decision.objects] == np.unique(after[after > 0]).tolist()
    keys = []
    for video_object in decision.objects:
        seen = np.flatnonzero((after == video_object.id).any((1, 2)))
        assert (video_object.first_frame, video_object.last_frame, video_object.frames) == (
            seen[0],
            seen[-1],
            len(seen),
        )
        assert video_object.area == pytest.approx((after[seen] == video_object.id).mean())
        keys.append((video_object.first_frame, -video_object.area))
    assert keys == sorted(keys)


def test_an_object_without_pixels_is_removed():
    decision = decide_objects(np.array([[[0, 1, 2]]]), 3, background=Background.keep)
    drawn, new_ids = renumber_as_drawn(decision, np.array([[0, 5, 0, 9]]))
    assert new_ids.tolist() == [0, 2, 0, 1]
    assert drawn.object_ids.tolist() == [2, 0, 1]
    assert [video_object.area for video_object in drawn.objects] == pytest.approx([9 / 14, 5 / 14])


def test_areas_of_other_labels_are_rejected():
    with pytest.raises(ValueError, match="areas"):
        renumber_as_drawn(all_clusters(2), np.ones((1, 2), int))
