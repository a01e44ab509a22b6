"""When a row merges with a leader: the rule of the paper and that of its released code."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.numerics.backend import Backend
from worker.numerics.kl import log_density, released_log, released_negentropy

RELEASED_NOISE = 1e-4  # nats; the released code's KL is off by up to half of that, mostly in its sums p·log p


class MergeRule(Protocol):
    """A threshold, and how the KL of a pair is compared with it.

    Attributes:
        tau: Merge threshold on the symmetric KL divergence, nats.
        noise: How far the rule's own rounding may move a KL, nats.
    """

    @property
    def tau(self) -> float: ...

    @property
    def noise(self) -> float: ...

    def accepts(self, kl: Tensor, margin: "float | Tensor" = 0.0) -> Tensor:
        """Whether pairs merge at the threshold tau + margin, bool."""
        ...

    def log(self, p: Tensor) -> Tensor:
        """The logarithms from which `square_kl` is made, (n, k)."""
        ...

    def square_kl(self, p: Tensor, log: Tensor, products: Tensor) -> Tensor:
        """KL of all pairs of a few rows, (n, n), from their logarithms and from `products` = p @ log.T."""
        ...

    def pair_kl(self, backend: Backend, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        """KL of the pairs (p[row], q[other]) in float32, (pairs,)."""
        ...


@dataclass(frozen=True)
class PaperRule:
    """Algorithm 1's rule: pairs with KL < τ merge."""

    tau: float
    noise: float = 0.0

    def accepts(self, kl: Tensor, margin: "float | Tensor" = 0.0) -> Tensor:
        return kl < self.tau + margin

    def log(self, p: Tensor) -> Tensor:
        return log_density(p, torch.empty_like(p))

    def square_kl(self, p: Tensor, log: Tensor, products: Tensor) -> Tensor:  # noqa: ARG002 - the products suffice
        return _square_kl(products.diagonal(), products)

    def pair_kl(self, backend: Backend, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        return backend.pair_kl(p, row, q, other)


@dataclass(frozen=True)
class ReleasedRule:
    """The released code's rule: pairs with KL <= τ merge, and KL is rounded as in that code."""

    tau: float
    noise: float = RELEASED_NOISE

    def accepts(self, kl: Tensor, margin: "float | Tensor" = 0.0) -> Tensor:
        return kl <= self.tau + margin

    def log(self, p: Tensor) -> Tensor:
        return released_log(p, torch.empty_like(p))

    def square_kl(self, p: Tensor, log: Tensor, products: Tensor) -> Tensor:
        return _square_kl(released_negentropy(p, log), products)

    def pair_kl(self, backend: Backend, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        return backend.pair_kl_as_released(p, row, q, other)


def _square_kl(negentropy: Tensor, products: Tensor) -> Tensor:
    return negentropy[:, None] + negentropy[None, :] - (products + products.T)
