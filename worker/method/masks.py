"""Assignment -> objects -> label maps at the size of the video.

Whatever concerns the whole video is decided on the patch grid (`decide`): which clusters are background, which are
too small, which id an object has. Pixels come last and a frame at a time (`frame_labels`), so memory does not grow
with the video.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uvos.contract import Background, Edges, Mode
from worker.video.clip import PatchGrid

BORDER_RING = 1  # patches: how deep the frame border is when a cluster's hold on it is counted
BACKGROUND_SCORE = 0.5  # above it a cluster holds more of the border than its share of the area warrants

# `mode=single` takes the cluster with the highest product of these, each raised to its weight, and of its mean energy.
SINGLE_PERSISTENCE_WEIGHT = 1.0  # share of the frames it is seen in
SINGLE_INSIDE_WEIGHT = 1.0  # 1 - background score: how little it clings to the border
SINGLE_CENTRE_WEIGHT = 1.0  # how near to the middle of the frame its patches lie
SINGLE_AREA_WEIGHT = 0.5  # mean share of the frame: a speck in the middle is not the main object
SINGLE_CENTRE_SIGMA = 0.25  # of the frame's sides: where the weight of a patch has fallen to exp(-1/2)
SINGLE_STILL = 0.05  # energy that a cluster counts for at least: where nothing moves, the rest decides
SINGLE_MOVING = 0.25  # mean energy above which a cluster moves; low, for what rests at times
SINGLE_JOIN = 0.5  # share of the best score above which others that move join it where it moves: parts of one object


class Distances(Protocol):
    """Distances of every frame: `distances[t]` has shape (N, C). An array, a memory map, or computed on demand."""

    def __getitem__(self, frame: int, /) -> NDArray[np.floating]: ...


@dataclass(frozen=True)
class FoundObject:
    """One object of a video.

    Attributes:
        id: Its value in the label maps, from 1 by first appearance, then by area.
        area: Mean share of the frame over the frames it is seen in, in (0, 1].
        first_frame: The first frame it is seen in; last_frame likewise.
        frames: The number of frames it is seen in.
        background_score: In [0, 1]; above 0.5 it holds more of the frame border than its area warrants.
    """

    id: int
    area: float
    first_frame: int
    last_frame: int
    frames: int
    background_score: float


@dataclass(frozen=True)
class Decision:
    """What became of each cluster of a video.

    Attributes:
        object_of: The object id of each cluster, 0 for background, uint16, shape (C,).
        competes: Whether the cluster may hold tokens at all, bool, shape (C,): not those merged, nor the empty.
        objects: The objects, by id.
        background_clusters: The number of clusters that are background.
        merged: Clusters that `min_area` dropped; each of their tokens goes to its nearest remaining cluster.
    """

    object_of: NDArray[np.uint16]
    competes: NDArray[np.bool_]
    objects: tuple[FoundObject, ...]
    background_clusters: int
    merged: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.object_of.shape != self.competes.shape or self.object_of.ndim != 1:
            raise ValueError(f"expected a value a cluster, got {self.object_of.shape = }, {self.competes.shape = }")
        if not self.competes.any():
            raise ValueError("no cluster is left")


def decide(
    assignment: NDArray[np.integer],
    clusters: int,
    *,
    mode: Mode = Mode.multi,
    background: Background = Background.auto,
    min_area: float = 0.0,
    distances: Distances | None = None,
    motion: NDArray[np.floating] | None = None,
) -> Decision:
    """What becomes of each cluster: background, an object with an id, or merged into its neighbours.

    First `min_area`: clusters with a smaller mean share of the frame (over the frames they are seen in) are dropped
    together and their tokens go each to its nearest remaining cluster; this repeats until none is smaller; the
    largest cluster always stays. Then background: with `auto`, exactly the clusters whose share of all border tokens
    exceeds their share of all tokens (background score above 0.5), and if there is none among two or more, the one
    nearest to it; whether they move decides nothing, since an object may rest. With `keep`, none. `mode=single`
    leaves one object, the cluster most persistent, central, inside the frame, large and moving (a product, see the
    constants), where it moves joined by others that move and score nearly as high, and makes background of the rest
    whatever `background` says. So with two or more clusters an answer is never all foreground (but for `keep`), and
    never all background.

    Args:
        assignment: Nearest cluster of each token, shape (T, h, w), values in [0, clusters).
        clusters: C, the number of clusters.
        mode: Several objects, or the one main object.
        background: Whether to tell background apart.
        min_area: Share of the frame, in [0, 1).
        distances: Distance of each token to each cluster; read only for frames that hold a token of a dropped
            cluster. Required when `min_area` > 0.
        motion: How surely each token moves otherwise than the camera, in 0..1, shape (T, h, w), as
            `worker.method.motion.motion_energy` gives it; None where it was not looked at.

    Raises:
        ValueError: shapes or values do not fit, or `distances` is needed and absent.

    Source: the assignment ends the method of Ding et al., arXiv:2311.17893 (Algorithm 1); telling background apart,
    areas and the choice of a single object are ours.
    """
    if assignment.ndim != 3 or assignment.size == 0:
        raise ValueError(f"expected an assignment of shape (T, h, w), got {assignment.shape = }")
    if assignment.min() < 0 or assignment.max() >= clusters:
        raise ValueError(f"expected clusters in [0, {clusters}), got {assignment.min()} to {assignment.max()}")
    if motion is not None and motion.shape != assignment.shape:
        raise ValueError(f"expected the motion of each token, got {motion.shape = } for {assignment.shape = }")
    tally, merged = _merge_small(assignment, _Tally.of(assignment, clusters, motion), min_area, distances)
    seen = _Sightings.of(tally)
    if mode is Mode.single:
        groups = _main_object(seen)
    elif background is Background.auto:
        groups = _each_its_own(seen.held & ~_background(seen))
    else:
        groups = _each_its_own(seen.held)

    found = _Sightings.of(tally.grouped(groups))
    order = np.lexsort((-found.area[1:], found.first[1:])) + 1  # stable: equal ones stay in the clusters' order
    new_id = np.zeros(len(found.area), np.uint16)
    new_id[order] = np.arange(1, len(order) + 1)
    return Decision(
        object_of=new_id[groups],
        competes=seen.held,
        objects=tuple(
            FoundObject(
                id=int(new_id[g]),
                area=float(found.area[g]),
                first_frame=int(found.first[g]),
                last_frame=int(found.last[g]),
                frames=int(found.frames[g]),
                background_score=float(found.background_score[g]),
            )
            for g in order
        ),
        background_clusters=int((seen.held & (groups == 0)).sum()),
        merged=tuple(np.flatnonzero(merged).tolist()),
    )


def as_drawn(decision: Decision, areas: NDArray[np.integer]) -> Decision:
    """The decision with ids and objects as the label maps show them.

    `decide` sees patches; at the video's size an object of few patches may lose all its pixels to smooth edges in a
    frame, or gain some. Frames drawn with the result have ids by first appearance and area in pixels, and the objects
    are those of the files. An object that is nowhere drawn is none.

    Args:
        decision: What `decide` found and frames were drawn with.
        areas: Pixels of each label in each frame, shape (T, objects + 1).

    Raises:
        ValueError: there is not a column for each label.
    """
    if areas.ndim != 2 or areas.shape[1] != len(decision.objects) + 1:
        raise ValueError(f"expected the areas of {len(decision.objects) + 1} labels, got {areas.shape = }")
    shares = areas / areas.sum(1, keepdims=True)
    drawn = []
    for each in decision.objects:
        seen = np.flatnonzero(areas[:, each.id])
        if len(seen):
            area = float(shares[seen, each.id].mean())
            drawn.append(replace(each, area=area, first_frame=int(seen[0]), last_frame=int(seen[-1]), frames=len(seen)))
    drawn.sort(key=lambda each: (each.first_frame, -each.area, each.id))
    new_id = np.zeros(areas.shape[1], np.uint16)
    new_id[[each.id for each in drawn]] = np.arange(1, len(drawn) + 1)
    return replace(
        decision,
        object_of=new_id[decision.object_of],
        objects=tuple(replace(each, id=number + 1) for number, each in enumerate(drawn)),
    )


@dataclass(frozen=True)
class _Tally:
    """What each of C clusters holds of each frame: all that is asked of an assignment, and small.

    Attributes:
        tokens: The number of its tokens, shape (T, C).
        border: How many of them lie on the border of the frame, shape (T, C).
        central: How near they are to the middle of the frame, each in (0, 1], summed, shape (T, C).
        moving: How surely they move, each in 0..1, summed, shape (T, C).
        motion: How surely each token of each frame moves, shape (T, h, w).
    """

    tokens: NDArray[np.intp]
    border: NDArray[np.intp]
    central: NDArray[np.float64]
    moving: NDArray[np.float64]
    motion: NDArray[np.floating]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.motion.shape[1], self.motion.shape[2]

    @staticmethod
    def of(assignment: NDArray[np.integer], clusters: int, motion: NDArray[np.floating] | None = None) -> "_Tally":
        length, height, width = assignment.shape
        if motion is None:
            motion = np.broadcast_to(np.float32(0), assignment.shape)
        shape = length, clusters
        tally = _Tally(np.zeros(shape, np.intp), np.zeros(shape, np.intp), np.zeros(shape), np.zeros(shape), motion)
        everywhere = np.ones(height * width, bool)
        for t, frame in enumerate(assignment):
            tally.add(t, everywhere, frame.ravel())
        return tally

    def add(self, frame: int, tokens: NDArray[np.bool_], clusters: NDArray[np.integer]) -> None:
        """Count tokens of a frame, a mask of shape (N,), for the clusters that hold them, shape (n,)."""
        height, width = self.grid
        ring = np.ones(self.grid)
        ring[BORDER_RING : height - BORDER_RING, BORDER_RING : width - BORDER_RING] = 0
        y, x = (np.arange(height) + 0.5) / height - 0.5, (np.arange(width) + 0.5) / width - 0.5
        centre = np.exp(-(y[:, None] ** 2 + x**2) / (2 * SINGLE_CENTRE_SIGMA**2))
        number = self.tokens.shape[1]
        self.tokens[frame] += np.bincount(clusters, minlength=number)
        self.border[frame] += np.bincount(clusters, ring.ravel()[tokens], number).astype(np.intp)
        self.central[frame] += np.bincount(clusters, centre.ravel()[tokens], number)
        self.moving[frame] += np.bincount(clusters, self.motion[frame].ravel()[tokens], number)

    def without(self, clusters: NDArray[np.bool_]) -> "_Tally":
        """A copy in which some clusters, a mask of shape (C,), hold nothing."""
        rest = ~clusters
        return _Tally(self.tokens * rest, self.border * rest, self.central * rest, self.moving * rest, self.motion)

    def grouped(self, groups: NDArray[np.intp]) -> "_Tally":
        """The tally of groups of clusters: the group of each cluster, numbered from 0, shape (C,)."""
        members = (groups[:, None] == np.arange(groups.max() + 1)).astype(np.intp)  # (C, groups)
        return _Tally(
            self.tokens @ members,
            self.border @ members,
            self.central @ members,
            self.moving @ members,
            self.motion,
        )


@dataclass(frozen=True)
class _Sightings:
    """Where each of C clusters is seen in a video, all of shape (C,); 0 for a cluster that holds no token."""

    held: NDArray[np.bool_]
    """Whether it holds a token at all."""
    area: NDArray[np.float64]
    """Mean share of the frame over the frames it is seen in."""
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    frames: NDArray[np.intp]
    """First frame, last frame, number of frames it is seen in."""
    persistence: NDArray[np.float64]
    """Share of all frames that it is seen in."""
    central: NDArray[np.float64]
    """Mean nearness of its tokens to the middle of the frame."""
    energy: NDArray[np.float64]
    """How surely its tokens move, on average, in 0..1."""
    background_score: NDArray[np.float64]
    """b / (b + a), b its share of all border tokens and a its share of all tokens: 0.5 is a fair share."""

    @staticmethod
    def of(tally: _Tally) -> "_Sightings":
        total, border = tally.tokens.sum(0), tally.border.sum(0)
        seen = tally.tokens > 0
        frames = seen.sum(0)
        # In whole numbers, so that a fair share is 0.5 and nothing else.
        border_due, area_due = border * total.sum(), total * border.sum()
        return _Sightings(
            held=total > 0,
            area=total / (np.maximum(frames, 1) * tally.grid[0] * tally.grid[1]),
            first=seen.argmax(0),
            last=np.where(frames > 0, len(seen) - 1 - seen[::-1].argmax(0), 0),
            frames=frames,
            persistence=frames / len(seen),
            central=tally.central.sum(0) / np.maximum(total, 1),
            energy=tally.moving.sum(0) / np.maximum(total, 1),
            background_score=border_due / np.maximum(border_due + area_due, 1),
        )


def _merge_small(
    assignment: NDArray[np.integer], whole: _Tally, min_area: float, distances: Distances | None
) -> tuple[_Tally, NDArray[np.bool_]]:
    """The tally without clusters smaller than `min_area`, and which these are, shape (C,)."""
    merged = np.zeros(whole.tokens.shape[1], bool)
    if min_area <= 0:
        return whole, merged
    if distances is None:
        raise ValueError("min_area needs the distances, to find the nearest remaining cluster")
    tally = whole
    while True:
        seen = _Sightings.of(tally)
        small = seen.held & (seen.area < min_area)
        small[seen.area.argmax()] = False  # something must stay
        if not small.any():
            return tally, merged
        merged |= small
        tally = whole.without(merged)
        remaining = np.flatnonzero(tally.tokens.any(0))
        for t in np.flatnonzero(whole.tokens[:, merged].any(1)).tolist():
            homeless = merged[assignment[t].ravel()]
            nearest = np.asarray(distances[t])[homeless][:, remaining].argmin(1)
            tally.add(t, homeless, remaining[nearest])


def _each_its_own(objects: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Groups of clusters, shape (C,): 1, 2, … for the objects, 0 for the rest."""
    return np.where(objects, objects.cumsum(), 0)


def _background(seen: _Sightings) -> NDArray[np.bool_]:
    """Which clusters are background, shape (C,): never all of them, and one at least where there are two."""
    # With a limit of 0.5 they cannot all exceed it, as both shares sum to 1; they can all meet it exactly.
    background = seen.held & (seen.background_score > BACKGROUND_SCORE)
    by_score = np.lexsort((seen.area * seen.frames, seen.background_score, seen.held))  # the last is likeliest
    if not background.any() and seen.held.sum() > 1:
        background[by_score[-1]] = True
    elif background[seen.held].all():
        background[by_score[-seen.held.sum()]] = False
    return background


def _main_object(seen: _Sightings) -> NDArray[np.intp]:
    """Groups of clusters, shape (C,): 1 for the main object, 0 for the rest; never all of two or more clusters."""
    score = (
        seen.persistence**SINGLE_PERSISTENCE_WEIGHT
        * (1 - seen.background_score) ** SINGLE_INSIDE_WEIGHT
        * seen.central**SINGLE_CENTRE_WEIGHT
        * seen.area**SINGLE_AREA_WEIGHT
        * np.maximum(seen.energy, SINGLE_STILL)
    )
    score[~seen.held] = -1
    groups = np.zeros(len(score), np.intp)
    best = score.argmax()
    parts = seen.held & (seen.energy > SINGLE_MOVING) & (score >= SINGLE_JOIN * score[best])
    groups[best] = 1
    if parts[best] and not parts[seen.held].all():
        groups[parts] = 1
    return groups


def frame_labels(
    distances: NDArray[np.floating],
    grid: PatchGrid,
    *,
    size: tuple[int, int],
    decision: Decision,
    edges: Edges = Edges.smooth,
) -> NDArray[np.uint16]:
    """The label map of one frame at the size of the video.

    With `edges=smooth` the score of each cluster, -distance, is interpolated bilinearly between patch centres (and
    held beyond the outermost ones), and each pixel takes the cluster of the best score, the first of equals, among
    the clusters that are nearest to some token of the frame. With `edges=patch` each pixel takes the nearest cluster
    of the patch it lies in, as published. Clusters become objects after that choice.

    Args:
        distances: Distance of each token of the frame to each cluster, float16 or wider, shape (N, C). A constant
            added to a token's row changes nothing with `edges=patch`, nor with `edges=smooth`, where each pixel
            subtracts it from all clusters alike: J - min(J) serves as well as J.
        grid: The patch grid; N patches in row order.
        size: (H, W) of the video in pixels; any, also smaller than the grid.
        decision: What became of each cluster.
        edges: How to go from patches to pixels.

    Returns:
        Object ids, 0 for background, shape (H, W).

    Raises:
        ValueError: the shapes do not agree.
    """
    if distances.shape != (grid.tokens, len(decision.object_of)):
        raise ValueError(f"expected {grid.tokens} x {len(decision.object_of)} distances, got {distances.shape = }")
    allowed = np.flatnonzero(decision.competes)
    nearest = allowed[distances[:, allowed].argmin(1)]  # (N,)
    height, width = size
    if edges is Edges.patch:
        rows, columns = np.arange(height) * grid.height // height, np.arange(width) * grid.width // width
        labels: NDArray[np.uint16] = decision.object_of[nearest].reshape(grid.height, grid.width)
        return labels.take(rows, 0).take(columns, 1)
    present, nearest = np.unique(nearest, return_inverse=True)
    scores = distances[:, present].T.astype(np.float32).reshape(-1, grid.height, grid.width)
    return _interpolated(scores, nearest.reshape(grid.height, grid.width), decision.object_of[present], size)


def _interpolated(
    distances: NDArray[np.float32], nearest: NDArray[np.intp], object_of: NDArray[np.uint16], size: tuple[int, int]
) -> NDArray[np.uint16]:
    """The object of the least interpolated distance at each pixel.

    A cell lies between four neighbouring patch centres, its corners. Where all corners have the same nearest
    cluster, that cluster is nearest all over the cell, since the weights of the corners are the same for every
    cluster: the cell is filled. Elsewhere a cluster that another beats at all corners is left out, and the rest are
    compared pixel by pixel. Nothing is approximated.

    Args:
        distances: Shape (C, h, w).
        nearest: The nearest cluster of each token, the first of equals, shape (h, w).
        object_of: The object of each cluster, shape (C,).
        size: (H, W) in pixels.
    """
    rows, columns = _Cells.of(distances.shape[1], size[0]), _Cells.of(distances.shape[2], size[1])
    # Cells reach half a patch beyond the outermost centres, where a corner repeats its neighbour.
    padded = np.pad(distances, ((0, 0), (1, 1), (1, 1)), mode="edge")
    winners = np.pad(nearest, 1, mode="edge")
    corner = np.stack([winners[:-1, :-1], winners[:-1, 1:], winners[1:, :-1], winners[1:, 1:]])  # (4, h + 1, w + 1)
    labels: NDArray[np.uint16] = object_of[corner[0]].repeat(rows.pixels, 0).repeat(columns.pixels, 1)

    y, x = np.nonzero((corner != corner[0]).any(0) & (rows.pixels > 0)[:, None] & (columns.pixels > 0))
    if len(y) == 0:
        return labels
    cell, cluster, value = _rivals(padded, corner[:, y, x], y, x)

    # One rank of rivals at a time, cells with many rivals first: those that have a rank are then a prefix.
    count = np.bincount(cell)
    rank = np.arange(len(cell)) - (count.cumsum() - count)[cell]
    order = np.argsort(-count, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    y, x = y[order], x[order]
    down, right = rows.weight[y], columns.weight[x]  # (n, kh), (n, kw)
    best = np.full((len(y), down.shape[1], right.shape[1]), np.inf, np.float32)
    chosen = np.zeros(best.shape, np.uint16)
    by_rank = np.lexsort((place[cell], rank))
    start = 0
    for n in np.bincount(rank):
        pairs = by_rank[start : start + n]
        start += n
        a, b, c, d = value[:, pairs, None]  # (n, 1) each
        top, bottom = a + (b - a) * right[:n], c + (d - c) * right[:n]  # (n, kw)
        distance = top[:, None] + (bottom - top)[:, None] * down[:n, :, None]  # (n, kh, kw)
        better = distance < best[:n]
        np.copyto(best[:n], distance, where=better)
        np.copyto(chosen[:n], object_of[cluster[pairs], None, None], where=better)
    labels[rows.index[y][:, :, None], columns.index[x][:, None, :]] = chosen
    return labels


def _rivals(
    padded: NDArray[np.float32], winners: NDArray[np.intp], y: NDArray[np.intp], x: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Which clusters may win a pixel of a cell: those that no corner's winner beats at every corner.

    Args:
        padded: Distances, shape (C, h + 2, w + 2).
        winners: The winner at each corner, shape (4, n).
        y, x: Where the upper left corner of each cell lies in `padded`, shape (n,).

    Returns:
        Pairs of a cell and a cluster, by cell and then by cluster, shape (m,) each, and the cluster's distance at
        the corners of the cell, shape (4, m).
    """

    def at_corners(cluster: NDArray[np.intp], y: NDArray[np.intp], x: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.stack([padded[cluster, y + down, x + right] for down in (0, 1) for right in (0, 1)])

    bars = [at_corners(winner, y, x) for winner in winners]  # (4, n) for each corner
    # A first sieve: who is nowhere as near as some winner is everywhere cannot win.
    rows = np.minimum(padded[:, :-1], padded[:, 1:])
    nearest = np.minimum(rows[:, :, :-1], rows[:, :, 1:])[:, y, x]  # (C, n)
    cell, cluster = np.nonzero((nearest <= np.min([bar.max(0) for bar in bars], 0)).T)
    value = at_corners(cluster, y[cell], x[cell])
    beaten = np.zeros(len(cell), bool)
    for winner, bar in zip(winners, bars, strict=True):
        beaten |= ((bar[:, cell] < value) | ((bar[:, cell] == value) & (winner[cell] < cluster))).all(0)
    return cell[~beaten], cluster[~beaten], value[:, ~beaten]


@dataclass(frozen=True)
class _Cells:
    """The pixels between patch centres along one side: n patches make n + 1 cells, the outer two half as long.

    Attributes:
        pixels: The number of pixels in each cell, shape (n + 1,).
        index: The pixels of each cell, shape (n + 1, k), k the most pixels in a cell; shorter ones repeat their last.
        weight: How far each of these lies on the way between the two centres, in [0, 1), float32, same shape.
    """

    pixels: NDArray[np.intp]
    index: NDArray[np.intp]
    weight: NDArray[np.float32]

    @staticmethod
    @lru_cache(maxsize=16)
    def of(patches: int, pixels: int) -> "_Cells":
        # The centre of a pixel in patches, counted from the centre of patch -1; exact in whole numbers.
        position = (2 * np.arange(pixels) + 1) * patches + pixels
        cell, rest = np.divmod(position, 2 * pixels)
        start = np.searchsorted(cell, np.arange(patches + 2))
        length = np.diff(start)
        index = np.minimum(start[:-1, None] + np.arange(length.max()), np.maximum(start[1:, None] - 1, 0))
        return _Cells(length, index, (rest[index] / (2 * pixels)).astype(np.float32))
