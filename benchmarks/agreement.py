"""Measures of agreement between two labellings of the same tokens."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def adjusted_rand_index(a: Labels, b: Labels) -> float:
    """1 for equal partitions, about 0 for chance (Hubert and Arabie, 1985)."""
    table = _overlaps(a, b)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, in_a, in_b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = in_a * in_b / pairs(np.array([float(len(a))]))
    most = (in_a + in_b) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def mean_j(exact: Labels, other: Labels) -> float:
    """Mean over the clusters of the first of their Jaccard index J with the matched cluster of the other.

    The matching is one to one and maximizes the total; a cluster without a match has J = 0.
    """
    from scipy.optimize import linear_sum_assignment  # imported late: takes a second, which each measurement would pay

    table = _overlaps(exact, other)
    j = table / np.maximum(table.sum(1, keepdims=True) + table.sum(0) - table, 1)
    rows, columns = linear_sum_assignment(j, maximize=True)
    return float(j[rows, columns].sum() / len(np.unique(exact)))


def same_label(a: Labels, b: Labels) -> float:
    """Share of tokens that agree when each label of b is replaced by the label of a that it overlaps most."""
    return float((_overlaps(a, b).argmax(0)[b] == a).mean())


def _overlaps(a: Labels, b: Labels) -> NDArray[np.float64]:
    """Number of tokens that each pair of labels shares."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    return table
