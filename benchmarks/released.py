"""The clustering of the paper's released code, transcribed for comparison: the same steps, with the same cost.

As in that code: the full attention matrix, KL by two products each way, one step of the greedy loop per cluster,
everything in float32 on one device. One difference is in its favour: attention is computed frame by frame, since all
heads of all tokens at once would need three copies of (T*N, heads, K*N).
"""

import torch
from torch import Tensor

WINDOW = 3
SMOOTH_ROWS = 10_000


def released_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """(T, N, heads, d) and (K*N, heads, d) -> (T*N, K*N)."""
    scale = queries.shape[-1] ** -0.5
    frames = []
    for frame in queries:
        scores = torch.einsum("nhc,mhc->nhm", frame, keys) * scale
        frames.append(scores.softmax(dim=-1).mean(dim=1))
    return torch.cat(frames)


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """Symmetric KL of all pairs, as cross entropies less own entropies: two products."""
    own = torch.einsum("nk,nk->n", p, p.log())[:, None] + torch.einsum("mk,mk->m", q, q.log())[None]
    return own - torch.einsum("nk,mk->nm", p, q.log()) - torch.einsum("mk,nk->nm", q, p.log())


def greedy_merge(rows: Tensor, tau: float) -> list[Tensor]:
    """Means of the groups of a greedy walk over all pairs."""
    distances = symmetric_kl(rows, rows)
    free = torch.ones(len(rows), device=rows.device)
    means = []
    for row in range(len(rows)):
        if free[row] == 0:
            continue
        group = (distances[row] <= tau) * (free > 0)
        means.append(rows[group].mean(dim=0))
        free[group] = 0
    return means


def released_clustering(attention: Tensor, frame_count: int, tau: float) -> tuple[Tensor, Tensor]:
    """Centroids (C, K*N) and the assignment of each token (T*N,)."""
    attention = attention / attention.sum(dim=-1, keepdim=True)
    centres: list[Tensor] = []
    frames = attention.view(frame_count, -1, attention.shape[-1])
    for first in range(0, frame_count, WINDOW):
        rows = frames[first : first + WINDOW].flatten(0, 1)
        distances = symmetric_kl(rows, rows)
        smoothed = []
        for start in range(0, len(rows), SMOOTH_ROWS):
            near = (distances[start : start + SMOOTH_ROWS] <= tau).float()
            mean = torch.einsum("bn,nk->bk", near, rows)
            smoothed.append(mean / mean.sum(dim=1, keepdim=True))
        centres += greedy_merge(torch.cat(smoothed), tau)
    while True:
        merged = greedy_merge(torch.stack(centres), tau)
        if len(merged) == len(centres):
            break
        centres = merged
    centroids = torch.stack(merged)
    return centroids, symmetric_kl(centroids, attention).argmin(dim=0)
