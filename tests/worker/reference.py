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


# --- Attention and clustering


def attention(queries, keys):
    """A: per query token the mean over heads of softmax(q·k/√d) over all key tokens; (n, heads, d), (m, heads, d)."""
    rows = np.zeros((len(queries), len(keys)))
    _, heads, depth = queries.shape
    for i, query in enumerate(queries.astype(np.float64)):
        for head in range(heads):
            scores = np.array([query[head] @ key[head] / np.sqrt(depth) for key in keys.astype(np.float64)])
            weights = np.exp(scores - scores.max())
            rows[i] += weights / weights.sum() / heads
    return rows


def symmetric_kl(p, q):
    """The definition, one pair at a time: KL(p‖q) + KL(q‖p)."""
    return np.array([[_pair(a, b) for b in q] for a in p])


def _pair(a, b):
    log_a, log_b = np.log(np.maximum(a, 1e-12)), np.log(np.maximum(b, 1e-12))
    return np.sum(a * (log_a - log_b)) + np.sum(b * (log_b - log_a))


def algorithm1(rows, tau):
    """Algorithm 1: (centres, assignment, parents of each round, smallest |J - τ| that was decided on)."""
    centres, parents, margin = rows, [], np.inf
    while True:
        remaining = list(range(len(centres)))
        new_centres, parent = [], np.full(len(centres), -1)
        while remaining:
            x = remaining[0]
            distance = {y: _pair(centres[x], centres[y]) for y in remaining}
            taken = [y for y in remaining if distance[y] < tau]
            margin = min([margin] + [abs(distance[y] - tau) for y in remaining if y != x])
            parent[taken] = len(new_centres)
            new_centres.append(np.mean([centres[y] for y in taken], axis=0))
            remaining = [y for y in remaining if y not in taken]
        unchanged = len(new_centres) == len(centres)
        if not unchanged or not parents:
            parents.append(parent)
        if unchanged:
            break
        centres = np.array(new_centres)
    assignment = np.array([np.argmin([_pair(row, centre) for centre in centres]) for row in rows])
    return centres, assignment, parents, margin


def windowed(rows, tau, tokens_per_frame):
    """The released code's procedure: as `algorithm1`, but smoothed in windows of 3 frames first, and with J ≤ τ."""
    centres, parents, margin = [], [np.full(len(rows), -1)], np.inf
    for start in range(0, len(rows), 3 * tokens_per_frame):
        window = rows[start : start + 3 * tokens_per_frame]
        smooth = np.zeros_like(window)
        for i, row in enumerate(window):
            distance = np.array([_pair(row, other) for other in window])
            margin = min([margin] + [abs(d - tau) for j, d in enumerate(distance) if j != i])
            smooth[i] = np.mean(window[distance <= tau], axis=0)
            smooth[i] /= smooth[i].sum()
        means, parent, decided = _released_merge(smooth, tau)
        parents[0][start : start + len(window)] = parent + len(centres)
        centres += means
        margin = min(margin, decided)
    while True:
        new_centres, parent, decided = _released_merge(centres, tau)
        margin = min(margin, decided)
        if len(new_centres) == len(centres):
            break
        centres = new_centres
        parents.append(parent)
    assignment = np.array([np.argmin([_pair(row, centre) for centre in centres]) for row in rows])
    return np.array(centres), assignment, parents, margin


def _released_merge(centres, tau):
    free = [True] * len(centres)
    merged, parent, margin = [], np.full(len(centres), -1), np.inf
    for i, centre in enumerate(centres):
        if not free[i]:
            continue
        group = []
        for j, other in enumerate(centres):
            if free[j]:
                distance = _pair(centre, other)
                if i != j:
                    margin = min(margin, abs(distance - tau))
                if distance <= tau:
                    group.append(j)
        for j in group:
            free[j] = False
            parent[j] = len(merged)
        merged.append(np.mean([centres[j] for j in group], axis=0))
    return merged, parent, margin


# --- Masks: label maps, a pixel at a time


def interpolated_distances(distances, height, width, size):
    """Distance of each pixel to each cluster, (C, H, W): bilinear between patch centres, held beyond the outermost."""
    rows, columns = size
    at = np.asarray(distances, np.float64).reshape(height, width, -1)
    pixels = np.empty((at.shape[2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            # The centre of the pixel, in patches from the centre of the first patch.
            y = min(max((i + 0.5) * height / rows - 0.5, 0), height - 1)
            x = min(max((j + 0.5) * width / columns - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            down, along = y - top, x - left
            pixels[:, i, j] = (
                (1 - down) * (1 - along) * at[top, left]
                + (1 - down) * along * at[top, right]
                + down * (1 - along) * at[bottom, left]
                + down * along * at[bottom, right]
            )
    return pixels


def nearest_patch(values, height, width, size):
    """The value of the patch that each pixel lies in, (H, W)."""
    rows, columns = size
    at = np.asarray(values).reshape(height, width)
    return np.array([[at[i * height // rows, j * width // columns] for j in range(columns)] for i in range(rows)])
