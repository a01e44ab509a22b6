"""Patches -> pixels: the label map of a frame at the size of the video."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from uvos.contract import Edges
from worker.method.masks import ObjectDecision
from worker.video.clip import PatchGrid

Label = TypeVar("Label", bound=np.integer)

# `edges=fine`, chosen on davis16-dev (docs/method.md): smaller regularisation or radius gains nothing.
GUIDE_RADIUS = 1.5  # patches: half the side of the window of the guided filter
GUIDE_REGULARISATION = 1e-5  # of squared colours in [0, 1]: variance below which a window has no edge


def draw_label_map(
    distances: NDArray[np.floating],
    grid: PatchGrid,
    *,
    size: tuple[int, int],
    decision: ObjectDecision,
    edges: Edges = Edges.smooth,
    frame: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint16]:
    """The label map of one frame at the size of the video.

    - `edges=smooth`: the score of each cluster, -distance, is interpolated bilinearly between patch centres (constant
      beyond the outermost ones). Each pixel takes the cluster with the best score, the first of equals, among the
      clusters that are nearest to some token of the frame. A departure from the paper.
    - `edges=fine`: the smooth label map follows the edges of the frame (`follow_edges`). A departure from the paper.
    - `edges=patch`: each pixel takes the nearest cluster of its patch, as published.

    Clusters are mapped to objects after that choice.

    Args:
        distances: Distance of each token of the frame to each cluster, float16 or wider, shape (N, C). A constant
            added to a token's row changes no result: KL - min(KL) serves as well as KL.
        grid: The patch grid; the N patches are in row order.
        size: (H, W) of the video in pixels; may be smaller than the grid.
        decision: The role of each cluster.
        edges: How pixels follow from patches.
        frame: The decoded frame, RGB, shape (H', W', 3) of any size; required by `edges=fine`.

    Returns:
        Object ids, 0 for background, shape (H, W).

    Raises:
        ValueError: the shapes do not agree, or `edges=fine` lacks the frame.
    """
    if edges is Edges.fine:
        if frame is None:
            raise ValueError("edges=fine requires the frame, got None")
        smooth = draw_label_map(distances, grid, size=(frame.shape[0], frame.shape[1]), decision=decision)
        return follow_edges(smooth, frame, size=size, radius=round(GUIDE_RADIUS * frame.shape[0] / grid.height))
    if distances.shape != (grid.tokens, len(decision.object_ids)):
        raise ValueError(f"expected {grid.tokens} x {len(decision.object_ids)} distances, got {distances.shape = }")
    candidates = np.flatnonzero(decision.is_candidate)
    nearest = candidates[distances[:, candidates].argmin(1)]  # (N,)
    if edges is Edges.patch:
        return nearest_patch(decision.object_ids[nearest].reshape(grid.height, grid.width), size)
    present, nearest = np.unique(nearest, return_inverse=True)
    cluster_distances = distances[:, present].T.astype(np.float32).reshape(-1, grid.height, grid.width)
    return _interpolated(
        cluster_distances, nearest.reshape(grid.height, grid.width), decision.object_ids[present], size
    )


def follow_edges(
    labels: NDArray[np.uint16], frame: NDArray[np.uint8], *, size: tuple[int, int], radius: int
) -> NDArray[np.uint16]:
    """A label map whose boundaries follow the edges of the frame.

    The indicator of each label is filtered with the frame as guide and interpolated to `size`; each pixel takes the
    label with the highest value.

    Args:
        labels: Shape (H', W').
        frame: The guide, RGB, shape (H', W', 3); details smaller than its pixels are not recovered.
        size: (H, W) of the result in pixels.
        radius: Half the side of the filter's window in pixels of the frame, at least 1.

    Returns:
        Shape (H, W).
    """
    counts = np.bincount(labels.ravel())
    common, *others = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    result = np.full(size, common, np.uint16)
    if not others:
        return result
    guide = GuidedFilter(frame.astype(np.float32) / np.float32(255), max(radius, 1), GUIDE_REGULARISATION)
    highest, rest = np.full(size, -np.inf, np.float32), np.ones(size, np.float32)
    for label in others:
        filtered = cv2.resize(guide((labels == label).astype(np.float32)), size[::-1], interpolation=cv2.INTER_LINEAR)
        rest -= (
            filtered  # the filter is linear and keeps a constant: this becomes the indicator of the most common label
        )
        result[filtered > highest] = label
        np.maximum(highest, filtered, out=highest)
    result[rest >= highest] = common
    return result


class GuidedFilter:
    """Edge-preserving smoothing: in each window the result is a linear function of the guide's colours.

    Source: He, Sun, Tang, "Guided Image Filtering" (ECCV 2010), Equations 14 to 16.

    Args:
        guide: Colours in [0, 1], float32, shape (H, W, 3).
        radius: Windows have sides of 2 * radius + 1 pixels; reflected at the border.
        regularisation: Added to the variance of each colour.
    """

    def __init__(self, guide: NDArray[np.float32], radius: int, regularisation: float) -> None:
        self._guide, self._radius = guide, radius
        self._mean = self._box(guide)
        products = self._box((guide[..., :, None] * guide[..., None, :]).reshape(*guide.shape[:2], 9))
        covariance = products.reshape(*guide.shape, 3) - self._mean[..., :, None] * self._mean[..., None, :]
        a, b, c = np.moveaxis(covariance + regularisation * np.eye(3, dtype=np.float32), -1, 0)
        # The inverse of a symmetric matrix with the columns a, b, c has the columns b x c, c x a, a x b over a . b x c.
        adjugate = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], -1)
        self._inverse = adjugate / (a * adjugate[..., 0]).sum(-1)[..., None, None]

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The filtered values; both have shape (H, W)."""
        mean = self._box(values)
        covariance = self._box(self._guide * values[..., None]) - self._mean * mean[..., None]
        slope = (self._inverse * covariance[..., None, :]).sum(-1)
        offset = mean - (slope * self._mean).sum(-1)
        filtered: NDArray[np.float32] = (self._box(slope) * self._guide).sum(-1) + self._box(offset)
        return filtered

    def _box(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean over each window, per channel; shape (H, W) or (H, W, channels)."""
        side = 2 * self._radius + 1
        means: NDArray[np.float32] = cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REFLECT)
        return means


def nearest_patch(patches: NDArray[Label], size: tuple[int, int]) -> NDArray[Label]:
    """Values of patches, shape (..., h, w), repeated to pixels, shape (..., H, W)."""
    height, width = patches.shape[-2:]
    rows, columns = np.arange(size[0]) * height // size[0], np.arange(size[1]) * width // size[1]
    pixels: NDArray[Label] = patches.take(rows, -2).take(columns, -1)
    return pixels


def _interpolated(
    distances: NDArray[np.float32], nearest: NDArray[np.intp], object_ids: NDArray[np.uint16], size: tuple[int, int]
) -> NDArray[np.uint16]:
    """The object with the smallest interpolated distance at each pixel.

    A cell lies between four neighbouring patch centres, its corners. Where all corners have the same nearest
    cluster, that cluster is nearest in the whole cell, since the weights of the corners are the same for every
    cluster: the cell is filled. In the other cells, clusters that some corner's nearest cluster beats at all corners
    are discarded, and the rest are compared pixel by pixel. The result is exact.

    Args:
        distances: Shape (C, h, w).
        nearest: The nearest cluster of each token, the first of equals, shape (h, w).
        object_ids: The object of each cluster, shape (C,).
        size: (H, W) in pixels.
    """
    rows, columns = _Cells.of(distances.shape[1], size[0]), _Cells.of(distances.shape[2], size[1])
    # Cells reach half a patch beyond the outermost centres, where a corner repeats its neighbour.
    padded = np.pad(distances, ((0, 0), (1, 1), (1, 1)), mode="edge")
    nearest = np.pad(nearest, 1, mode="edge")
    corners = np.stack([nearest[:-1, :-1], nearest[:-1, 1:], nearest[1:, :-1], nearest[1:, 1:]])  # (4, h + 1, w + 1)
    labels: NDArray[np.uint16] = object_ids[corners[0]].repeat(rows.pixels, 0).repeat(columns.pixels, 1)

    y, x = np.nonzero((corners != corners[0]).any(0) & (rows.pixels > 0)[:, None] & (columns.pixels > 0))
    if len(y) == 0:
        return labels
    candidates = _candidates(padded, corners[:, y, x], y, x)
    # Cells with many candidates first: the cells that have a candidate of some rank are then a prefix of all.
    order = np.argsort(-np.bincount(candidates.cell), kind="stable")
    y, x = y[order], x[order]
    labels[rows.index[y][:, :, None], columns.index[x][:, None, :]] = _compare_candidates(
        candidates, order, rows.weight[y], columns.weight[x], object_ids
    )
    return labels


@dataclass(frozen=True)
class _Candidates:
    """Pairs of a cell and a cluster that may win one of its pixels, by cell and then by cluster.

    Attributes:
        cell: Shape (m,).
        cluster: Shape (m,).
        distance: The cluster's distance at the four corners of the cell, shape (4, m).
    """

    cell: NDArray[np.intp]
    cluster: NDArray[np.intp]
    distance: NDArray[np.float32]


def _candidates(
    padded: NDArray[np.float32], winners: NDArray[np.intp], y: NDArray[np.intp], x: NDArray[np.intp]
) -> _Candidates:
    """The clusters that may win a pixel of a cell: those that no corner's nearest cluster beats at every corner.

    Args:
        padded: Distances, shape (C, h + 2, w + 2).
        winners: The nearest cluster at each corner, shape (4, n).
        y, x: Position of the upper left corner of each cell in `padded`, shape (n,).
    """

    def at_corners(cluster: NDArray[np.intp], y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.stack([padded[cluster, y + down, x + right] for down in (0, 1) for right in (0, 1)])

    winner_distances = [at_corners(winner, y, x) for winner in winners]  # (4, n) for each corner
    # Prefilter: a cluster whose minimum over the corners exceeds the maximum of some winner cannot win.
    row_minimum = np.minimum(padded[:, :-1], padded[:, 1:])
    minimum = np.minimum(row_minimum[:, :, :-1], row_minimum[:, :, 1:])[:, y, x]  # (C, n)
    cell, cluster = np.nonzero((minimum <= np.min([distance.max(0) for distance in winner_distances], 0)).T)
    distance = at_corners(cluster, y[cell], x[cell])
    beaten = np.zeros(len(cell), bool)
    for winner, bound in zip(winners, winner_distances, strict=True):
        beaten |= ((bound[:, cell] < distance) | ((bound[:, cell] == distance) & (winner[cell] < cluster))).all(0)
    return _Candidates(cell[~beaten], cluster[~beaten], distance[:, ~beaten])


def _compare_candidates(
    candidates: _Candidates,
    order: NDArray[np.intp],
    down: NDArray[np.float32],
    right: NDArray[np.float32],
    object_ids: NDArray[np.uint16],
) -> NDArray[np.uint16]:
    """The object of the nearest candidate at each pixel of n cells, (n, kh, kw), in `order`.

    Compares one rank of candidates at a time over all cells that have one.

    Args:
        candidates: Of n cells.
        order: The cells by descending number of candidates, shape (n,).
        down, right: Weights of the pixels of the ordered cells, shapes (n, kh) and (n, kw).
        object_ids: The object of each cluster, shape (C,).
    """
    counts = np.bincount(candidates.cell)
    rank = np.arange(len(candidates.cell)) - (counts.cumsum() - counts)[candidates.cell]
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    by_rank = np.lexsort((position[candidates.cell], rank))
    best = np.full((len(order), down.shape[1], right.shape[1]), np.inf, np.float32)
    chosen = np.zeros(best.shape, np.uint16)
    start = 0
    for n in np.bincount(rank):
        pairs = by_rank[start : start + n]
        start += n
        a, b, c, d = candidates.distance[:, pairs, None]  # (n, 1) each
        top, bottom = a + (b - a) * right[:n], c + (d - c) * right[:n]  # (n, kw)
        distance = top[:, None] + (bottom - top)[:, None] * down[:n, :, None]  # (n, kh, kw)
        better = distance < best[:n]
        np.copyto(best[:n], distance, where=better)
        np.copyto(chosen[:n], object_ids[candidates.cluster[pairs], None, None], where=better)
    return chosen


@dataclass(frozen=True)
class _Cells:
    """The pixels between patch centres along one side: n patches make n + 1 cells, the outer two half as long.

    Attributes:
        pixels: The number of pixels in each cell, shape (n + 1,).
        index: The pixels of each cell, shape (n + 1, k), k the most pixels in a cell; shorter cells repeat their last.
        weight: Position of each of these pixels between the two centres, in [0, 1), float32, same shape.
    """

    pixels: NDArray[np.intp]
    index: NDArray[np.intp]
    weight: NDArray[np.float32]

    @staticmethod
    @lru_cache(maxsize=16)
    def of(patches: int, pixels: int) -> "_Cells":
        # The centre of a pixel in patches, counted from the centre of patch -1; exact in integers.
        position = (2 * np.arange(pixels) + 1) * patches + pixels
        cell, rest = np.divmod(position, 2 * pixels)
        start = np.searchsorted(cell, np.arange(patches + 2))
        length = np.diff(start)
        index = np.minimum(start[:-1, None] + np.arange(length.max()), np.maximum(start[1:, None] - 1, 0))
        return _Cells(length, index, (rest[index] / (2 * pixels)).astype(np.float32))
