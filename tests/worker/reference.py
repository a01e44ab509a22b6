"""Slow reference implementations: float64 NumPy loops close to the formulas, which share no code with the worker."""

import itertools
import math

import numpy as np
from scipy.special import erf

# --- Evaluation: the measures, a pixel and a pair at a time


def jaccard(a, b):
    """|a ∩ b| / |a ∪ b|, 1 for two empty masks."""
    union = np.sum(a | b)
    return 1.0 if union == 0 else float(np.sum(a & b) / union)


def boundary(mask):
    """The pixels whose right, lower or diagonal neighbour lies on the other side of the mask's edge."""
    height, width = mask.shape
    edge = np.zeros_like(mask)
    for y, x in itertools.product(range(height), range(width)):
        ahead = [mask[y2, x2] for y2, x2 in ((y, x + 1), (y + 1, x), (y + 1, x + 1)) if y2 < height and x2 < width]
        edge[y, x] = any(bool(value) != bool(mask[y, x]) for value in ahead)
    return edge


def boundary_f(a, b):
    """Harmonic mean of the shares of each boundary within 0.8 % of the diagonal of the other boundary."""
    radius = math.ceil(0.008 * math.sqrt(a.shape[0] ** 2 + a.shape[1] ** 2))
    points_a, points_b = np.argwhere(boundary(a)), np.argwhere(boundary(b))
    if len(points_a) == 0 or len(points_b) == 0:
        return float(len(points_a) == len(points_b))
    near = np.sum((points_a[:, None] - points_b[None]) ** 2, axis=-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def best_matching(gain):
    """The columns' rows of the one-to-one matching with the largest total gain, by exhaustive search."""
    rows, columns = gain.shape
    return max(
        itertools.permutations(range(rows), columns),
        key=lambda chosen: sum(gain[row, column] for column, row in enumerate(chosen)),
    )


def adjusted_rand_index(a, b):
    """(agreement - its expectation) / (its maximum - its expectation), over all pairs of pixels."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    same_a = sum(a[i] == a[j] for i, j in pairs)
    same_b = sum(b[i] == b[j] for i, j in pairs)
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    expected = same_a * same_b / len(pairs) if pairs else 0.0
    best = (same_a + same_b) / 2
    return 1.0 if best == expected else (both - expected) / (best - expected)


# --- Affinity


def spectral_embedding(keys, landmarks, *, channels, scale):
    """Expected eigenvectors after one step of the random walk from each token to the landmarks, to unit length.

    The walk steps with probability proportional to exp(scale (cos - 1)) of keys without the landmarks' mean; its
    eigenvectors v, without the constant one, are scaled so that sum_j d_j v_j**2 = 1, d the sums of these weights.
    """
    mean = landmarks.mean(0)

    def weights(tokens):
        a, b = tokens - mean, landmarks - mean
        cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
        return np.exp(scale * (cosine - 1))

    degree = weights(landmarks).sum(1)
    values, vectors = np.linalg.eig(weights(landmarks) / degree[:, None])
    vectors = vectors.real[:, np.argsort(-values.real)[1 : channels + 1]]
    vectors = vectors / np.sqrt((degree[:, None] * vectors**2).sum(0))
    walk = weights(keys)
    expected = walk / walk.sum(1, keepdims=True) @ vectors
    return expected / np.linalg.norm(expected, axis=1, keepdims=True)


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
    """Algorithm 1: (centres, assignment, parents of each round, smallest |KL - τ| of a decision)."""
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
    """The released code's procedure: as `algorithm1`, but first smoothed in windows of 3 frames, and with KL ≤ τ."""
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
    """Distance of each pixel to each cluster, (C, H, W): bilinear between patch centres, constant beyond."""
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
    """The value of the patch that contains each pixel, (H, W)."""
    rows, columns = size
    at = np.asarray(values).reshape(height, width)
    return np.array([[at[i * height // rows, j * width // columns] for j in range(columns)] for i in range(rows)])


# --- The released procedure, from full-size frames to labels, in float64 (windows as matrix products)

RELEASED_MEAN, RELEASED_STD = np.array([0.43216, 0.394666, 0.37645]), np.array([0.22803, 0.22145, 0.216989])


def released_queries_and_keys(frames, checkpoint, size):
    """norm1 (eps 1e-5), then q and k (8 heads, no bias) of the one spatio-temporal block: (T, N, 8, D / 8) twice."""
    block = {
        name[len("temporal_transformer.0.") :]: a for name, a in checkpoint.items() if name.startswith("temporal_")
    }
    encoder = {n[len("encoder.") :]: a.astype(np.float64) for n, a in checkpoint.items() if n.startswith("encoder.")}
    tokens = np.stack([dino_keys(bilinear(frame, size), encoder) for frame in frames])
    normed = layer_norm(tokens, block["norm1.weight"], block["norm1.bias"], eps=1e-5)
    count, patches, dim = normed.shape
    qkv = (normed @ block["attn.qkv.weight"].astype(np.float64).T).reshape(count, patches, 3, 8, dim // 8)
    return qkv[:, :, 0], qkv[:, :, 1]


def bilinear(frame, size):
    """Each pixel from the two nearest rows and columns of its centre, no antialiasing: (H, W, 3) -> (h, w, 3)."""

    def weights(new, old):
        matrix = np.zeros((new, old))
        for i in range(new):
            at = np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)
            low = min(int(at), old - 1)
            matrix[i, low] += 1 - (at - low)
            matrix[i, min(low + 1, old - 1)] += at - low
        return matrix

    rows, columns = weights(size[0], frame.shape[0]), weights(size[1], frame.shape[1])
    return np.einsum("yi,ijc,xj->yxc", rows, frame.astype(np.float64), columns, optimize=True)


def bicubic_positions(square, height, width):
    """DINO's: Keys' kernel with a = -0.75 and factors (h + 0.1) / side, not h / side. (side, side, D) -> (h, w, D)."""

    def kernel(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def weights(new, old):
        matrix = np.zeros((new, old))
        for i in range(new):
            at = (i + 0.5) / ((new + 0.1) / old) - 0.5
            for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
                matrix[i, np.clip(j, 0, old - 1)] += kernel(at - j)
        return matrix

    return np.einsum("yi,ijd,xj->yxd", weights(height, len(square)), square, weights(width, len(square)), optimize=True)


def dino_keys(pixels, vit, patch=8, heads=6):
    """The keys of the last layer of DINO's ViT for one frame (h, w, 3) in [0, 255], heads concatenated: (N, D)."""
    pixels = (pixels / 255 - RELEASED_MEAN) / RELEASED_STD
    height, width = pixels.shape[0] // patch, pixels.shape[1] // patch
    patches = pixels.reshape(height, patch, width, patch, 3).transpose(0, 2, 4, 1, 3).reshape(height * width, -1)
    dim = vit["cls_token"].shape[-1]
    x = patches @ vit["patch_embed.proj.weight"].reshape(dim, -1).T + vit["patch_embed.proj.bias"]
    positions = vit["pos_embed"][0]
    side = round(np.sqrt(len(positions) - 1))
    if (height, width) == (side, side):
        x = x + positions[1:]
    else:
        x = x + bicubic_positions(positions[1:].reshape(side, side, dim), height, width).reshape(-1, dim)
    x = np.concatenate([vit["cls_token"][0] + positions[:1], x])
    layer = 0
    while True:
        w = {name[len(f"blocks.{layer}.") :]: a for name, a in vit.items() if name.startswith(f"blocks.{layer}.")}
        normed = layer_norm(x, w["norm1.weight"], w["norm1.bias"], eps=1e-6)
        qkv = normed @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]
        q, k, v = qkv.reshape(len(x), 3, heads, dim // heads).transpose(1, 2, 0, 3)  # (heads, 1 + N, d) each
        layer += 1
        if f"blocks.{layer}.norm1.weight" not in vit:
            return k.transpose(1, 0, 2).reshape(len(x), dim)[1:]
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(dim // heads)
        attended = (_softmax(scores) @ v).transpose(1, 0, 2).reshape(len(x), dim)
        x = x + attended @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        normed = layer_norm(x, w["norm2.weight"], w["norm2.bias"], eps=1e-6)
        hidden = normed @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2  # GELU
        x = x + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def layer_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def released_attention(queries, keys):
    """The mean over heads of softmax(q·k/√d): (n, heads, d), (m, heads, d) -> (n, m)."""
    heads, depth = queries.shape[1:]
    return np.mean([_softmax(queries[:, h] @ keys[:, h].T / np.sqrt(depth)) for h in range(heads)], axis=0)


def released_clusters(rows, tau, tokens_per_frame):
    """Windows of 3 frames smoothed and merged greedily, then all centres until their number stays; (n,) labels."""
    rows = rows / rows.sum(1, keepdims=True)
    centres = []
    for start in range(0, len(rows), 3 * tokens_per_frame):
        window = rows[start : start + 3 * tokens_per_frame]
        near = (_all_symmetric_kl(window, window) <= tau).astype(np.float64)
        smooth = near @ window
        centres += _merge_greedily(smooth / smooth.sum(1, keepdims=True), tau)
    while True:
        merged = _merge_greedily(np.stack(centres), tau)
        if len(merged) == len(centres):
            return _all_symmetric_kl(np.stack(merged), rows).argmin(0)
        centres = merged


def _merge_greedily(rows, tau):
    distance, free, merged = _all_symmetric_kl(rows, rows), np.ones(len(rows), bool), []
    for i in range(len(rows)):
        if free[i]:
            group = free & (distance[i] <= tau)
            merged.append(rows[group].mean(0))
            free &= ~group
    return merged


def _all_symmetric_kl(p, q):
    log_p, log_q = np.log(p), np.log(q)
    return (p * log_p).sum(1)[:, None] + (q * log_q).sum(1)[None] - p @ log_q.T - log_p @ q.T


def _softmax(scores):
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)
