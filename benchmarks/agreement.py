"""How far two labellings of the same tokens agree."""

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


def adjusted_rand_index(a: Labels, b: Labels) -> float:
    """1 for the same labels up to their names, about 0 for chance (Hubert and Arabie, 1985)."""
    table = _together(a, b)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, in_a, in_b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = in_a * in_b / pairs(np.array([float(len(a))]))
    most = (in_a + in_b) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def mean_j(exact: Labels, other: Labels) -> float:
    """The mean, over the clusters of the first, of J (intersection over union) with the cluster matched to each.

    Matched one to one for the largest total; a cluster without a match has J = 0.
    """
    from scipy.optimize import linear_sum_assignment  # takes a second to import, which each measurement would pay

    table = _together(exact, other)
    j = table / np.maximum(table.sum(1, keepdims=True) + table.sum(0) - table, 1)
    rows, columns = linear_sum_assignment(j, maximize=True)
    return float(j[rows, columns].sum() / len(np.unique(exact)))


def same_label(a: Labels, b: Labels) -> float:
    """Share of the tokens that agree, after each label of b is read as the label of a it shares most tokens with."""
    return float((_together(a, b).argmax(0)[b] == a).mean())


def _together(a: Labels, b: Labels) -> NDArray[np.float64]:
    """How many tokens each pair of labels holds."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    return table
