"""Object scores and clusters -> the object of every token.

An addition to the paper. The scores (`object_scores.py`) decide which tokens belong to an object, the clusters decide
to which one: a cluster is part of an object if most of its tokens are object tokens, and clusters that are always in
contact are one object.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from worker.method.instances import Instances
from worker.method.masks import FrameDistances

MIN_OBJECT_SHARE = 0.5  # share of its tokens above which a cluster is part of an object
MIN_CONTACT = 0.9  # share of the frames with both clusters in which they touch: parts of one object
SCORE_SCALE = 10.0  # nats for a score of 1: as much as separates clusters


@dataclass(frozen=True)
class ObjectTokens:
    """The assignment of tokens to G objects and the background, in the form of an assignment to G + 1 clusters.

    Attributes:
        labels: Object of each token, from 0; G is the background; shape (T, h, w).
        distances: Distances of the tokens of each frame to the objects and the background, shape (N, G + 1).
        is_background: True for the background only, shape (G + 1,).
        background_clusters: Number of clusters that are part of no object.
    """

    labels: NDArray[np.intp]
    distances: FrameDistances
    is_background: NDArray[np.bool_]
    background_clusters: int


def separate_objects(
    assignment: NDArray[np.integer], distances: FrameDistances, clusters: int, score: NDArray[np.floating]
) -> ObjectTokens:
    """Assign each token whose score exceeds 1 to its nearest object, and all others to the background.

    Args:
        assignment: Nearest cluster of each token, shape (T, h, w).
        distances: Distance of each token to each cluster, (N, C) by frame.
        clusters: C, the number of clusters.
        score: Object score of each token, shape (T, h, w).
    """
    groups = _cluster_groups(assignment, clusters, score > 1)
    return _object_tokens(_ObjectDistances(distances, groups, score), groups, score)


def single_object(clusters: int, score: NDArray[np.floating]) -> ObjectTokens:
    """All tokens whose score exceeds 1 as one object; arguments as in `separate_objects`."""
    groups = np.zeros(clusters, np.intp)
    return _object_tokens(_ObjectDistances(None, groups, score), groups, score)


def divide_into_instances(tokens: ObjectTokens, instances: Instances, score: NDArray[np.floating]) -> ObjectTokens:
    """Replace the objects of an assignment by their instances; arguments as in `separate_objects`."""
    distances = _InstanceDistances(instances, score)
    return _assign(distances, instances.count, score, tokens.background_clusters)


def _object_tokens(
    distances: "_ObjectDistances", groups: NDArray[np.intp], score: NDArray[np.floating]
) -> ObjectTokens:
    return _assign(distances, int(groups.max()) + 1, score, int((groups < 0).sum()))


def _assign(
    distances: FrameDistances, count: int, score: NDArray[np.floating], background_clusters: int
) -> ObjectTokens:
    """The assignment of tokens to the nearest of `count` objects and the background."""
    labels = np.stack([distances[t].argmin(1).reshape(score.shape[1:]) for t in range(len(score))])
    return ObjectTokens(labels, distances, np.arange(count + 1) == count, background_clusters)


class _InstanceDistances:
    """Distance to an instance: by its share of the patch, beyond that of the largest. To the background: the score."""

    def __init__(self, instances: Instances, score: NDArray[np.floating]) -> None:
        self._instances, self._score = instances, score

    def __getitem__(self, frame_index: int) -> NDArray[np.floating]:
        score, shares = self._score[frame_index].ravel(), self._instances.shares(frame_index)
        result = np.zeros((len(score), self._instances.count + 1), np.float32)
        result[:, :-1] = SCORE_SCALE * (shares.max(1, initial=0, keepdims=True) - shares)
        result[score <= 1, :-1] = 0  # as in `_ObjectDistances`
        result[:, -1] = SCORE_SCALE * (score - 1)
        return result


class _ObjectDistances:
    """Distance to an object: to its nearest cluster, beyond that of the nearest object. To the background: the score.

    Interpolated distances therefore separate background where the interpolated score is 1.

    Args:
        distances: Distances to the clusters; None for a single object.
        groups: Object of each cluster from 0, -1 for none, shape (C,).
        score: Object score of each token, shape (T, h, w).
    """

    def __init__(self, distances: FrameDistances | None, groups: NDArray[np.intp], score: NDArray[np.floating]) -> None:
        self._distances, self._groups, self._score = distances, groups, score

    def __getitem__(self, frame_index: int) -> NDArray[np.floating]:
        score = self._score[frame_index].ravel()
        count = int(self._groups.max()) + 1
        result = np.zeros((len(score), count + 1), np.float32)
        if self._distances is not None:
            to_clusters = np.asarray(self._distances[frame_index], np.float32)
            for group in range(count):
                result[:, group] = to_clusters[:, self._groups == group].min(1)
            result[:, :count] -= result[:, :count].min(1, initial=np.inf, keepdims=True)
            # Where no object is present its distances mean nothing; at 0 they leave the outline to the score alone.
            result[score <= 1, :count] = 0
        result[:, count] = SCORE_SCALE * (score - 1)
        return result


def _cluster_groups(assignment: NDArray[np.integer], clusters: int, is_object: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Object of each cluster from 0, -1 for clusters that are part of none, shape (C,)."""
    tokens = np.bincount(assignment.ravel(), minlength=clusters)
    shares = np.bincount(assignment.ravel(), is_object.ravel(), clusters) / np.maximum(tokens, 1)
    parts = shares > MIN_OBJECT_SHARE
    if not parts.any() and is_object.any():
        parts[shares.argmax()] = True
    groups = np.full(clusters, -1)
    touching, together = _contacts(assignment, parts, is_object)
    joined = (together > 0) & (touching >= MIN_CONTACT * together)
    groups[parts] = connected_components(joined, directed=False)[1]
    return groups


def _contacts(
    assignment: NDArray[np.integer], parts: NDArray[np.bool_], is_object: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Number of frames in which two clusters under `parts` touch, and in which both have object tokens, (P, P) each."""
    count = int(parts.sum())
    index = np.where(parts, parts.cumsum() - 1, count)
    touching, together = np.zeros((2, count, count), np.intp)
    for frame, mask in zip(assignment, is_object, strict=True):
        labels = np.where(mask, index[frame], count)
        pairs = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
        touches = np.zeros((count + 1, count + 1), bool)
        for first, second in pairs:
            touches[first, second] = touches[second, first] = True
        present = np.isin(np.arange(count), labels)
        touching += touches[:count, :count]
        together += present[:, None] & present
    return touching, together
