"""One closed polygon per mask, for the formats that have no run lengths.

Vertices are pixel corners in (x, y) order: pixel (row, column) covers [column, column + 1] x [row, row + 1]. The
polygon encloses exactly the pixels of the mask. Parts and holes are joined to it by bridges: two coincident edges in
opposite directions, which enclose nothing.
"""

import numpy as np
from numpy.typing import NDArray

Vertex = tuple[int, int]
BRIDGE_REFINEMENTS = 3  # alternating nearest-vertex searches; they converge to a short bridge without all distances


def outline(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The polygon of a mask.

    Args:
        mask: Shape (H, W), at least one pixel set.

    Returns:
        Vertices (x, y), shape (V, 2), V >= 4; the last one is joined to the first.

    Raises:
        ValueError: the mask is empty.
    """
    return _joined(boundaries(mask))


def pixel_outline(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The polygon through the centres of the boundary pixels, as OpenCV draws and traces contours.

    `cv2.fillPoly` fills the polygon including its edges, so each edge is moved half a pixel into the mask.

    Args:
        mask: Shape (H, W), at least one pixel set.

    Returns:
        Indices (column, row) of pixels, shape (V, 2).

    Raises:
        ValueError: the mask is empty.
    """
    return _joined([_inset(path) for path in boundaries(mask)])


def boundaries(mask: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The boundaries of the 4-connected parts of a mask and of their holes.

    Args:
        mask: Shape (H, W).

    Returns:
        Closed paths of corners (x, y), each of shape (V, 2). The mask is on the right of the direction of travel;
        edges are alternately horizontal and vertical, the first one horizontal.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return []
    top, left = int(rows[0]), int(columns[0])
    box = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    padded = np.pad(box, 1).astype(np.int8)
    horizontal = {((start, line), step): (end, line) for line, start, end, step in _edges(np.diff(padded, axis=0))}
    vertical = {((line, start), step): (line, end) for line, start, end, step in _edges(-np.diff(padded, axis=1).T)}
    paths = []
    while horizontal:
        vertex, step = first = next(iter(horizontal))
        path: list[Vertex] = []
        while (vertex, step) in horizontal:
            corner = horizontal.pop((vertex, step))
            path += [vertex, corner]
            # Where two pixels touch at a corner only, four edges meet: the right turn stays on the same pixel.
            step = step if (corner, step) in vertical else -step
            vertex = vertical.pop((corner, step))
            step = -step if (vertex, -step) in horizontal or (vertex, -step) == first else step
            if (vertex, step) == first:
                break
        paths.append(np.array(path) + np.array([left, top]))
    return paths


def _edges(steps: NDArray[np.int8]) -> list[tuple[int, int, int, int]]:
    """Runs of equal non-zero values in each row: (row, start, end, value), in the direction of the value's sign."""
    differs = steps[:, 1:] != steps[:, :-1]
    lines, low = np.nonzero(differs & (steps[:, 1:] != 0))
    _, high = np.nonzero(differs & (steps[:, :-1] != 0))
    values = steps[lines, low + 1]
    starts, ends = np.where(values > 0, low, high), np.where(values > 0, high, low)
    return list(zip(lines.tolist(), starts.tolist(), ends.tolist(), values.tolist(), strict=True))


def _inset(path: NDArray[np.int64]) -> NDArray[np.int64]:
    """The boundary moved half a pixel to the right of the direction of travel, as indices of pixels."""
    to_right = path[1::2, 0] > path[::2, 0]
    down = np.roll(path[::2, 1], -1) > path[1::2, 1]
    columns = path[:, 0] - np.roll(down.repeat(2), 1)
    rows = path[:, 1] - ~to_right.repeat(2)
    return np.stack([columns, rows], 1)


def _joined(paths: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """One closed path: the longest path, with a detour by a bridge to each of the others.

    Bridges start at the longest path only, so the time is linear in the number of parts.
    """
    if not paths:
        raise ValueError("the mask is empty: a polygon needs at least one pixel")
    longest, *others = sorted(paths, key=len, reverse=True)
    detours: dict[int, list[NDArray[np.int64]]] = {}
    for path in others:
        theirs = 0
        for _ in range(BRIDGE_REFINEMENTS):
            ours = _nearest(longest, path[theirs])
            theirs = _nearest(path, longest[ours])
        rolled = np.roll(path, -theirs, axis=0)
        detours.setdefault(ours, []).append(np.concatenate([rolled, rolled[:1], longest[ours : ours + 1]]))
    pieces, start = [], 0
    for ours, bridged in sorted(detours.items()):
        pieces += [longest[start : ours + 1], *bridged]
        start = ours + 1
    return np.concatenate([*pieces, longest[start:]])


def _nearest(path: NDArray[np.int64], point: NDArray[np.int64]) -> int:
    """Index of the vertex of a path that is nearest to a point."""
    return int(((path - point) ** 2).sum(1).argmin())
