"""Assignment -> objects of the video, decided on the patch grid.

Every decision about the whole video is taken here: which clusters are background, which are too small, and the id of
each object. Pixels follow frame by frame (`edges.py`), so memory does not grow with the length of the video.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uvos.contract import Background, Mode
from worker.method.cluster_stats import ClusterCounts, ClusterStats
from worker.method.foreground import background_clusters, main_object

WHOLE_FRAME = 0.95  # mean share of the frame above which a single object does not stand apart from anything


class FrameDistances(Protocol):
    """Distances by frame: `distances[t]` has shape (N, C). An array, a memory map, or computed on demand."""

    def __getitem__(self, frame_index: int, /) -> NDArray[np.floating]: ...


@dataclass(frozen=True)
class VideoObject:
    """One object of a video.

    Attributes:
        id: Its value in the label maps, from 1 by first appearance, then by area.
        area: Mean share of the frame over the frames in which it appears, in (0, 1].
        first_frame: Index of the first frame in which it appears.
        last_frame: Index of the last frame in which it appears.
        frames: Number of frames in which it appears.
        background_score: In [0, 1]; above 0.5 its share of the frame border exceeds its share of the area.
        object_score: In [0, 1], half the mean object score of its tokens; None without object scores.
    """

    id: int
    area: float
    first_frame: int
    last_frame: int
    frames: int
    background_score: float
    object_score: float | None = None


@dataclass(frozen=True)
class ObjectDecision:
    """The role of each cluster of a video.

    Attributes:
        object_ids: Object id of each cluster, 0 for background, uint16, shape (C,).
        is_candidate: Whether pixels can be assigned to the cluster, bool, shape (C,); False for clusters that were
            merged or are empty.
        objects: The objects, by id.
        background_clusters: Number of background clusters.
        merged_clusters: Clusters dropped by `min_area`; each of their tokens goes to its nearest remaining cluster.
    """

    object_ids: NDArray[np.uint16]
    is_candidate: NDArray[np.bool_]
    objects: tuple[VideoObject, ...]
    background_clusters: int
    merged_clusters: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.object_ids.shape != self.is_candidate.shape or self.object_ids.ndim != 1:
            raise ValueError(
                f"expected one value per cluster, got {self.object_ids.shape = }, {self.is_candidate.shape = }"
            )
        if not self.is_candidate.any():
            raise ValueError("expected at least one candidate cluster, got none")

    @property
    def nothing_stands_apart(self) -> bool:
        """Whether there is no object, or a single one that covers nearly the whole frame."""
        return not self.objects or (len(self.objects) == 1 and self.objects[0].area > WHOLE_FRAME)


def decide_objects(  # noqa: PLR0913 - one parameter per input of the rules
    assignment: NDArray[np.integer],
    clusters: int,
    *,
    mode: Mode = Mode.multi,
    background: Background = Background.auto,
    min_area: float = 0.0,
    distances: FrameDistances | None = None,
    motion: NDArray[np.floating] | None = None,
    is_background: NDArray[np.bool_] | None = None,
) -> ObjectDecision:
    """Decide for each cluster: background, an object with an id, or merged into its neighbours.

    1. `min_area`: clusters with a smaller mean share of the frame (over the frames in which they appear) are dropped
       together and each of their tokens goes to its nearest remaining cluster. This repeats until no cluster is
       smaller; the largest cluster always stays.
    2. Background, with `background=auto`: the clusters whose share of all border tokens exceeds their share of all
       tokens (background score above 0.5); if there is none among two or more clusters, the one with the highest
       score. A single cluster is background. Motion is not used, since objects may rest. With `keep`, no cluster is
       background.
    3. `mode=single` instead keeps one object (`foreground.main_object`) and makes all other clusters background,
       whatever `background` is.

    A result is therefore never all foreground, except with `keep`, and with two or more clusters never all background.

    Source: the assignment is the last step of the method of Ding et al., arXiv:2311.17893 (Algorithm 1). Background,
    areas and the choice of a single object are additions.

    Args:
        assignment: Nearest cluster of each token, shape (T, h, w), values in [0, clusters).
        clusters: C, the number of clusters.
        mode: Several objects, or the main object only.
        background: Whether to separate background.
        min_area: Share of the frame, in [0, 1).
        distances: Distance of each token to each cluster; read only for frames with tokens of dropped clusters.
            Required when `min_area` > 0.
        motion: Motion energy of each token in 0..1, shape (T, h, w), from `worker.method.motion.motion_energy`; None
            without motion.
        is_background: The background clusters if they are known, bool, shape (C,); steps 2 and 3 are then skipped.

    Raises:
        ValueError: shapes or values do not fit, or `distances` is required and missing.
    """
    if assignment.ndim != 3 or assignment.size == 0:
        raise ValueError(f"expected an assignment of shape (T, h, w), got {assignment.shape = }")
    if assignment.min() < 0 or assignment.max() >= clusters:
        raise ValueError(f"expected clusters in [0, {clusters}), got {assignment.min()} to {assignment.max()}")
    if motion is not None and motion.shape != assignment.shape:
        raise ValueError(f"expected the motion of each token, got {motion.shape = } for {assignment.shape = }")
    counts = ClusterCounts.of(assignment, clusters, motion)
    counts, merged = _merge_small_clusters(assignment, counts, min_area, distances)
    stats = ClusterStats.of(counts)
    if is_background is not None:
        groups = _separate_groups(stats.is_present & ~is_background)
    elif mode is Mode.single:
        groups = main_object(stats).astype(np.intp)
    elif background is Background.auto:
        groups = _separate_groups(stats.is_present & ~background_clusters(stats))
    else:
        groups = _separate_groups(stats.is_present)
    object_ids, objects = _number_objects(ClusterStats.of(counts.grouped(groups)))
    return ObjectDecision(
        object_ids=object_ids[groups],
        is_candidate=stats.is_present,
        objects=objects,
        background_clusters=int((stats.is_present & (groups == 0)).sum()),
        merged_clusters=tuple(np.flatnonzero(merged).tolist()),
    )


def without_whole_frame(decision: ObjectDecision) -> ObjectDecision:
    """The decision with a single object that covers nearly the whole frame made background; others unchanged."""
    if not decision.nothing_stands_apart:
        return decision
    return replace(
        decision,
        object_ids=np.zeros_like(decision.object_ids),
        objects=(),
        background_clusters=int(decision.is_candidate.sum()),
    )


def with_object_scores(
    decision: ObjectDecision, assignment: NDArray[np.integer], score: NDArray[np.floating]
) -> ObjectDecision:
    """The decision with the `object_score` of every object.

    Args:
        decision: The objects.
        assignment: Cluster of each token, shape (T, h, w); tokens of clusters that are part of no object do not count.
        score: Object score of each token in [0, 2], shape (T, h, w), from `worker.method.object_scores`.
    """
    ids = decision.object_ids[assignment].ravel()
    tokens = np.bincount(ids, minlength=len(decision.objects) + 1)
    means = np.bincount(ids, score.ravel() / 2, len(tokens)) / np.maximum(tokens, 1)
    objects = (replace(o, object_score=float(means[o.id].clip(0, 1))) for o in decision.objects)
    return replace(decision, objects=tuple(objects))


def renumber_as_drawn(
    decision: ObjectDecision, areas: NDArray[np.integer]
) -> tuple[ObjectDecision, NDArray[np.uint16]]:
    """Renumber the objects of a decision by the label maps that were drawn with it.

    `decide_objects` works on patches; at the size of the video smooth edges may remove all pixels of a small object
    from a frame, or add some. In the result ids follow first appearance and area in pixels, objects without pixels
    are removed, and frame ranges are those of the written files.

    Args:
        decision: The decision that the label maps were drawn with.
        areas: Pixels of each label in each frame, shape (T, objects + 1).

    Returns:
        The decision with the new ids, and the new id of each previous label, shape (objects + 1,).

    Raises:
        ValueError: `areas` does not have one column per label.
    """
    if areas.ndim != 2 or areas.shape[1] != len(decision.objects) + 1:
        raise ValueError(f"expected the areas of {len(decision.objects) + 1} labels, got {areas.shape = }")
    shares = areas / areas.sum(1, keepdims=True)
    drawn = []
    for video_object in decision.objects:
        frames = np.flatnonzero(areas[:, video_object.id])
        if len(frames):
            area = float(shares[frames, video_object.id].mean())
            span = {"first_frame": int(frames[0]), "last_frame": int(frames[-1]), "frames": len(frames)}
            drawn.append(replace(video_object, area=area, **span))
    drawn.sort(key=lambda video_object: (video_object.first_frame, -video_object.area, video_object.id))
    new_ids = np.zeros(areas.shape[1], np.uint16)
    new_ids[[video_object.id for video_object in drawn]] = np.arange(1, len(drawn) + 1)
    objects = tuple(replace(video_object, id=index + 1) for index, video_object in enumerate(drawn))
    return replace(decision, object_ids=new_ids[decision.object_ids], objects=objects), new_ids


def _merge_small_clusters(
    assignment: NDArray[np.integer], initial: ClusterCounts, min_area: float, distances: FrameDistances | None
) -> tuple[ClusterCounts, NDArray[np.bool_]]:
    """Counts after clusters below `min_area` were merged into others, and a mask of the merged ones, shape (C,)."""
    merged = np.zeros(initial.tokens.shape[1], bool)
    if min_area <= 0:
        return initial, merged
    if distances is None:
        raise ValueError("min_area > 0 requires distances, to find the nearest remaining cluster")
    counts = initial
    while True:
        stats = ClusterStats.of(counts)
        small = stats.is_present & (stats.area < min_area)
        small[stats.area.argmax()] = False
        if not small.any():
            return counts, merged
        merged |= small
        counts = initial.without(merged)
        remaining = np.flatnonzero(counts.tokens.any(0))
        for frame_index in np.flatnonzero(initial.tokens[:, merged].any(1)).tolist():
            orphaned = merged[assignment[frame_index].ravel()]
            nearest = np.asarray(distances[frame_index])[orphaned][:, remaining].argmin(1)
            counts.add(frame_index, orphaned, remaining[nearest])


def _separate_groups(objects: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Groups of clusters, shape (C,): 1, 2, … for the clusters under the mask, 0 for all others."""
    return np.where(objects, objects.cumsum(), 0)


def _number_objects(stats: ClusterStats) -> tuple[NDArray[np.uint16], tuple[VideoObject, ...]]:
    """Object id of each group (0: background), and the objects, by first appearance and then by area."""
    order = np.lexsort((-stats.area[1:], stats.first_frame[1:])) + 1  # stable: ties stay in the clusters' order
    object_ids = np.zeros(len(stats.area), np.uint16)
    object_ids[order] = np.arange(1, len(order) + 1)
    objects = (
        VideoObject(
            id=int(object_ids[group]),
            area=float(stats.area[group]),
            first_frame=int(stats.first_frame[group]),
            last_frame=int(stats.last_frame[group]),
            frames=int(stats.frames[group]),
            background_score=float(stats.background_score[group]),
        )
        for group in order
    )
    return object_ids, tuple(objects)
