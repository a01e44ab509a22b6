"""The symmetric KL divergence between attention maps."""

import torch
from torch import Tensor

from worker.numerics.backend import EPSILON


def log_density(p: Tensor, out: Tensor) -> Tensor:
    """log(p·k), clamped, into `out`.

    The factor k, the number of key tokens, adds the same to all logarithms. The KL of rows that sum to 1 stays the
    same, and the logarithms lie near 0, where floating point is finest.
    """
    return torch.clamp(p, min=EPSILON, out=out).mul_(p.shape[-1]).log_()


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """Pairwise symmetric KL divergence between attention maps.

    kl[i, j] = sum_k (p[i, k] - q[j, k]) * (log p[i, k] - log q[j, k])

    Source: the distance of Algorithm 1, Appendix A of Ding et al., "Betrayed by Attention" (arXiv:2311.17893), made
    symmetric as in the authors' released code.

    Args:
        p: Distributions over the key tokens, float32 or float64, shape (n, k); rows sum to 1.
        q: Distributions over the same key tokens, shape (m, k).

    Returns:
        Distances in nats, shape (n, m); non-negative up to rounding.

    Raises:
        ValueError: `p` and `q` differ in their last dimension.
    """
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(f"p and q must have the same key tokens, got {p.shape = } and {q.shape = }")
    log_p, log_q = log_density(p, torch.empty_like(p)), log_density(q, torch.empty_like(q))
    # Expanded into two matrix products: the sum as written would hold (n, m, k) values at once.
    negentropies = (p * log_p).sum(-1)[:, None] + (q * log_q).sum(-1)[None, :]
    return negentropies.addmm_(p, log_q.T, alpha=-1).addmm_(log_p, q.T, alpha=-1)


def released_log(p: Tensor, out: Tensor) -> Tensor:
    """log p into `out`, as the released code takes it, but clamped."""
    return torch.clamp(p, min=EPSILON, out=out).log_()


def released_negentropy(p: Tensor, log: Tensor) -> Tensor:
    """sum p·log p of each row as the released code adds it up, (n,): one term after the other.

    In float32 it is off by about 1e-5 nats, in the same direction for rows that are nearly the same. This exceeds all
    other rounding of the KL and decides pairs near τ, so it is reproduced rather than improved.
    """
    return torch.einsum("nc,nc->n", p, log)
