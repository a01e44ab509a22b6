"""Blocks of rows with their factors, in memory that is filled again and again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.numerics.backend import Backend, Factors
from worker.numerics.kl_bounds import group_count, group_sums
from worker.numerics.tile_pool import TilePool

RowSource = Callable[[int, int, Tensor], None]
"""Writes the rows start to stop (exclusive) into a tensor; any thread may call it."""


@dataclass
class Rows:
    """Rows with what is computed from them to compare them quickly.

    Attributes:
        p: The rows, (n, k) float32.
        factors: Their factors.
        group_factors: Factors of their sums over groups of keys; None where leaders are not pruned.
    """

    p: Tensor
    factors: Factors
    group_factors: Factors | None

    @classmethod
    def empty(cls, count: int, key_tokens: int, backend: Backend) -> "Rows":
        """Uninitialized rows."""
        groups = None
        if backend.tiling.prunes:
            groups = backend.empty_factors(count, group_count(key_tokens, backend.tiling.groups))
        p = torch.empty(count, key_tokens, device=backend.device)
        return cls(p, backend.empty_factors(count, key_tokens), groups)

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, index: slice | Tensor) -> "Rows":
        """A part of the rows, without the remainder of their factors."""
        p = self.p[index] if isinstance(index, slice) else self.p.index_select(0, index)
        groups = None if self.group_factors is None else self.group_factors[index]
        return Rows(p, self.factors[index], groups)

    def __setitem__(self, index: slice, rows: "Rows") -> None:
        self.p[index], self.factors[index] = rows.p, rows.factors
        if self.group_factors is not None and rows.group_factors is not None:
            self.group_factors[index] = rows.group_factors

    def first(self, count: int) -> "Rows":
        """The first rows, with the remainder of their factors."""
        part = self[:count]
        return Rows(part.p, self.factors.first(count), part.group_factors)

    def resize(self, resize: Callable[[Tensor], Tensor]) -> None:
        """Move the rows to other memory, which a function gives for each tensor."""
        self.p = resize(self.p)  # in turn: only one tensor exists twice
        self.factors = self.factors.map(resize)
        if self.group_factors is not None:
            self.group_factors = self.group_factors.map(resize)

    def prepare(self, backend: Backend) -> None:
        """Compute the factors from `p`."""
        backend.fill_factors(self.p, self.factors)
        if self.group_factors is not None:
            backend.fill_factors(group_sums(self.p, backend.tiling.groups), self.group_factors)


def row_bytes(key_tokens: int, backend: Backend) -> int:
    """Memory of one of `Rows`, without what is small beside it."""
    return key_tokens * (4 + 2 * backend.factor_dtype.itemsize)


def block_capacity(key_tokens: int, backend: Backend) -> int:
    """Rows of a block."""
    return max(1, backend.tiling.block_bytes // row_bytes(key_tokens, backend))


def even_ranges(count: int, most: int) -> list[tuple[int, int]]:
    """Ranges (start, stop) of about the same size, each of at most `most`."""
    step = -(-count // -(-count // most))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


class RowBlock:
    """Memory for a block of rows.

    Args:
        capacity: Most rows.
        key_tokens: Length of a row.
        backend: Computes the factors.
        pool: Its threads fill the rows.
    """

    def __init__(self, capacity: int, key_tokens: int, *, backend: Backend, pool: TilePool) -> None:
        self._rows = Rows.empty(capacity, key_tokens, backend)
        self._backend, self._pool = backend, pool
        self._tile = backend.tiling.attention_tile(key_tokens)
        self._capacity = capacity

    def read(self, count: int, source: RowSource) -> Iterator[Rows]:
        """Rows 0 to `count` of a source, in order, a block at a time; a block is valid until the next one is read."""
        for first, last in even_ranges(count, self._capacity):
            yield self._fill(first, last, source)

    def _fill(self, first: int, last: int, source: RowSource) -> Rows:
        rows = self._rows.first(last - first)
        by_tile = rows.factors.remainder is None  # parts of a block have no remainder to compute

        def work(start: int, stop: int) -> None:
            source(first + start, first + stop, rows.p[start:stop])
            if by_tile:
                rows[start:stop].prepare(self._backend)

        self._pool.run(work, len(rows), self._pool.step(len(rows), self._tile))
        if not by_tile:
            rows.prepare(self._backend)
        return rows


def copy_from(rows: Tensor) -> RowSource:
    """Rows in memory as a source."""

    def copy(start: int, stop: int, out: Tensor) -> None:
        out.copy_(rows[start:stop])

    return copy
