"""The measures of video object segmentation: J, F, matching of proposals to objects, FG-ARI, mIoU.

Label maps are integers: a prediction's 0 is background and is no proposal, a ground truth's 0 is background and
`VOID` marks pixels that are excluded.

J and F follow the official evaluation of DAVIS (Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for
Video Object Segmentation", CVPR 2016; Pont-Tuset et al., "The 2017 DAVIS Challenge", arXiv:1704.00675), but for all
pairs of proposal and object of a frame at once: a frame has hundreds of proposals, and a dilation for each of them
would take minutes a video.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from worker.evaluation.labels import VOID

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]

BOUND_TH = 0.008  # F tolerates boundaries this share of the frame's diagonal apart, as the official code
MAX_PROPOSALS_OFFICIAL = 20  # DAVIS-17 unsupervised: proposals a sequence
MAX_PROPOSALS_PUBLISHED = 300  # the evaluation published with the method: proposals a frame


def object_ids(labels: Labels) -> NDArray[np.int64]:
    """The ids in a label map or in several, ascending, without background (0) and `VOID`."""
    if labels.dtype.itemsize <= 2:  # counting is ten times faster than sorting
        offset = int(np.iinfo(labels.dtype).min)
        values = np.flatnonzero(np.bincount(labels.ravel().astype(np.int32) - offset)) + offset
    else:
        values = np.unique(labels).astype(np.int64)
    return values[values > 0].astype(np.int64)


def areas(labels: Labels, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of each id, over all frames, shape (len(ids),)."""
    index = _indices(labels, ids)
    return np.bincount(index.ravel() + 1, minlength=len(ids) + 1)[1:]


def largest(labels: Labels, limit: int) -> NDArray[np.int64]:
    """At most `limit` ids of a sequence, those with the largest area over all frames, ascending."""
    ids = object_ids(labels)
    if len(ids) <= limit:
        return ids
    order = np.argsort(-areas(labels, ids), kind="stable")[:limit]
    return np.sort(ids[order])


def _indices(labels: Labels, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each pixel's position in the ascending `ids`, -1 where its label is not among them."""
    if len(ids) == 0:
        return np.full(labels.shape, -1, dtype=np.int64)
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    table = np.full(high - low + 1, -1, dtype=np.int64)
    present = ids[(ids >= low) & (ids <= high)]
    table[present - low] = np.searchsorted(ids, present)
    return table[labels.astype(np.int64) - low]


def overlaps(
    prediction: Labels, truth: Labels, proposals: NDArray[np.int64], objects: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pixels that each proposal shares with each object, void pixels left out.

    Args:
        prediction: Label map of one frame or of several, any shape.
        truth: Likewise, the same shape.
        proposals: Ascending ids of the prediction, shape (P,).
        objects: Ascending ids of the ground truth, shape (G,).

    Returns:
        Pixels shared, shape (P, G); pixels of each proposal, (P,); pixels of each object, (G,).

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"expected the same shape, got {prediction.shape = } and {truth.shape = }")
    rows, columns = len(proposals) + 1, len(objects) + 1
    pairs = (_indices(prediction, proposals) + 1) * columns + _indices(truth, objects) + 1
    judged = pairs[truth != VOID]
    table = np.bincount(judged, minlength=rows * columns).reshape(rows, columns)
    return table[1:, 1:], table[1:].sum(1), table[:, 1:].sum(0)


def intersection_over_union(
    prediction: Labels, truth: Labels, proposals: NDArray[np.int64], objects: NDArray[np.int64]
) -> Floats:
    """Region similarity J of each proposal with each object, shape (P, G); 1 where both are empty.

    Arguments as in `overlaps`; several frames are one volume.
    """
    shared, of_proposal, of_object = overlaps(prediction, truth, proposals, objects)
    union = of_proposal[:, None] + of_object[None, :] - shared
    return np.where(union == 0, 1.0, shared / np.maximum(union, 1))


@dataclass(frozen=True)
class _Boundaries:
    """Boundary pixels of all labels of one frame: pixel `pixel[i]` (flat index) lies on the boundary of `label[i]`."""

    label: NDArray[np.int64]
    pixel: NDArray[np.int64]


def _boundaries(index: NDArray[np.int64]) -> _Boundaries:
    """The boundary of each label in a map of label positions (-1: none), one pixel wide.

    A pixel lies on a label's boundary where the pixel itself, its neighbours to the right, below and below right
    are not all of the label or all not of it: the definition of the Berkeley benchmark's `seg2bmap` that the
    official code uses. At the last row and column a pixel stands in for the neighbour that it lacks.
    """
    padded = np.pad(index, ((0, 1), (0, 1)), mode="edge")
    corner = padded[1:, 1:]
    right, below = padded[:-1, 1:], padded[1:, :-1]
    pixel = np.flatnonzero((index != right) | (index != below) | (index != corner))
    around = np.stack([near.ravel()[pixel] for near in (index, right, below, corner)])  # (4, pixels)
    # Each label once a pixel: a later neighbour counts only where none before it has the same label.
    counts = around >= 0
    for later in range(1, 4):
        for earlier in range(later):
            counts[later] &= around[later] != around[earlier]
    return _Boundaries(label=around[counts], pixel=np.broadcast_to(pixel, around.shape)[counts])


def _disk(radius: int) -> NDArray[np.bool_]:
    """A disk of that radius, shape (2 * radius + 1, 2 * radius + 1)."""
    squares = np.arange(-radius, radius + 1) ** 2
    return squares[:, None] + squares[None, :] <= radius**2


def boundary_radius(shape: tuple[int, ...]) -> int:
    """How far apart boundaries may be and still match, in pixels, for frames of (H, W)."""
    return math.ceil(BOUND_TH * math.hypot(*shape))


def boundary_f(prediction: Labels, truth: Labels, proposals: NDArray[np.int64], objects: NDArray[np.int64]) -> Floats:
    """Boundary measure F of each proposal with each object in one frame.

    F is the harmonic mean of precision (the share of the proposal's boundary within a disk of the object's) and
    recall (the reverse). Two empty masks agree (1), an empty and another do not (0).

    Args:
        prediction: Label map of one frame, shape (H, W).
        truth: Likewise.
        proposals: Ascending ids of the prediction, shape (P,).
        objects: Ascending ids of the ground truth, shape (G,).

    Returns:
        Shape (P, G), in [0, 1].

    Raises:
        ValueError: the shapes differ or are not (H, W).
    """
    if prediction.shape != truth.shape or prediction.ndim != 2:
        raise ValueError(f"expected one frame each, got {prediction.shape = } and {truth.shape = }")
    height, width = truth.shape
    radius = boundary_radius(truth.shape)
    judged = truth != VOID
    of_proposals = _boundaries(np.where(judged, _indices(prediction, proposals), -1))
    of_objects = _boundaries(np.where(judged, _indices(truth, objects), -1))
    proposal_length = np.bincount(of_proposals.label, minlength=len(proposals))
    object_length = np.bincount(of_objects.label, minlength=len(objects))

    # Precision: dilate the few objects, and count each proposal's boundary in them.
    proposal_hits = np.zeros((len(proposals), len(objects)), dtype=np.int64)
    kernel = _disk(radius).astype(np.uint8)
    for column in range(len(objects)):
        boundary = np.zeros(height * width, dtype=np.uint8)
        boundary[of_objects.pixel[of_objects.label == column]] = 1
        near = cv2.dilate(boundary.reshape(height, width), kernel).ravel().astype(bool)
        proposal_hits[:, column] = np.bincount(of_proposals.label[near[of_proposals.pixel]], minlength=len(proposals))
    object_hits = _object_hits(of_proposals, of_objects, truth.shape, len(proposals), len(objects))

    precision = proposal_hits / np.maximum(proposal_length, 1)[:, None]
    recall = object_hits / np.maximum(object_length, 1)[None, :]
    total = precision + recall
    f = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    f[np.ix_(proposal_length == 0, object_length == 0)] = 1.0
    return f


def _object_hits(
    of_proposals: _Boundaries, of_objects: _Boundaries, shape: tuple[int, ...], proposals: int, objects: int
) -> NDArray[np.int64]:
    """How many of each object's boundary pixels lie in the dilated boundary of each proposal, shape (P, G).

    Objects have few boundary pixels: each looks around itself for the proposals whose boundary passes there,
    which costs the same however many proposals there are.
    """
    height, width = shape
    radius = boundary_radius(shape)
    pixels, where = np.unique(of_objects.pixel, return_inverse=True)
    # Up to four proposals share a boundary pixel; the margin saves the test for the frame's border.
    slots = np.full((4, height + 2 * radius, width + 2 * radius), proposals, dtype=np.int32)
    order = np.argsort(of_proposals.pixel, kind="stable")
    sorted_pixel = of_proposals.pixel[order]
    starts = np.flatnonzero(np.diff(sorted_pixel, prepend=-1))
    slot = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    slots[slot, sorted_pixel // width + radius, sorted_pixel % width + radius] = of_proposals.label[order]
    depth = int(slot.max(initial=-1)) + 1

    near = np.zeros((len(pixels), proposals + 1), dtype=bool)  # the last column gathers "no proposal"
    flat = near.ravel()
    rows = np.arange(len(pixels)) * (proposals + 1)
    y, x = pixels // width, pixels % width
    for dy, dx in np.argwhere(_disk(radius)):
        for layer in slots[:depth]:
            flat[rows + layer[y + dy, x + dx]] = True
    hits = np.zeros((proposals, objects), dtype=np.int64)
    for column in range(objects):
        hits[:, column] = near[where[of_objects.label == column], :proposals].sum(0)
    return hits


@dataclass(frozen=True)
class PairScores:
    """J and F of every proposal with every object in every frame of a sequence.

    Attributes:
        proposals: Ids of the prediction, shape (P,).
        objects: Ids of the ground truth, shape (G,).
        j: Region similarity, shape (T, P, G).
        f: Boundary measure, likewise; zeros where it was not asked for.
    """

    proposals: NDArray[np.int64]
    objects: NDArray[np.int64]
    j: Floats
    f: Floats

    def __post_init__(self) -> None:
        expected = (len(self.j), len(self.proposals), len(self.objects))
        if self.j.shape != expected or self.f.shape != expected:
            raise ValueError(f"expected shape {expected}, got {self.j.shape = } and {self.f.shape = }")


def pair_scores(
    prediction: Labels,
    truth: Labels,
    proposals: NDArray[np.int64],
    objects: NDArray[np.int64],
    *,
    with_f: bool = True,
) -> PairScores:
    """J and F of every pair in every frame; label maps of shape (T, H, W)."""
    shape = (len(truth), len(proposals), len(objects))
    j, f = np.zeros(shape), np.zeros(shape)
    for t, (p, g) in enumerate(zip(prediction, truth, strict=True)):
        j[t] = intersection_over_union(p, g, proposals, objects)
        if with_f:
            f[t] = boundary_f(p, g, proposals, objects)
    return PairScores(proposals=proposals, objects=objects, j=j, f=f)


def at_least(ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The ids, and ids that no pixel carries up to `count`: so an object may stay without a proposal."""
    lacking = max(0, count - len(ids))
    first = int(ids.max(initial=0)) + 1
    return np.concatenate([ids, np.arange(first, first + lacking)])


@dataclass(frozen=True)
class ObjectScores:
    """J and F of each object with the proposals that it was matched to.

    Attributes:
        j: Region similarity, shape (T, G).
        f: Boundary measure, likewise.
        proposal: Ids of the matched proposals, shape (T, G).
    """

    j: Floats
    f: Floats
    proposal: NDArray[np.int64]


def _matched(gain: Floats) -> NDArray[np.int64]:
    """For each object the row of its proposal in a matching of the largest total gain, shape (G,)."""
    if gain.shape[0] < gain.shape[1]:
        raise ValueError(f"expected a proposal for each object, got {gain.shape[0]} for {gain.shape[1]}")
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return np.asarray(rows[np.argsort(columns)], dtype=np.int64)


def match_per_sequence(scores: PairScores) -> ObjectScores:
    """One matching for the whole sequence, by the mean of J and F over its frames.

    Source: DAVIS-17 unsupervised, the official protocol (Caelles et al., arXiv:1905.00737).
    """
    rows = _matched((scores.j + scores.f).mean(0))
    columns = np.arange(len(scores.objects))
    proposal = np.broadcast_to(scores.proposals[rows], (len(scores.j), len(columns)))
    return ObjectScores(j=scores.j[:, rows, columns], f=scores.f[:, rows, columns], proposal=proposal)


def match_per_frame(scores: PairScores) -> ObjectScores:
    """A matching of its own for each frame, by J + F: ids need not be constant over time to score.

    Source: the evaluation published with Ding et al., "Betrayed by Attention" (arXiv:2311.17893). It is more
    generous than the official protocol, and figures of the two do not compare.
    """
    rows = np.array([_matched(gain) for gain in scores.j + scores.f], dtype=np.int64)
    rows = rows.reshape(len(scores.j), len(scores.objects))
    frames, columns = np.arange(len(rows))[:, None], np.arange(len(scores.objects))[None, :]
    return ObjectScores(
        j=scores.j[frames, rows, columns], f=scores.f[frames, rows, columns], proposal=scores.proposals[rows]
    )


def foreground_ari(prediction: Labels, truth: Labels) -> float:
    """Adjusted Rand index over the pixels that the truth gives to an object (FG-ARI).

    Every label of the prediction is a group, background too. Label maps of one frame or, for a video, of all:
    then the ids must hold over time to score.

    Source: Hubert and Arabie, "Comparing partitions" (1985); over foreground pixels as in Greff et al.,
    "Multi-object representation learning with iterative variational inference" (ICML 2019).

    Returns:
        At most 1, about 0 for a random partition; 1 where both have one group; NaN without foreground.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"expected the same shape, got {prediction.shape = } and {truth.shape = }")
    inside = truth > 0
    predicted, true = prediction[inside].astype(np.int64) + 1, truth[inside].astype(np.int64)
    if len(true) == 0:
        return math.nan
    groups, objects = object_ids(predicted), object_ids(true)
    table = np.bincount(
        _indices(predicted, groups) * len(objects) + _indices(true, objects), minlength=len(groups) * len(objects)
    ).reshape(len(groups), len(objects))
    together = float(_pairs(table).sum())
    in_groups, in_objects = float(_pairs(table.sum(1)).sum()), float(_pairs(table.sum(0)).sum())
    expected = in_groups * in_objects / max(float(_pairs(np.array(len(true)))), 1.0)
    best = (in_groups + in_objects) / 2
    # Both partitions have a single group, or one group per pixel: they agree, and the index is undefined.
    return 1.0 if best == expected else (together - expected) / (best - expected)


def _pairs(count: NDArray[np.int64]) -> Floats:
    return count * (count - 1.0) / 2


def matched_iou(prediction: Labels, truth: Labels) -> Floats:
    """Intersection over union of each object with its proposal in the best one-to-one matching; mIoU is the mean.

    Args:
        prediction: Label map of one frame, or of a video: then masks are volumes.
        truth: Likewise, the same shape.

    Returns:
        One value for each object in the truth, by ascending id; 0 for an object without a proposal.
    """
    objects = object_ids(truth)
    proposals = at_least(object_ids(prediction), len(objects))
    iou = intersection_over_union(prediction, truth, proposals, objects)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return np.asarray(iou[rows, columns][np.argsort(columns)])
