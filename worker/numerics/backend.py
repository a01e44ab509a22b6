"""The numerical operations of the method as one protocol, which torch, Numba and Triton implement."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EPSILON = 1e-12  # logarithms are taken of at least this: far below 1 / k, and log stays finite


@dataclass(frozen=True)
class Tiling:
    """How work is cut into tiles. It decides speed and memory only: results do not depend on it.

    Attributes:
        attention_rows: Least rows of an attention tile; smaller products are slower.
        attention_bytes: Attention scores of one head in a tile, where the least rows do not exceed it.
        block_bytes: Rows that are clustered together, with their factors.
        product_rows: Rows of one thread's product with the leaders.
        shape_step: Row counts of pruned products are multiples of it: the first bfloat16 product of a new shape costs
            as much as ten later ones.
        candidate_rows: Rows among which new leaders are searched at once.
        candidate_tile: Rows of one thread's product among them.
        exact_pairs: Single pairs that one thread computes at once.
        prunes: Whether leaders are pruned with the lower bound of `kl_bounds`; otherwise all are compared.
        groups: Most groups of keys of that lower bound.
        window_rows: Sorted rows of a window whose neighbours are searched together.
        window_columns: Rows they are compared with, or averaged over, at once.
        window_run: Consecutive rows that are multiplied in place; shorter runs are copied together. 0: all are copied.
        log_rows: Rows of a window whose logarithms one thread takes at once.
        pivot_step: Every such row is a pivot of the window's sorting.
    """

    attention_rows: int
    attention_bytes: int
    block_bytes: int
    product_rows: int
    shape_step: int
    candidate_rows: int
    candidate_tile: int
    exact_pairs: int
    prunes: bool
    groups: int
    window_rows: int
    window_columns: int
    window_run: int
    log_rows: int
    pivot_step: int

    def attention_tile(self, key_tokens: int) -> int:
        """Rows of an attention tile, float32."""
        return max(self.attention_rows, self.attention_bytes // (4 * key_tokens))


@dataclass(frozen=True)
class AttentionKeys:
    """Keys as a backend's `attend` reads them.

    Attributes:
        values: (heads, d, m), scaled and typed as the backend needs.
        dtype: Precision of queries, keys and rows, float32 or bfloat16.
        longest: Largest Euclidean norm of a column of `values`.
    """

    values: Tensor
    dtype: torch.dtype
    longest: float

    @property
    def tokens(self) -> int:
        """m."""
        return self.values.shape[2]


@dataclass(frozen=True)
class Factors:
    """Rows prepared for the two matrix products that give the KL of all pairs, with the inputs of its error bound.

    Attributes:
        p: The rows, (n, k), bfloat16, or float32 where its products are as fast.
        log: log(p·k), likewise.
        negentropy: sum p·log(p·k) of the rounded factors, (n,) float32. So the KL of equal rows is 0, and the rounding
            errors of a pair of rows are those of their differences.
        log_norm: sqrt(sum p·log(p·k)²), (n,) float32: scales the error bound of bfloat16 products.
        remainder: p in float32 less `p`, (n, k) bfloat16, so that their sum is nearly p; None where the backend keeps
            none, and in parts of the rows.
    """

    p: Tensor
    log: Tensor
    negentropy: Tensor
    log_norm: Tensor
    remainder: Tensor | None = None

    @classmethod
    def empty(cls, count: int, key_tokens: int, dtype: torch.dtype, device: torch.device) -> "Factors":
        """Uninitialized factors of `count` rows, without a remainder."""
        p, log = (torch.empty(count, key_tokens, dtype=dtype, device=device) for _ in range(2))
        return cls(p, log, torch.empty(count, device=device), torch.empty(count, device=device))

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, index: "slice | Tensor") -> "Factors":
        """A part of the rows, without the remainder."""
        if isinstance(index, Tensor):
            return self.map(lambda values: values.index_select(0, index))  # much faster than values[index]
        return self.map(lambda values: values[index])

    def __setitem__(self, index: slice, rows: "Factors") -> None:
        self.p[index], self.log[index] = rows.p, rows.log
        self.negentropy[index], self.log_norm[index] = rows.negentropy, rows.log_norm

    def map(self, change: Callable[[Tensor], Tensor]) -> "Factors":
        """Apply a function to each tensor; the result has no remainder."""
        return Factors(change(self.p), change(self.log), change(self.negentropy), change(self.log_norm))

    def first(self, count: int) -> "Factors":
        """The first rows, with the remainder."""
        part, remainder = self[:count], None if self.remainder is None else self.remainder[:count]
        return Factors(part.p, part.log, part.negentropy, part.log_norm, remainder)


@dataclass(frozen=True)
class Centroids:
    """Centroids of a level, prepared for `Backend.centroid_kl`: (C, k) float32, and their factors."""

    p: Tensor
    factors: Factors


class Backend(Protocol):
    """The operations that take nearly all of the time. `TorchBackend` is the reference implementation.

    Rows are contiguous float32 on `device`; a backend belongs to one job, as it holds scratch memory for each thread.

    Attributes:
        device: Where all tensors are.
        tiling: How work is cut.
        factor_dtype: dtype of factors: bfloat16 where its products are faster than float32's.
        keeps_rows: Whether rows that were kept in bfloat16 replace their computation in the second pass.
    """

    device: torch.device
    tiling: Tiling
    factor_dtype: torch.dtype
    keeps_rows: bool

    @property
    def threads(self) -> int:
        """Threads that work on tiles of their own."""
        ...

    def prepare_keys(self, keys: Tensor, dtype: torch.dtype) -> AttentionKeys:
        """Prepare keys, (heads, d, m) float32, already rounded to `dtype`, for `attend`."""
        ...

    def needs_shift(self, queries: Tensor, keys: AttentionKeys) -> bool:
        """Whether exp(q·k/√d) may leave float32's range, so that `attend` must subtract each row's maximum."""
        ...

    def attend(self, queries: Tensor, keys: AttentionKeys, out: Tensor, *, shift: bool) -> None:
        """Write the mean over heads of softmax(q·k/√d): queries (heads, n, d) float32, `out` (n, m).

        Values are rounded to `keys.dtype`.
        """
        ...

    def empty_factors(self, count: int, key_tokens: int) -> Factors:
        """Uninitialized factors of `count` rows, with a remainder where the backend uses one."""
        ...

    def fill_factors(self, p: Tensor, factors: Factors) -> None:
        """Compute the factors of rows, (n, k)."""
        ...

    def kl_products(self, rows: Factors, others: Factors) -> Tensor:
        """Symmetric KL of all pairs from products of their factors, (n, m), within `kl_bounds.product_error`."""
        ...

    def pair_kl(self, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        """Symmetric KL of the pairs (p[row], q[other]) as the sum is written, float32, (pairs,)."""
        ...

    def pair_kl_as_released(self, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        """`pair_kl` rounded as the released code rounds it, where the backend can follow it."""
        ...

    def add_members(self, sums: Tensor, counts: Tensor, labels: Tensor, p: Tensor, factors: Factors) -> None:
        """Add each row to the sum of its leader, (C, k), and 1 to the leader's count, in a deterministic order.

        Args:
            labels: Index of each row's leader, (n,) int64.
            factors: The rows' factors, with a remainder where the backend uses one.
        """
        ...

    def prepare_centroids(self, p: Tensor) -> Centroids:
        """Prepare centroids, (C, k), for `centroid_kl`."""
        ...

    def centroid_kl(self, p: Tensor, levels: Sequence[Centroids], out: Sequence[Tensor]) -> None:
        """Write the symmetric KL of rows, (n, k), to the centroids of each level, (n, C).

        The nearest centroid and its distance are float32's; other distances may be off by `kl_bounds.product_error`.
        """
        ...
