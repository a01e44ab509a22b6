"""Algorithm 1 written plainly in PyTorch, for comparison: the whole attention matrix in memory, float32, one device.

Each step of the greedy walk compares x with all centres by two products of a vector and a matrix. That is faster than
the matrix of all pairs, which for 28,800 tokens would also need 3.3 GB by itself.
"""

import torch
from torch import Tensor

from benchmarks.released import symmetric_kl

EPSILON = 1e-12


def dense_algorithm1(attention: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Algorithm 1, Appendix A of the paper (arXiv:2311.17893).

    Args:
        attention: Attention maps of all tokens, (T*N, K*N); rows sum to 1.
        tau: Merge threshold, nats.

    Returns:
        Centroids (C, K*N) and the assignment of each token (T*N,).
    """
    centres = attention
    while True:
        merged = merge_round(centres, tau)
        if len(merged) == len(centres):
            break
        centres = merged
    return centres, symmetric_kl(centres, attention.clamp(min=EPSILON)).argmin(dim=0)


def merge_round(centres: Tensor, tau: float) -> Tensor:
    """One round: x, in order, takes every remaining centre with KL < tau; their mean is a new centre."""
    # The factor leaves KL as it is and puts the logarithms near 0, where float32 is finest.
    log = (centres.clamp(min=EPSILON) * centres.shape[1]).log()
    negentropy = (centres * log).sum(1)
    remaining = torch.ones(len(centres), dtype=torch.bool, device=centres.device)
    means = []
    for x in range(len(centres)):
        if remaining[x]:
            kl = negentropy[x] + negentropy - log @ centres[x] - centres @ log[x]
            taken = remaining & (kl < tau)
            taken[x] = True
            means.append(centres[taken].mean(0))
            remaining &= ~taken
    return torch.stack(means)
