"""The clustering of the authors' released code, which differs from Algorithm 1 in its first level."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.method.algorithm1 import BUDGET_BYTES, Level, Round, checked, merge_until_stable
from worker.method.attention import AttentionMaps, LoadedFrames
from worker.method.leaders import LeaderClustering, MemoryBudgetExceeded
from worker.method.merge_rules import ReleasedRule
from worker.numerics.blocks import RowBlock, block_capacity
from worker.numerics.kl import log_density, released_log, released_negentropy, symmetric_kl
from worker.numerics.kl_bounds import GROUP_SLACK, group_count, group_sums
from worker.numerics.tile_pool import ThreadBuffers

WINDOW = 3  # frames
BLOCK_SHARE = 4  # beside a window's memory, a block takes this part of its usual capacity
ASSIGN_ROWS = 1024  # rows whose nearest pivots are searched at once


def windowed(maps: AttentionMaps, taus: Sequence[float], *, budget_bytes: int = BUDGET_BYTES) -> list[Level]:
    """Hierarchical clustering as the authors' released code does it.

    The first level works in windows of 3 frames: each row is replaced by the mean of the window's rows with KL <= τ,
    renormalised; on those smoothed rows a greedy merge (KL <= τ), each merged group's mean a centre. Later rounds
    merge the centres of all windows likewise until their number stays the same.

    Arguments, results and errors are those of `algorithm1`; the first round's parents are the windows' groups.
    """
    rules = [ReleasedRule(tau) for tau in checked(taus)]
    share = budget_bytes // len(rules)
    if (needed := Window.bytes_needed(maps, len(rules))) > budget_bytes:
        raise MemoryBudgetExceeded(needed, budget_bytes)
    window = Window(maps, len(rules))
    capacity = min(window.capacity, max(1, block_capacity(maps.key_tokens, maps.backend) // BLOCK_SHARE))
    memory = RowBlock(capacity, maps.key_tokens, backend=maps.backend, pool=maps.pool)
    centroids: list[list[Tensor]] = [[] for _ in rules]
    parents: list[list[NDArray[np.int64]]] = [[] for _ in rules]
    for first in range(0, maps.frame_count, WINDOW):
        maps.pool.advance(first, maps.frame_count)
        window.fill(maps.load(first, min(first + WINDOW, maps.frame_count)), taus)
        for level, rule in enumerate(rules):
            window.smooth(level)
            walk = LeaderClustering(maps, rule, share)
            for block in memory.read(len(window), window.copy_smoothed):
                walk.add(block)
            earlier = sum(map(len, centroids[level]))
            needed = 4 * maps.key_tokens * (earlier + walk.count)
            if needed > share:
                raise MemoryBudgetExceeded(needed, share)
            parents[level].append(walk.labels() + earlier)
            centroids[level].append(walk.centroids())
    maps.pool.advance(maps.frame_count, maps.frame_count)
    return [
        merge_until_stable(maps, rule, Round(np.concatenate(parents[level])), torch.cat(centroids[level]), share)
        for level, rule in enumerate(rules)
    ]


class Window:
    """The rows of a window, which pairs of them are neighbours (KL <= τ) at some thresholds, and neighbours' means.

    Everything is in float32, and KL is rounded as the released code rounds it, so that pairs near τ are decided as
    there. That code takes two products over all pairs for the KL and a third for the means. Here a lower bound, the KL
    of group sums, shows at little cost that most pairs are far apart. Rows are sorted by similarity, so that a tile of
    rows has few neighbours, and only those are multiplied.

    Args:
        maps: The attention maps; a window is at most 3 of their frames.
        levels: Number of thresholds.

    Attributes:
        capacity: Most rows of a window.
        order: Index of each sorted row among the window's rows, (n,) int64, once filled.
        neighbours: Per level, which pairs of the sorted rows are neighbours.
    """

    def __init__(self, maps: AttentionMaps, levels: int) -> None:
        self.capacity = min(WINDOW, maps.frame_count) * maps.tokens_per_frame
        self._pool, self._device, self._tiling = maps.pool, maps.device, maps.backend.tiling
        self._fill_rows = self._tiling.attention_tile(maps.key_tokens)
        self._buffers = ThreadBuffers(maps.device)
        # Two tensors suffice, as one of them holds three things in turn: rows, then logarithms, then smoothed rows.
        storage = torch.empty(self.capacity, maps.key_tokens, device=maps.device)
        self._rows = self._sorted_log = self._smoothed = storage
        self._sorted = torch.empty(self.capacity, maps.key_tokens, device=maps.device)
        self.order = torch.arange(0, device=maps.device)
        self.neighbours = [NeighbourPairs(self.capacity, self._tiling.window_rows, maps.device) for _ in range(levels)]

    @staticmethod
    def bytes_needed(maps: AttentionMaps, levels: int) -> int:
        """The memory that a window of these maps takes."""
        rows = min(WINDOW, maps.frame_count) * maps.tokens_per_frame
        pairs = NeighbourPairs.stored(rows, rows, maps.backend.tiling.window_rows)
        return rows * 2 * 4 * maps.key_tokens + levels * pairs

    def __len__(self) -> int:
        """Rows of the window at present."""
        return len(self.order)

    def fill(self, frames: LoadedFrames, taus: Sequence[float]) -> None:
        """Compute the rows of the frames and decide which pairs are neighbours at each threshold."""
        count = len(frames)
        groups = torch.empty(count, group_count(self._rows.shape[1], self._tiling.groups), device=self._device)

        def fill(start: int, stop: int) -> None:
            frames.fill(start, stop, self._rows[start:stop])
            groups[start:stop] = group_sums(self._rows[start:stop], self._tiling.groups)

        self._pool.run(fill, count, self._fill_rows)
        frames.done()
        order = self.order = sort_by_similarity(groups, self._tiling.pivot_step)

        def sort(start: int, stop: int) -> None:
            torch.index_select(self._rows[:count], 0, order[start:stop], out=self._sorted[start:stop])

        self._pool.run(sort, count, self._tiling.log_rows)
        self._find_neighbours(groups[order], taus)

    def _find_neighbours(self, groups: Tensor, taus: Sequence[float]) -> None:
        p, log = self._sorted[: len(self)], self._sorted_log[: len(self)]
        negentropy = torch.empty(len(self), device=self._device)
        group_log = log_density(groups, torch.empty_like(groups))
        group_negentropy = torch.linalg.vecdot(groups, group_log)

        def take_logs(start: int, stop: int) -> None:
            part = slice(start, stop)
            negentropy[part] = released_negentropy(p[part], released_log(p[part], log[part]))

        self._pool.run(take_logs, len(self), self._tiling.log_rows)
        for pairs in self.neighbours:
            pairs.count = len(self)

        def decide(start: int, stop: int) -> None:
            # Only with the rows from `start` on: the other half of the square is its mirror image.
            lower_bound = group_negentropy[start:stop, None] + group_negentropy[None, start:]
            lower_bound.addmm_(groups[start:stop], group_log[start:].T, alpha=-1)
            lower_bound.addmm_(group_log[start:stop], groups[start:].T, alpha=-1)
            others = (lower_bound <= max(taus) + GROUP_SLACK).any(0).nonzero()[:, 0] + start
            tiles = [pairs.tile(start).zero_() for pairs in self.neighbours]
            for index in self._pieces(others):
                other_p, other_log = self._select(p, index, "other_p"), self._select(log, index, "other_log")
                crossed = torch.mm(p[start:stop], other_log.T).add_(torch.mm(log[start:stop], other_p.T))
                kl = (negentropy[start:stop, None] + negentropy[index]).sub_(crossed)
                for tile, tau in zip(tiles, taus, strict=True):
                    tile[:, _shifted(index, -start)] = kl <= tau
            for tile in tiles:
                square = tile[:, : stop - start]
                square |= square.T.clone()
                square.fill_diagonal_(True)  # also where rounding puts a row's KL to itself beyond τ

        self._pool.run(decide, len(self), self._tiling.window_rows)

    def smooth(self, level: int) -> None:
        """Compute the mean of each row's neighbours at a level's threshold, renormalised, for `copy_smoothed`."""

        def work(start: int, stop: int) -> None:
            near = self.neighbours[level].rows(start)
            mean = self._buffers.get("mean", stop - start, self._sorted.shape[1]).zero_()
            for index in self._pieces(near.any(0).nonzero()[:, 0]):
                mean.addmm_(near[:, index].float(), self._select(self._sorted, index, "other_p"))
            self._smoothed[self.order[start:stop]] = mean.div_(mean.sum(-1, keepdim=True))

        self._pool.run(work, len(self), self._tiling.window_rows)

    def copy_smoothed(self, start: int, stop: int, out: Tensor) -> None:
        """Write the smoothed rows start to stop (exclusive), in the frames' order, into `out`."""
        out.copy_(self._smoothed[start:stop])

    def _pieces(self, index: Tensor) -> list[slice | Tensor]:
        """Rows of these indices in pieces: slices for long runs of consecutive rows, and the others together."""
        columns, run = self._tiling.window_columns, self._tiling.window_run
        if not run:
            return list(torch.split(index, columns))
        runs = index.tensor_split((index.diff() > 1).nonzero()[:, 0] + 1)
        pieces: list[slice | Tensor] = [slice(int(r[0]), int(r[-1]) + 1) for r in runs if len(r) >= run]
        if short := [r for r in runs if len(r) < run]:
            pieces += torch.split(torch.cat(short), columns)
        return pieces

    def _select(self, rows: Tensor, index: slice | Tensor, buffer: str) -> Tensor:
        if isinstance(index, slice):
            return rows[index]
        return torch.index_select(rows, 0, index, out=self._buffers.get(buffer, len(index), rows.shape[1]))


class NeighbourPairs:
    """Which pairs of the sorted rows are neighbours at one threshold.

    Each tile of rows stores its pairs with itself and the rows behind it; pairs with the rows before it are stored in
    their tiles. That is half the memory of all pairs.

    Attributes:
        count: Rows at present, at most `capacity`.
    """

    def __init__(self, capacity: int, tile: int, device: torch.device) -> None:
        self._pairs = torch.empty(self.stored(capacity, capacity, tile), dtype=torch.bool, device=device)
        self._tile_rows, self.count = tile, capacity

    @staticmethod
    def stored(count: int, stop: int, tile: int) -> int:
        """How many pairs of `count` rows are stored for the tiles before row `stop`."""
        return sum(min(tile, count - first) * (count - first) for first in range(0, stop, tile))

    def tile(self, start: int) -> Tensor:
        """Pairs of the tile at `start` with the rows from `start` on, bool, (n, count - start)."""
        shape = min(self._tile_rows, self.count - start), self.count - start
        offset = self.stored(self.count, start, self._tile_rows)
        return self._pairs[offset : offset + shape[0] * shape[1]].view(shape)

    def rows(self, start: int) -> Tensor:
        """Pairs of the tile at `start` with all rows, bool, (n, count)."""
        own = self.tile(start)
        before = (self.tile(first)[:, start - first :][:, : len(own)].T for first in range(0, start, self._tile_rows))
        return torch.cat([*before, own], 1)


def _shifted(index: slice | Tensor, by: int) -> slice | Tensor:
    return slice(index.start + by, index.stop + by) if isinstance(index, slice) else index + by


def sort_by_similarity(rows: Tensor, pivot_step: int) -> Tensor:
    """An order of rows, (n,) int64: grouped around pivots, and each pivot followed by the most similar one left."""
    pivots = rows[::pivot_step]
    kl = symmetric_kl(pivots, pivots).cpu().numpy()
    rank, current = np.zeros(len(pivots), np.int64), 0
    remaining = np.ones(len(pivots), bool)
    for number in range(len(pivots)):
        rank[current], remaining[current] = number, False
        current = int(np.where(remaining, kl[current], np.inf).argmin())
    nearest = torch.cat([symmetric_kl(part, pivots).argmin(1) for part in torch.split(rows, ASSIGN_ROWS)])
    return torch.argsort(torch.from_numpy(rank).to(nearest.device)[nearest], stable=True)
