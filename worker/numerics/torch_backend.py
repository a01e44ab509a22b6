"""The backend in torch's own operations: the reference for the other two, and their fallback on any device."""

import math
import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from worker.numerics.backend import EPSILON, AttentionKeys, Centroids, Factors, Tiling
from worker.numerics.kl import log_density, released_log, released_negentropy
from worker.numerics.tile_pool import ThreadBuffers

# Measured on two cores: products below 128 rows (256 with the leaders) are slower, larger ones gain nothing.
CPU_TILING = Tiling(
    attention_rows=128,
    attention_bytes=2**20,
    block_bytes=2**26,
    product_rows=256,
    shape_step=64,
    candidate_rows=256,
    candidate_tile=64,
    exact_pairs=8,
    prunes=True,
    groups=300,
    window_rows=128,
    window_columns=256,
    window_run=128,
    log_rows=16,
    pivot_step=32,
)
# A GPU computes large tiles at once; there, copies are fast and comparing with all leaders is faster than pruning.
GPU_TILING = Tiling(
    attention_rows=1,
    attention_bytes=2**28,
    block_bytes=2**30,
    product_rows=2**31,
    shape_step=64,
    candidate_rows=256,
    candidate_tile=2**31,
    exact_pairs=2**12,
    prunes=False,
    groups=300,
    window_rows=1024,
    window_columns=4096,
    window_run=0,
    log_rows=2**31,
    pivot_step=32,
)
LARGEST_LOG = 87.0  # exp of it is finite in float32, and exp of its negative is above zero


class TorchBackend:
    """The operations of `Backend` in torch.

    Args:
        device: Where all tensors are.
        factor_dtype: Default: `fastest_factor_dtype`.
        tiling: Default: that of the device's type.
    """

    keeps_rows = True

    def __init__(
        self, device: torch.device, *, factor_dtype: torch.dtype | None = None, tiling: Tiling | None = None
    ) -> None:
        self.device = device
        self.factor_dtype = factor_dtype or fastest_factor_dtype(device)
        self.tiling = tiling or (CPU_TILING if device.type == "cpu" else GPU_TILING)
        self._buffers = ThreadBuffers(device)

    @property
    def threads(self) -> int:
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    def prepare_keys(self, keys: Tensor, dtype: torch.dtype) -> AttentionKeys:
        scaled = (keys * keys.shape[1] ** -0.5).contiguous()
        return AttentionKeys(scaled, dtype, float(scaled.norm(dim=1).amax()))

    def needs_shift(self, queries: Tensor, keys: AttentionKeys) -> bool:
        largest = float(queries.norm(dim=-1).amax()) * keys.longest  # |q·k| <= |q||k|
        return largest >= LARGEST_LOG - math.log(keys.tokens)

    def attend(self, queries: Tensor, keys: AttentionKeys, out: Tensor, *, shift: bool) -> None:
        heads, count, _ = queries.shape
        scores = self._buffers.get("scores", count, keys.tokens)
        for head in range(heads):
            torch.mm(queries[head], keys.values[head], out=scores)
            self.add_softmax(scores, out, 1 / heads, shift=shift, first=head == 0)
        if keys.dtype != torch.float32:
            out.copy_(out.to(keys.dtype))

    def add_softmax(self, scores: Tensor, mean: Tensor, weight: float, *, shift: bool, first: bool) -> None:  # noqa: ARG002 - torch always shifts
        """mean += weight * softmax(scores).

        Args:
            scores: (n, m) float32, contiguous; overwritten.
            mean: (n, m) float32, contiguous.
            weight: Of these scores in the mean.
            shift: False where exp(scores) and its sum are known to be finite, and each is above zero.
            first: Whether `mean` is uninitialized.
        """
        weights = torch.softmax(scores, -1)
        if first:
            torch.mul(weights, weight, out=mean)
        else:
            mean.add_(weights, alpha=weight)

    def empty_factors(self, count: int, key_tokens: int) -> Factors:
        return Factors.empty(count, key_tokens, self.factor_dtype, self.device)

    def fill_factors(self, p: Tensor, factors: Factors) -> None:
        if factors.p.dtype == torch.float32:
            factors.p.copy_(p)
            self.log_rows(p, factors.log, factors.negentropy)
        else:
            self.fill_rounded(p, factors)

    def fill_rounded(self, p: Tensor, factors: Factors) -> None:
        """`fill_factors` in bfloat16, without a remainder."""
        factors.p.copy_(p)
        factors.log.copy_(log_density(p, torch.empty_like(p)))
        terms = factors.p.float() * factors.log
        torch.sum(terms, -1, out=factors.negentropy)
        torch.sum(terms.mul_(factors.log), -1, out=factors.log_norm).sqrt_()

    def log_rows(self, p: Tensor, log: Tensor, negentropy: Tensor) -> None:
        """log(p·k), clamped, (n, k), and sum p·log(p·k), (n,), of rows in float32."""
        torch.sum(p * log_density(p, log), -1, out=negentropy)

    def kl_products(self, rows: Factors, others: Factors) -> Tensor:
        kl = rows.negentropy[:, None] + others.negentropy[None, :]
        if self.device.type == "cuda":  # has bfloat16 products that are not rounded themselves
            crossed = torch.mm(rows.p, others.log.T, out_dtype=torch.float32)
            return kl.sub_(crossed).sub_(torch.mm(rows.log, others.p.T, out_dtype=torch.float32))
        return kl.sub_(torch.mm(rows.p, others.log.T)).sub_(torch.mm(rows.log, others.p.T))

    def pair_kl(self, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        p, q = p.index_select(0, row), q.index_select(0, other)  # much faster than p[row]
        difference = p - q
        return p.clamp_(min=EPSILON).div_(q.clamp_(min=EPSILON)).log_().mul_(difference).sum(-1)

    def pair_kl_as_released(self, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        p, q = p.index_select(0, row), q.index_select(0, other)
        log_p, log_q = released_log(p, torch.empty_like(p)), released_log(q, torch.empty_like(q))
        # All pairs of a few rows, where only the diagonal is needed: a matrix product adds as the released code's does.
        crossed = torch.mm(p, log_q.T).diagonal() + torch.mm(q, log_p.T).diagonal()
        return released_negentropy(p, log_p) + released_negentropy(q, log_q) - crossed

    def add_members(self, sums: Tensor, counts: Tensor, labels: Tensor, p: Tensor, factors: Factors) -> None:
        if self.device.type == "cpu":
            sums.index_add_(0, labels, p)
            counts.add_(torch.bincount(labels, minlength=len(counts)))
            return
        # On a GPU index_add_ adds in an order that differs from run to run; a product does not.
        belongs = labels == torch.arange(len(counts), device=labels.device)[:, None]
        counts.add_(belongs.sum(1))
        if factors.remainder is None:
            sums.addmm_(belongs.float(), p)
        else:
            for part in (factors.p, factors.remainder):
                sums.add_(torch.mm(belongs.to(part.dtype), part, out_dtype=torch.float32))

    def prepare_centroids(self, p: Tensor) -> Centroids:
        log = log_density(p, torch.empty_like(p))
        return Centroids(p, Factors(p, log, negentropy=(p * log).sum(-1), log_norm=torch.empty(0)))

    def centroid_kl(self, p: Tensor, levels: Sequence[Centroids], out: Sequence[Tensor]) -> None:
        log = self._buffers.get("log", *p.shape)
        negentropy = torch.empty(len(p), device=self.device)
        self.log_rows(p, log, negentropy)
        for level, kl in zip(levels, out, strict=True):
            torch.add(negentropy[:, None], level.factors.negentropy, out=kl)
            kl.addmm_(p, level.factors.log.T, alpha=-1).addmm_(log, level.p.T, alpha=-1)


def product_seconds(dtype: torch.dtype) -> float:
    """Time of a typical matrix product on a CPU, the least of a few."""
    a = torch.ones(128, 2048, dtype=dtype)
    times = []
    for _ in range(4):
        start = time.thread_time()
        torch.mm(a, a.T)
        times.append(time.thread_time() - start)
    return min(times)


@cache
def fastest_factor_dtype(
    device: torch.device, measure: Callable[[torch.dtype], float] = product_seconds
) -> torch.dtype:
    """bfloat16 where its products are measured to be faster than float32's on this device; float32 elsewhere.

    It changes how long clustering takes, not its result.
    """
    if device.type != "cpu":
        return torch.bfloat16
    return min((torch.float32, torch.bfloat16), key=measure)
