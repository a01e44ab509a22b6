"""Rules that choose objects among clusters: background by border share, and the main object of `mode=single`.

Both are departures from the paper (Ding et al., arXiv:2311.17893), whose method ends with the clusters.
"""

import numpy as np
from numpy.typing import NDArray

from worker.method.cluster_stats import ClusterStats

BACKGROUND_SCORE = 0.5  # above it, a cluster's share of the border exceeds its share of the area

# `mode=single` takes the cluster with the highest product of these terms, each raised to its weight, and of its energy.
PERSISTENCE_WEIGHT = 1.0  # share of the frames in which it appears
INSIDE_WEIGHT = 1.0  # 1 - background score
CENTRALITY_WEIGHT = 1.0  # mean centre weight of its tokens
AREA_WEIGHT = 0.5  # mean share of the frame: a speck in the middle is not the main object
MIN_ENERGY = 0.05  # floor of the energy term: in a static scene the other terms decide
MOVING_ENERGY = 0.25  # mean energy above which a cluster moves; low, because objects rest at times
JOIN_SCORE = 0.5  # share of the best score above which moving clusters join a moving main object as its parts


def background_clusters(stats: ClusterStats) -> NDArray[np.bool_]:
    """Background by border share: at least one cluster, and not all of two or more.

    Returns:
        A mask over the clusters, shape (C,).
    """
    # At a threshold of 0.5 not all scores can exceed it, since both shares sum to 1; all can be equal to it.
    background = stats.is_present & (stats.background_score > BACKGROUND_SCORE)
    # Ascending: the last is the most likely background.
    by_score = np.lexsort((stats.area * stats.frames, stats.background_score, stats.is_present))
    if not background.any():
        background[by_score[-1]] = True
    elif background[stats.is_present].all() and stats.is_present.sum() > 1:
        background[by_score[-stats.is_present.sum()]] = False
    return background


def main_object(stats: ClusterStats) -> NDArray[np.bool_]:
    """The main object: the most persistent, central, inner, large and moving cluster, with its moving parts.

    Returns:
        A mask over the clusters, shape (C,); never all of them: a single cluster does not stand out from anything.
    """
    score = (
        stats.persistence**PERSISTENCE_WEIGHT
        * (1 - stats.background_score) ** INSIDE_WEIGHT
        * stats.centrality**CENTRALITY_WEIGHT
        * stats.area**AREA_WEIGHT
        * np.maximum(stats.energy, MIN_ENERGY)
    )
    score[~stats.is_present] = -1
    best = score.argmax()
    main = np.zeros(len(score), bool)
    main[best] = stats.is_present.sum() > 1
    moving_parts = stats.is_present & (stats.energy > MOVING_ENERGY) & (score >= JOIN_SCORE * score[best])
    if moving_parts[best] and not moving_parts[stats.is_present].all():
        main |= moving_parts
    return main
