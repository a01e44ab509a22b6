"""Bounds on the symmetric KL divergence, and their proofs: why fast arithmetic gives float32's clusters.

Three bounds, for p and q rows that sum to 1, l their logarithms, Δ the difference of the two rows, δ rounding errors
and u the unit of rounding to bfloat16:

1. `product_error`: KL from products of factors in bfloat16 against the exact KL.
2. `ambiguous_after_rounding`: KL of rows that were rounded to bfloat16 before it was computed.
3. `group_sums`: KL of sums over groups of keys is a lower bound of KL.
"""

import torch
from torch import Tensor

from worker.numerics.backend import Factors

BFLOAT16_UNIT = 2.0**-8  # largest relative error of rounding to bfloat16, which has 8 significant bits
SLACK = 1.02  # covers terms of second order in the unit, and float32's own rounding in sums
GROUP_SLACK = 1e-3  # nats; far above float32's rounding of the KL of group sums


def product_error(tau: "float | Tensor", rows: Factors, others: Factors) -> Tensor:
    """Bound on how far beyond τ `Backend.kl_products` puts a pair whose KL lies on the other side of τ.

    Proof. The products give sum (Δp + δp - δq)(Δl + δl_p - δl_q). Its error of first order in u is at most

        u sum (p + q)|Δl| + u sum |Δp|(|l_p| + |l_q|).

    With (p + q)|Δl| <= |Δp|(2 + |Δl|) (since x / tanh(x/2) <= 2 + x) and sum |Δp| <= √KL (Pinsker), the first sum is
    at most 2√KL + KL. In the second, where p > q, |Δp||l_p| is at most √(|Δp||Δl|)·√p|l_p| (since 1 - q/p <= log p/q)
    and |l_q| <= |l_p| + |Δl|; likewise where q > p. By Cauchy-Schwarz it is at most 2√KL √(s_p² + s_q²) + KL with the
    `log_norm` s. The products, rounded themselves, add u|sum p·l_q| + u|sum q·l_p| <= u(|n_p| + |n_q| + KL) with the
    `negentropy` n. All of it grows more slowly with KL than KL does, so the bound at KL = τ decides for every KL.

    Args:
        tau: One threshold for all rows, or one for each, (n,).
        rows: Factors of the rows, n of them.
        others: Factors of the rows they are compared with.

    Returns:
        The bound in nats, (n,); 0 for float32 factors, which decide as float32 does.
    """
    if rows.p.dtype == torch.float32 or (isinstance(tau, float) and tau == float("inf")):
        return torch.zeros_like(rows.negentropy)
    root = tau**0.5
    log_norms = (rows.log_norm.square() + others.log_norm.amax().square()).sqrt()
    negentropies = rows.negentropy.abs() + others.negentropy.abs().amax()
    terms: Tensor = 2 * root * log_norms + negentropies + (2 * root + 3 * tau)
    return terms.mul_(BFLOAT16_UNIT * SLACK).add_(1e-5)


def ambiguous_after_rounding(kl: Tensor) -> Tensor:
    """Which rows may have another nearest centroid, given that they were rounded to bfloat16 before `kl` was computed.

    Proof. Rounding p by δp changes KL by sum δp·Δl + Δp·δl + δp·δl. That is at most u(2√KL + KL) + u√KL and a little:
    the sums are those of `product_error`.

    Args:
        kl: KL of the rounded rows to the centroids, (n, C).

    Returns:
        bool, (n,).
    """
    if kl.shape[1] == 1:
        return torch.zeros(len(kl), dtype=torch.bool, device=kl.device)
    nearest = kl.topk(2, largest=False).values.clamp_min_(0)
    reach = (3 * nearest.sqrt() + nearest).mul_(BFLOAT16_UNIT * SLACK).add_(1e-4)
    return nearest[:, 1] - reach[:, 1] <= nearest[:, 0] + reach[:, 0]


def group_sums(rows: Tensor, groups: int) -> Tensor:
    """Sums over groups of neighbouring keys, the last group perhaps smaller: (n, group_count).

    Their KL is a lower bound of the rows' KL. Proof: KL is a sum over keys of two terms of the form a·log(a/b), and
    by the log-sum inequality (sum a)·log(sum a / sum b) <= sum a·log(a/b) in every group.
    """
    width = group_width(rows.shape[1], groups)
    whole = rows.shape[1] // width * width
    sums = rows[:, :whole].view(len(rows), -1, width).sum(-1)
    return sums if whole == rows.shape[1] else torch.cat([sums, rows[:, whole:].sum(-1, keepdim=True)], 1)


def group_width(keys: int, groups: int) -> int:
    """How many neighbouring keys make a group, for at most `groups` groups."""
    return -(-keys // groups)


def group_count(keys: int, groups: int) -> int:
    """How many groups `group_sums` makes."""
    return -(-keys // group_width(keys, groups))
