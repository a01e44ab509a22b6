"""What a data set's published figures measure, computed from one segmentation of a sequence.

Clusters, not objects, are what is matched to the ground truth: the paper tells no background apart. Beside them stand
the answers that need no ground truth: the main object, and all that is not background.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from worker.evaluation import metrics
from worker.evaluation.protocols import Metric, Protocol
from worker.evaluation.score import SequenceScores, score_sequence


class Measure(StrEnum):
    """A column of an evaluation."""

    best_cluster_j = "best-cluster J"
    """J of the one cluster of the sequence that fits best, chosen by the ground truth."""
    best_union_j = "best-union J"
    """J of all clusters together that lie mostly inside the object, by the ground truth."""
    j_per_frame = "J per-frame"
    """J of the cluster that fits best in each frame, as published figures for one object."""
    single_j = "single J"
    """J of the main object, chosen without ground truth."""
    single_f = "single F"
    foreground_j = "foreground J"
    """J of all that is not background, told apart without ground truth."""
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
    """How many there are: no score."""


ONE_OBJECT = (
    *(Measure.best_cluster_j, Measure.best_union_j, Measure.j_per_frame, Measure.single_j, Measure.single_f),
    *(Measure.single_j_inner, Measure.foreground_j, Measure.clusters),
)
WITH_BOUNDARIES = (Measure.j_and_f, Measure.j, Measure.f, Measure.j_and_f_per_frame)
SEVERAL_OBJECTS = (Measure.fg_ari, Measure.fg_ari_per_frame, Measure.miou, Measure.miou_per_frame, Measure.clusters)


@dataclass(frozen=True)
class Segmentation:
    """One level of a sequence: its clusters in the pixels of annotated frames, and what they are taken for.

    Attributes:
        labels: The cluster of each pixel, ids from 1, uint16, shape (A, H, W).
        main: Ids of the clusters that make the main object.
        objects: Ids of the clusters that are not background.
        clusters: How many there are.
    """

    labels: NDArray[np.uint16]
    main: frozenset[int]
    objects: frozenset[int]
    clusters: int


@dataclass(frozen=True)
class Measured:
    """What one sequence measured: every value a mean over its own list, so that a data set can pool them.

    Attributes:
        total: The value of the sequence.
        per_frame: A value for each annotated frame, NaN where there is none; not for measures of whole videos.
        per_object: A value for each object, for measures whose mean is over the objects of all sequences.
    """

    total: dict[Measure, float]
    per_frame: dict[Measure, list[float]]
    per_object: dict[Measure, list[float]]


def measure_one_object(found: Segmentation, truth: metrics.Labels) -> Measured:
    """The measures of a data set with one object a sequence.

    Args:
        found: The segmentation.
        truth: 0 background, 1 the object, shape (A, H, W).
    """
    proposals, one = metrics.at_least(metrics.object_ids(found.labels), 1), np.array([1])
    frames = list(zip(found.labels, truth, strict=True))
    j = np.array([metrics.intersection_over_union(p, g, proposals, one)[:, 0] for p, g in frames])  # (A, P)
    shared, of_proposal, _ = metrics.overlaps(found.labels, truth, proposals, one)
    inside = proposals[2 * shared[:, 0] > of_proposal]

    def mask(ids: "NDArray[np.int64] | frozenset[int]") -> NDArray[np.uint8]:
        return np.isin(found.labels, sorted(ids)).astype(np.uint8)

    def scored(ids: "NDArray[np.int64] | frozenset[int]", *wanted: Metric) -> SequenceScores:
        return score_sequence(mask(ids), truth, wanted=wanted, protocol=Protocol.foreground)

    single = scored(found.main, Metric.j, Metric.f)
    per_frame = {
        Measure.best_cluster_j: j[:, j.mean(0).argmax()],
        Measure.best_union_j: scored(inside, Metric.j).per_frame[Metric.j],
        Measure.j_per_frame: j.max(1),
        Measure.single_j: single.per_frame[Metric.j],
        Measure.single_f: single.per_frame[Metric.f],
        Measure.foreground_j: scored(found.objects, Metric.j).per_frame[Metric.j],
    }
    total = {measure: float(values.mean()) for measure, values in per_frame.items()}
    inner = per_frame[Measure.single_j][1:-1]
    total[Measure.single_j_inner] = float(inner.mean()) if len(inner) else math.nan
    total[Measure.clusters] = float(found.clusters)
    return Measured(total, {measure: values.tolist() for measure, values in per_frame.items()}, {})


def measure_several_objects(
    found: Segmentation, truth: metrics.Labels, *, boundaries: bool, last_frame_is_copied: bool
) -> Measured:
    """The measures of a data set with several objects a sequence.

    Args:
        found: The segmentation.
        truth: Ids and `labels.VOID`, shape (A, H, W).
        boundaries: Whether J and F are wanted too, which cost most of the time.
        last_frame_is_copied: For the figures as published, take for the last frame the masks of the one before: the
            published evaluation never segments it.
    """
    j_and_f = [Metric.j, Metric.f, Metric.j_and_f]
    wanted = [*(j_and_f if boundaries else []), Metric.fg_ari, Metric.miou]
    official = score_sequence(found.labels, truth, wanted=wanted, protocol=Protocol.per_sequence)
    labels = found.labels
    if last_frame_is_copied and len(labels) > 1:
        labels = np.concatenate([labels[:-1], labels[-2:-1]])
    published = score_sequence(labels, truth, wanted=wanted, protocol=Protocol.per_frame)
    sources = {
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
    whole = {Measure.fg_ari, Measure.miou}  # of the video: their values in each frame belong to the others
    pooled = set(WITH_BOUNDARIES)
    return Measured(
        {measure: scores.total[metric] for measure, (scores, metric) in sources.items()}
        | {Measure.clusters: float(found.clusters)},
        {m: scores.per_frame[metric].tolist() for m, (scores, metric) in sources.items() if m not in whole},
        {m: scores.per_object[metric].tolist() for m, (scores, metric) in sources.items() if m in pooled},
    )
