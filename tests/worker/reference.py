"""Slow twins: float64 NumPy loops, so close to the formulas that reading them is proof. No code of the worker's."""

import itertools
import math

import numpy as np

# --- Evaluation: the measures, a pixel and a pair at a time


def jaccard(a, b):
    """|a ∩ b| / |a ∪ b|, 1 for two empty masks."""
    union = np.sum(a | b)
    return 1.0 if union == 0 else float(np.sum(a & b) / union)


def boundary(mask):
    """The pixels from which a step right, down or both ways crosses the mask's edge."""
    height, width = mask.shape
    edge = np.zeros_like(mask)
    for y, x in itertools.product(range(height), range(width)):
        ahead = [mask[y2, x2] for y2, x2 in ((y, x + 1), (y + 1, x), (y + 1, x + 1)) if y2 < height and x2 < width]
        edge[y, x] = any(bool(value) != bool(mask[y, x]) for value in ahead)
    return edge


def boundary_f(a, b):
    """Harmonic mean of the shares of each boundary that lie within 0.8 % of the diagonal of the other."""
    radius = math.ceil(0.008 * math.sqrt(a.shape[0] ** 2 + a.shape[1] ** 2))
    points_a, points_b = np.argwhere(boundary(a)), np.argwhere(boundary(b))
    if len(points_a) == 0 or len(points_b) == 0:
        return float(len(points_a) == len(points_b))
    near = np.sum((points_a[:, None] - points_b[None]) ** 2, axis=-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def best_matching(gain):
    """The columns' rows in the one-to-one matching of the largest total gain, by trying all."""
    rows, columns = gain.shape
    return max(
        itertools.permutations(range(rows), columns),
        key=lambda chosen: sum(gain[row, column] for column, row in enumerate(chosen)),
    )


def adjusted_rand_index(a, b):
    """(agreement - its expectation) / (its maximum - its expectation), counted over all pairs of pixels."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    same_a = sum(a[i] == a[j] for i, j in pairs)
    same_b = sum(b[i] == b[j] for i, j in pairs)
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    expected = same_a * same_b / len(pairs) if pairs else 0.0
    best = (same_a + same_b) / 2
    return 1.0 if best == expected else (both - expected) / (best - expected)
