"""`edges=fine`: the guided filter equals its definition, and label maps follow the edges of the frame."""

import numpy as np
import pytest

from uvos.contract import Background, Edges
from worker.method.edges import GuidedFilter, draw_label_map, follow_edges
from worker.method.masks import decide_objects
from worker.video.clip import PatchGrid

GREY, RED, BLUE = (90, 90, 90), (200, 60, 50), (40, 70, 190)


def guided_filter_by_definition(guide: np.ndarray, values: np.ndarray, radius: int, regularisation: float):
    """A ridge regression of the values on the colours in every window; a pixel takes the mean over its windows."""
    height, width = values.shape
    rows = np.pad(np.arange(height), radius, mode="symmetric")
    columns = np.pad(np.arange(width), radius, mode="symmetric")
    side = range(2 * radius + 1)
    models = np.empty((height, width, 4))
    for y in range(height):
        for x in range(width):
            window = [(rows[y + down], columns[x + right]) for down in side for right in side]
            colors = np.array([guide[pixel] for pixel in window], np.float64)
            targets = np.array([values[pixel] for pixel in window], np.float64)
            centred = colors - colors.mean(0)
            slope = np.linalg.solve(
                centred.T @ centred / len(window) + regularisation * np.eye(3),
                centred.T @ (targets - targets.mean()) / len(window),
            )
            models[y, x] = [*slope, targets.mean() - slope @ colors.mean(0)]
    filtered = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            mean = np.mean([models[rows[y + down], columns[x + right]] for down in side for right in side], 0)
            filtered[y, x] = mean[:3] @ guide[y, x] + mean[3]
    return filtered


@pytest.mark.parametrize(("radius", "regularisation"), [(1, 1e-2), (2, 1e-4)])
def test_the_guided_filter_equals_its_definition(radius, regularisation):
    random = np.random.default_rng(0)
    guide, values = random.random((9, 12, 3), np.float32), random.random((9, 12), np.float32)
    found = GuidedFilter(guide, radius, regularisation)(values)
    np.testing.assert_allclose(found, guided_filter_by_definition(guide, values, radius, regularisation), atol=2e-3)


def picture(size: tuple[int, int], right: int) -> np.ndarray:
    """A frame with noise, red up to the column `right` and grey beyond."""
    frame = np.full((*size, 3), GREY, np.int16)
    frame[:, :right] = RED
    return np.clip(frame + np.random.default_rng(1).integers(-3, 4, frame.shape), 0, 255).astype(np.uint8)


def test_a_boundary_moves_to_the_nearest_edge_of_the_frame():
    frame = picture((40, 60), right=33)
    coarse = np.zeros((40, 60), np.uint16)
    coarse[:, :30] = 5
    found = follow_edges(coarse, frame, size=(40, 60), radius=8)
    expected = np.where(np.arange(60) < 33, 5, 0)
    assert (found == expected).mean() > 0.99
    assert (coarse == expected).mean() < 0.96


def test_labels_stay_as_they_are_where_the_frame_has_no_edges():
    labels = np.zeros((40, 60), np.uint16)
    labels[10:30, 20:45] = 1
    labels[:, 50:] = 7
    found = follow_edges(labels, np.full((40, 60, 3), GREY, np.uint8), size=(40, 60), radius=3)
    assert (found == labels).mean() > 0.98
    assert set(np.unique(found)) == {0, 1, 7}


def test_the_result_has_the_size_of_the_video_and_only_labels_of_the_input():
    labels = np.zeros((20, 30), np.uint16)
    labels[:, 15:] = 300
    frame = picture((20, 30), right=15)
    found = follow_edges(labels, frame, size=(60, 90), radius=2)
    assert found.shape == (60, 90)
    assert found.dtype == np.uint16
    assert ((found == 300) == (np.arange(90) >= 45)).mean() > 0.97
    assert (follow_edges(np.full((20, 30), 4, np.uint16), frame, size=(5, 7), radius=2) == np.full((5, 7), 4)).all()


def test_fine_edges_are_closer_to_the_object_than_smooth_ones():
    y, x = np.mgrid[:112, :168]
    truth = (y - 60) ** 2 + (x - 70) ** 2 < 35**2
    frame = np.where(truth[..., None], BLUE, GREY).astype(np.uint8)
    grid = PatchGrid(8, 12)
    is_object = truth.reshape(8, 14, 12, 14).mean((1, 3)) > 0.5
    distances = np.stack([is_object.ravel() * 4.0, 4.0 - is_object.ravel() * 4.0], 1)
    decision = decide_objects(1 * is_object[None], 2, background=Background.auto)

    def errors(edges: Edges) -> int:
        labels = draw_label_map(distances, grid, size=truth.shape, decision=decision, edges=edges, frame=frame)
        return int(((labels > 0) != truth).sum())

    assert errors(Edges.fine) < 0.4 * errors(Edges.smooth)
    assert errors(Edges.smooth) < errors(Edges.patch)


def test_fine_edges_require_the_frame():
    decision = decide_objects(np.array([[[0, 1]]]), 2, background=Background.keep)
    with pytest.raises(ValueError, match="requires the frame"):
        draw_label_map(np.eye(2), PatchGrid(1, 2), size=(4, 8), decision=decision, edges=Edges.fine)
