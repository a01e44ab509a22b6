"""The backend for a CPU: loops over rows that Numba compiles, in place of several torch operations each."""

import torch
from torch import Tensor

from worker.numerics import numba_ops  # compiles at its import: import this module only where it is used
from worker.numerics.backend import EPSILON, Factors
from worker.numerics.torch_backend import TorchBackend


class NumbaBackend(TorchBackend):
    """`TorchBackend` with compiled row operations: each goes over a row while it lies in a core's cache."""

    def add_softmax(self, scores: Tensor, mean: Tensor, weight: float, *, shift: bool, first: bool) -> None:
        numba_ops.add_softmax(scores.numpy(), mean.numpy(), weight, shift, first)

    def log_rows(self, p: Tensor, log: Tensor, negentropy: Tensor) -> None:
        numba_ops.log_rows(p.numpy(), log.numpy(), negentropy.numpy(), EPSILON)

    def fill_rounded(self, p: Tensor, factors: Factors) -> None:
        bits = factors.p.view(torch.int16).numpy(), factors.log.view(torch.int16).numpy()
        numba_ops.fill_factors(p.numpy(), *bits, factors.negentropy.numpy(), factors.log_norm.numpy(), EPSILON)

    def pair_kl(self, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        out = torch.empty(len(row))
        numba_ops.pair_kl(p.numpy(), row.numpy(), q.numpy(), other.numpy(), out.numpy(), EPSILON)
        return out
