"""The measures of published evaluations, computed from one segmentation of a sequence.

Clusters, not objects, are matched to the ground truth, since the paper does not separate background. Further measures
need no ground truth to choose: the main object, and all clusters that are not background.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

from worker.evaluation import metrics
from worker.evaluation.labels import VOID
from worker.evaluation.protocols import Metric, Protocol
from worker.evaluation.score import score_sequence


class Measure(StrEnum):
    """A column of an evaluation."""

    best_cluster_j = "best-cluster J"
    """J of the best single cluster of the sequence, chosen with the ground truth."""
    best_union_j = "best-union J"
    """J of the union of all clusters that lie mostly inside the object, chosen with the ground truth."""
    j_per_frame = "J per-frame"
    """J of the best cluster of each frame, as in published results for one object."""
    single_j = "single J"
    """J of the main object, chosen without ground truth."""
    single_f = "single F"
    foreground_j = "foreground J"
    """J of all objects together: what is not background, chosen without ground truth."""
    best_object_j = "best-object J"
    """J of the best object that a job returns, chosen with the ground truth."""
    objects_fg_ari = "objects FG-ARI"
    """Of the objects that a job returns, instances of one kind apart, over the video; background is one more group."""
    objects_fg_ari_per_frame = "objects FG-ARI per-frame"
    objects_miou = "objects mIoU"
    single_j_inner = "single J, inner frames"
    """Without the first and the last annotated frame, as the benchmark of DAVIS-16."""
    j_and_f = "J&F"
    """Official DAVIS-17 unsupervised: 20 proposals, one matching a sequence."""
    j = "J"
    f = "F"
    j_and_f_per_frame = "J&F per-frame"
    """As published with the method: 300 proposals, a matching for each frame."""
    fg_ari = "FG-ARI"
    fg_ari_per_frame = "FG-ARI per-frame"
    miou = "mIoU"
    miou_per_frame = "mIoU per-frame"
    clusters = "clusters"
    """Number of clusters; not a score."""


WITH_BOUNDARIES = (Measure.j_and_f, Measure.j, Measure.f, Measure.j_and_f_per_frame)


@dataclass(frozen=True)
class Segmentation:
    """One level of a sequence: the clusters in the pixels of annotated frames, and their roles.

    Attributes:
        labels: The cluster of each pixel, ids from 1, uint16, shape (A, H, W).
        main: Pixels of the main object, bool, shape (A, H, W).
        objects: The object of each pixel as a job returns it, ids from 1, 0 for background, uint16, shape (A, H, W).
        clusters: Number of clusters.
    """

    labels: NDArray[np.uint16]
    main: NDArray[np.bool_]
    objects: NDArray[np.uint16]
    clusters: int


@dataclass(frozen=True)
class Measured:
    """The measures of one sequence.

    Attributes:
        total: The value of the sequence.
        per_frame: A value per annotated frame, NaN where undefined; absent for measures of whole videos.
        per_object: A value per object, for measures whose mean is over the objects of all sequences.
    """

    total: dict[Measure, float]
    per_frame: dict[Measure, list[float]]
    per_object: dict[Measure, list[float]]


@dataclass(frozen=True)
class _ClusterOverlaps:
    """Pixels of every cluster in every frame, without void pixels.

    Attributes:
        shared: Pixels that each cluster shares with the object, shape (A, C).
        area: Pixels of each cluster, shape (A, C).
        object_area: Pixels of the object, shape (A,).
    """

    shared: NDArray[np.int64]
    area: NDArray[np.int64]
    object_area: NDArray[np.int64]

    @classmethod
    def count(cls, labels: NDArray[np.uint16], truth: metrics.Labels) -> Self:
        """One pass over the pixels; clusters are all ids up to the highest, background 0 included."""
        clusters = max(int(labels.max(initial=0)), 1) + 1
        table = np.empty((len(labels), clusters, 3), dtype=np.int64)  # outside, inside, void
        for frame, (label_map, true) in enumerate(zip(labels, truth, strict=True)):
            place = np.where(true == VOID, 2, true > 0).astype(np.int32)
            codes = label_map.astype(np.int32) * 3 + place
            table[frame] = np.bincount(codes.ravel(), minlength=3 * clusters).reshape(clusters, 3)
        return cls(table[..., 1], table[..., 0] + table[..., 1], table[..., 1].sum(1))

    def j(self, ids: NDArray[np.int64]) -> metrics.Floats:
        """Jaccard index of the union of some clusters in each frame, shape (A,); 1 where both are empty."""
        ids = ids[ids < self.area.shape[1]]  # the others have no pixels
        return self._jaccard(self.shared[:, ids].sum(1), self.area[:, ids].sum(1), self.object_area)

    def j_of_each(self) -> metrics.Floats:
        """Jaccard index of every cluster but 0 in each frame, shape (A, C - 1)."""
        return self._jaccard(self.shared[:, 1:], self.area[:, 1:], self.object_area[:, None])

    @staticmethod
    def _jaccard(shared: NDArray[np.int64], area: NDArray[np.int64], object_area: NDArray[np.int64]) -> metrics.Floats:
        union = area + object_area - shared
        return np.where(union == 0, 1.0, shared / np.maximum(union, 1))


def measure_one_object(
    found: Segmentation, truth: metrics.Labels, *, on_frame: Callable[[int], None] = lambda _frames_done: None
) -> Measured:
    """The measures of a data set with one object per sequence.

    Args:
        found: The segmentation.
        truth: 0 background, 1 the object, `labels.VOID`, shape (A, H, W).
        on_frame: Called with the number of frames whose boundaries are measured.
    """
    overlaps = _ClusterOverlaps.count(found.labels, truth)
    j = overlaps.j_of_each()
    objects = np.unique(found.objects[found.objects > 0]).astype(np.int64)
    object_overlaps = _ClusterOverlaps.count(found.objects, truth)
    objects_j = np.stack([object_overlaps.j(ids) for ids in (objects[:, None] if len(objects) else [objects])], 1)
    inside = np.flatnonzero(2 * overlaps.shared.sum(0) > overlaps.area.sum(0))
    per_frame = {
        Measure.best_cluster_j: j[:, j.mean(0).argmax()],
        Measure.best_union_j: overlaps.j(inside[inside > 0]),
        Measure.j_per_frame: j.max(1),
        Measure.single_j: _mask_j(found.main, truth),
        Measure.single_f: _boundary_f(found.main, truth, on_frame),
        Measure.foreground_j: _mask_j(found.objects > 0, truth),
        Measure.best_object_j: objects_j[:, objects_j.mean(0).argmax()],
    }
    total = {measure: float(values.mean()) for measure, values in per_frame.items()}
    inner = per_frame[Measure.single_j][1:-1]
    total[Measure.single_j_inner] = float(inner.mean()) if len(inner) else math.nan
    total[Measure.clusters] = float(found.clusters)
    return Measured(total, {measure: values.tolist() for measure, values in per_frame.items()}, {})


def _mask_j(masks: NDArray[np.bool_], truth: metrics.Labels) -> metrics.Floats:
    """Jaccard index of a mask in each frame, shape (A,)."""
    return _ClusterOverlaps.count(masks.astype(np.uint16), truth).j(np.array([1]))


def _boundary_f(masks: NDArray[np.bool_], truth: metrics.Labels, on_frame: Callable[[int], None]) -> metrics.Floats:
    """Boundary measure of a mask in each frame, shape (A,)."""
    the_object = np.array([1])
    values = np.empty(len(truth))
    for frame, (mask, true) in enumerate(zip(masks, truth, strict=True)):
        values[frame] = metrics.boundary_f(mask.astype(np.uint8), true, the_object, the_object)[0, 0]
        on_frame(frame + 1)
    return values


def measure_several_objects(
    found: Segmentation, truth: metrics.Labels, *, boundaries: bool, last_frame_is_copied: bool
) -> Measured:
    """The measures of a data set with several objects per sequence.

    Args:
        found: The segmentation.
        truth: Ids and `labels.VOID`, shape (A, H, W).
        boundaries: Whether to compute J and F, which take most of the time.
        last_frame_is_copied: In the published protocol, score the masks of the second last frame in the last one,
            which the published evaluation does not segment.
    """
    j_and_f = [Metric.j, Metric.f, Metric.j_and_f]
    wanted = [*(j_and_f if boundaries else []), Metric.fg_ari, Metric.miou]
    official = score_sequence(found.labels, truth, wanted=wanted, protocol=Protocol.per_sequence)
    labels = found.labels
    if last_frame_is_copied and len(labels) > 1:
        labels = np.concatenate([labels[:-1], labels[-2:-1]])
    published = score_sequence(labels, truth, wanted=wanted, protocol=Protocol.per_frame)
    ari_and_iou = [Metric.fg_ari, Metric.miou]
    objects = score_sequence(found.objects, truth, wanted=ari_and_iou, protocol=Protocol.per_sequence)
    objects_per_frame = score_sequence(found.objects, truth, wanted=[Metric.fg_ari], protocol=Protocol.per_frame)
    sources = {
        Measure.objects_fg_ari: (objects, Metric.fg_ari),
        Measure.objects_fg_ari_per_frame: (objects_per_frame, Metric.fg_ari),
        Measure.objects_miou: (objects, Metric.miou),
        Measure.fg_ari: (official, Metric.fg_ari),
        Measure.fg_ari_per_frame: (published, Metric.fg_ari),
        Measure.miou: (official, Metric.miou),
        Measure.miou_per_frame: (published, Metric.miou),
    }
    if boundaries:
        sources |= {
            Measure.j_and_f: (official, Metric.j_and_f),
            Measure.j: (official, Metric.j),
            Measure.f: (official, Metric.f),
            Measure.j_and_f_per_frame: (published, Metric.j_and_f),
        }
    whole = {
        Measure.fg_ari,
        Measure.miou,
        Measure.objects_fg_ari,
        Measure.objects_miou,
    }  # of the video; the per-frame measures have names of their own
    pooled = set(WITH_BOUNDARIES)
    return Measured(
        {measure: scores.total[metric] for measure, (scores, metric) in sources.items()}
        | {Measure.clusters: float(found.clusters)},
        {m: scores.per_frame[metric].tolist() for m, (scores, metric) in sources.items() if m not in whole},
        {m: scores.per_object[metric].tolist() for m, (scores, metric) in sources.items() if m in pooled},
    )
