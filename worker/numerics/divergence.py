"""The symmetric KL divergence between attention maps: of all pairs, of single pairs, and quickly near enough."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from worker.numerics import kernels, loops

EPSILON = 1e-12  # keeps log finite, far below 1 / k
BFLOAT16_UNIT = 2.0**-8  # the largest relative error of rounding to bfloat16, which has 8 significant bits
RELEASED_NOISE = 1e-4  # nats; its J is off by up to half of that, mostly by its sums p·log p
GROUPS = 300  # of keys that show most pairs to be far apart
GROUPS_SLACK = 1e-3  # nats; far above float32's rounding
SLACK = 1.02  # terms of second order in the unit, and float32's own rounding in sums, see `Factors.doubt`


def log_density(p: Tensor, out: Tensor) -> Tensor:
    """log(p·k), clamped, into `out`.

    The factor k, the number of key tokens, adds the same to all logs. That leaves J as it is for rows that sum to
    1, and brings the logs near 0, where floating point is finest.
    """
    return torch.clamp(p, min=EPSILON, out=out).mul_(p.shape[-1]).log_()


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """Pairwise symmetric KL divergence between attention maps.

    J[i, j] = sum_k (p[i, k] - q[j, k]) * (log p[i, k] - log q[j, k])

    Source: the distance of Algorithm 1, Appendix A of Ding et al., "Betrayed by Attention" (arXiv:2311.17893), made
    symmetric as in the authors' released code.

    Args:
        p: Distributions over the key tokens, float32 or float64, (n, k); rows sum to 1.
        q: Distributions over the same key tokens, likewise, (m, k).

    Returns:
        Distances in nats, (n, m); non-negative up to rounding.

    Raises:
        ValueError: `p` and `q` differ in their last dimension.
    """
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(f"expected the same key tokens, got {p.shape = } and {q.shape = }")
    log_p, log_q = log_density(p, torch.empty_like(p)), log_density(q, torch.empty_like(q))
    # Expanded into two matrix products: the sum as written would hold (n, m, k) values at once.
    own = (p * log_p).sum(-1)[:, None] + (q * log_q).sum(-1)[None, :]
    return own.addmm_(p, log_q.T, alpha=-1).addmm_(log_p, q.T, alpha=-1)


def group_width(keys: int) -> int:
    """How many neighbouring keys make a group, so that there are at most `GROUPS` groups."""
    return -(-keys // GROUPS)


def group_count(keys: int) -> int:
    """How many groups of that width there are, the last perhaps smaller."""
    return -(-keys // group_width(keys))


def grouped(rows: Tensor, width: int) -> Tensor:
    """Sums over groups of `width` keys, the last perhaps smaller: J of them is never larger than J of the rows."""
    whole = rows.shape[1] // width * width
    sums = rows[:, :whole].view(len(rows), -1, width).sum(-1)
    return sums if whole == rows.shape[1] else torch.cat([sums, rows[:, whole:].sum(-1, keepdim=True)], 1)


def pair_divergences(p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
    """J of the pairs (p[row], q[other]), as the sum is written, in float32: (n,)."""
    if kernels.available(p.device):
        return kernels.pair_divergences(p, row, q, other, epsilon=EPSILON)
    out = torch.empty(len(row), device=p.device)
    loops.pair_divergences(p, row, q, other, out, epsilon=EPSILON)
    return out


def released_log(p: Tensor, out: Tensor) -> Tensor:
    """log p into `out`, as the released code takes it, but clamped."""
    return torch.clamp(p, min=EPSILON, out=out).log_()


def released_own(p: Tensor, log: Tensor) -> Tensor:
    """sum p·log p of each row as the released code adds it up, (n,): one term after the other.

    In float32 it is off by some 1e-5 nats, always the same way for rows that are nearly the same. That is more than
    all else that J may differ by, and decides about pairs near τ: so it is followed, not bettered.
    """
    return torch.einsum("nc,nc->n", p, log)


def released_pair_divergences(p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
    """J of the pairs (p[row], q[other]) rounded as the released code rounds it, (n,); on a GPU `pair_divergences`."""
    if kernels.available(p.device):
        return pair_divergences(p, row, q, other)
    p, q = p.index_select(0, row), q.index_select(0, other)
    log_p, log_q = released_log(p, torch.empty_like(p)), released_log(q, torch.empty_like(q))
    # All pairs of a few rows, for the sake of a few: a matrix product adds as that code's does.
    crossed = torch.mm(p, log_q.T).diagonal() + torch.mm(q, log_p.T).diagonal()
    return released_own(p, log_p) + released_own(q, log_q) - crossed


@dataclass(frozen=True)
class Factors:
    """Rows made ready for products that give J of many pairs at once, near enough to say which pairs need more.

    Attributes:
        p: The rows, (n, k), bfloat16, or float32 where that is as fast.
        log: log(p·k), likewise.
        own: sum p·log(p·k) of the factors as they are rounded, (n,) float32. Thereby J of equal rows is 0, and
            the rounding errors of a pair of rows are those of their differences.
        spread: sqrt(sum p·log(p·k)^2), (n,) float32: how far rounding to bfloat16 may reach.
        rest: On a GPU also what rounding left of the rows, (n, k) bfloat16: p + rest is float32's p, nearly.
    """

    p: Tensor
    log: Tensor
    own: Tensor
    spread: Tensor
    rest: Tensor | None = None

    @classmethod
    def empty(cls, count: int, key_tokens: int, dtype: torch.dtype, device: torch.device) -> "Factors":
        return cls(
            torch.empty(count, key_tokens, dtype=dtype, device=device),
            torch.empty(count, key_tokens, dtype=dtype, device=device),
            torch.empty(count, device=device),
            torch.empty(count, device=device),
            torch.empty(count, key_tokens, dtype=dtype, device=device) if kernels.available(device) else None,
        )

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, index: "slice | Tensor") -> "Factors":
        """Some of the rows, without the rest."""
        if isinstance(index, Tensor):
            return self.map(lambda values: values.index_select(0, index))  # much quicker than values[index]
        return self.map(lambda values: values[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Factors":
        """Each tensor changed alike, without the rest."""
        return Factors(change(self.p), change(self.log), change(self.own), change(self.spread))

    def first(self, count: int) -> "Factors":
        """The first rows, with the rest."""
        some = slice(0, count)
        rest = None if self.rest is None else self.rest[some]
        return Factors(self.p[some], self.log[some], self.own[some], self.spread[some], rest)

    def __setitem__(self, index: slice, rows: "Factors") -> None:
        self.p[index], self.log[index], self.own[index], self.spread[index] = rows.p, rows.log, rows.own, rows.spread

    def fill(self, p: Tensor) -> None:
        """Make rows ready, (n, k) float32."""
        if self.rest is not None:
            kernels.factors(p, self.p, self.rest, self.log, self.own, self.spread, epsilon=EPSILON)
        elif self.p.dtype == torch.bfloat16:
            loops.factors(p, self.p, self.log, self.own, self.spread, epsilon=EPSILON)
        else:
            self.p.copy_(p)
            loops.logs_and_own(p, self.log, self.own, epsilon=EPSILON)

    def doubt(self, tau: "float | Tensor", others: "Factors") -> Tensor:
        """How far beyond τ, at most, `near_enough` puts a pair whose J lies on the other side of it; per row, (n,).

        τ may be one for all rows or one for each.

        Let u be the unit of rounding, δ rounding errors, l logs, Δ differences of the two rows. The products give
        sum (Δp + δp - δq)(Δl + δl_p - δl_q). Of first order in u its error is at most

            u sum (p+q)|Δl| + u sum |Δp|(|l_p| + |l_q|).

        With (p+q)|Δl| <= |Δp|(2 + |Δl|) (as x / tanh(x/2) <= 2 + x) and sum |Δp| <= √J (Pinsker), the first sum is
        at most 2√J + J. In the second, where p > q, |Δp||l_p| is at most √(|Δp||Δl|)·√p|l_p| (as 1 - q/p <= log p/q)
        and |l_q| <= |l_p| + |Δl|; likewise where q > p. By Cauchy-Schwarz it is at most 2√J √(s_p² + s_q²) + J with
        the spreads s. The products, rounded themselves, add u|sum p·l_q| + u|sum q·l_p| <= u(|own_p| + |own_q| + J).
        All of it grows more slowly with J than J does, so that the bound at J = τ decides for every J.
        """
        if self.p.dtype == torch.float32 or (isinstance(tau, float) and tau == float("inf")):
            return torch.zeros_like(self.own)
        root = tau**0.5
        spreads = (self.spread.square() + others.spread.amax().square()).sqrt()
        own = self.own.abs() + others.own.abs().amax()
        terms: Tensor = 2 * root * spreads + own + (2 * root + 3 * tau)
        return terms.mul_(BFLOAT16_UNIT * SLACK).add_(1e-5)


def near_enough(rows: Factors, others: Factors) -> Tensor:
    """J of all pairs, on the right side of any τ or within `doubt` of it: float32, (n, m)."""
    own = rows.own[:, None] + others.own[None, :]
    if own.device.type == "cuda":  # has products of bfloat16 that are not rounded themselves
        products = torch.mm(rows.p, others.log.T, out_dtype=torch.float32)
        return own.sub_(products).sub_(torch.mm(rows.log, others.p.T, out_dtype=torch.float32))
    return own.sub_(torch.mm(rows.p, others.log.T)).sub_(torch.mm(rows.log, others.p.T))


@cache
def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are faster than float32's on this device, by trying; float32 elsewhere.

    The answer changes how long clustering takes and nothing else.
    """
    if device.type != "cpu":
        return torch.bfloat16
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(128, 2048, dtype=dtype)
        times = []
        for _ in range(4):
            began = time.thread_time()
            torch.mm(a, a.T)
            times.append(time.thread_time() - began)
        seconds[dtype] = min(times)
    return min(seconds, key=lambda dtype: seconds[dtype])
