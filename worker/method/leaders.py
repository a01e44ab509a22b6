"""Leader clustering as a stream, exact and fast: the greedy walk of Algorithm 1 in one pass over the rows."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.method.attention import AttentionMaps
from worker.method.merge_rules import MergeRule
from worker.numerics.backend import Factors
from worker.numerics.blocks import Rows, row_bytes
from worker.numerics.kl_bounds import GROUP_SLACK, product_error

LEAST_CAPACITY = 64  # leaders


class MemoryBudgetExceeded(Exception):
    """The leaders' rows outgrow the memory budget; a smaller key ratio or grid, or a larger τ, needs less."""

    def __init__(self, needed_bytes: int, budget_bytes: int) -> None:
        super().__init__(
            f"clustering needs {needed_bytes} bytes for its leaders, the memory budget is {budget_bytes} bytes: "
            "lower key_ratio or the resolution, or raise tau"
        )
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes


class LeaderClustering:
    """Leader clustering: each row joins the earliest leader that the rule accepts, or becomes a leader.

    "x takes every remaining centre within τ" (Algorithm 1) states the same from the leader's side. So rows may arrive
    block by block, in order, and only the leaders' rows and the sums of their members stay in memory. KL is taken to
    the leader's own row; the centroid is the mean of all members.

    Leaders are pruned with a lower bound: the KL of group sums never exceeds that of the rows. Most of the remaining
    pairs are decided by fast products of their factors, whose error is bounded; pairs within the bound of τ are
    computed again in float32. So every pair is decided as float32 decides it. Bounds and proofs: `kl_bounds`.

    Source: Hartigan, "Clustering Algorithms" (1975), chapter 3: the leader algorithm.

    Args:
        maps: The attention maps; only their backend, tile pool and row length are used.
        rule: When a row joins a leader.
        budget_bytes: Memory for everything that grows with the leaders.

    Attributes:
        count: Leaders so far.
    """

    def __init__(self, maps: AttentionMaps, rule: MergeRule, budget_bytes: int) -> None:
        self.count = 0
        self._backend, self._pool, self._tiling = maps.backend, maps.pool, maps.backend.tiling
        self._rule = rule
        self._budget_bytes = budget_bytes
        self._labels: list[NDArray[np.int64]] = []
        self._member_counts = torch.zeros(0, device=maps.device)
        self._member_sums = torch.zeros(0, maps.key_tokens, device=maps.device)
        self._leaders = Rows.empty(0, maps.key_tokens, self._backend)

    def add(self, block: Rows) -> None:
        """Assign rows, in order, to earlier leaders and new ones.

        Raises:
            MemoryBudgetExceeded: The leaders outgrow the budget.
        """
        labels = self._join(block, first_leader=0)
        unassigned, first_new = (labels < 0).nonzero()[:, 0], self.count
        for start in range(0, len(unassigned), self._tiling.candidate_rows):
            candidates = unassigned[start : start + self._tiling.candidate_rows]
            if self.count > first_new:
                rows = block[self._padded(candidates, candidates[-1:])]
                labels[candidates] = self._join(rows, first_new)[: len(candidates)]
                candidates = candidates[labels[candidates] < 0]
            if len(candidates):
                near = self._accepted_pairs(block.p.index_select(0, candidates))
                leaders, joined = walk_greedily(near.cpu().numpy())
                labels[candidates] = torch.from_numpy(joined + self.count).to(labels.device)
                self._append(block[candidates[torch.from_numpy(leaders).to(labels.device)]])
        sums, counts = self._member_sums[: self.count], self._member_counts[: self.count]
        self._backend.add_members(sums, counts, labels, block.p, block.factors)
        self._labels.append(labels.cpu().numpy())

    def labels(self) -> NDArray[np.int64]:
        """Index of the leader of every row so far."""
        return np.concatenate(self._labels)

    def centroids(self) -> Tensor:
        """Mean of each leader's members, (C, K*N)."""
        return self._member_sums[: self.count] / self._member_counts[: self.count, None]

    def _join(self, rows: Rows, first_leader: int) -> Tensor:
        """The earliest leader from `first_leader` on that the rule accepts for each row; -1 where there is none."""
        p = rows.p
        if self.count == first_leader:
            return torch.full((len(p),), -1, device=p.device)
        earliest = torch.empty(len(p), dtype=torch.int64, device=p.device)
        uncertain: list[Tensor] = []

        def decide(start: int, stop: int) -> None:
            groups = None if rows.group_factors is None else rows.group_factors[start:stop]
            index, leaders = self._compared(groups, first_leader)
            factors = rows.factors[start:stop]
            kl, error = self._backend.kl_products(factors, leaders), self._error(factors, leaders)[:, None]
            earliest[start:stop] = torch.where(self._rule.accepts(kl, -error), index, self.count).amin(1)
            # Pairs behind a leader that certainly takes the row need no decision.
            undecided = self._rule.accepts(kl, error) & (index < earliest[start:stop, None])
            if len(pairs := undecided.nonzero()):
                uncertain.append(torch.stack([pairs[:, 0] + start, index[pairs[:, 1]]]))

        self._pool.run(decide, len(p), self._pool.step(len(p), self._tiling.product_rows))
        if uncertain:
            row, leader = torch.cat(uncertain, 1)
            near = self._rule.accepts(self._exact_kl(p, row, leader))
            earliest.scatter_reduce_(0, row[near], leader[near], "amin")
        return torch.where(earliest < self.count, earliest, -1)

    def _compared(self, groups: Factors | None, first: int) -> tuple[Tensor, Factors]:
        """The leaders from `first` on that a tile of rows is multiplied with: indices and factors.

        Pruned leaders are padded to a multiple of the shape step with others, whose index is `count`.
        """
        leaders = self._leaders
        if groups is None or leaders.group_factors is None:
            return torch.arange(first, self.count, device=leaders.p.device), leaders.factors[first : self.count]
        near = self._unpruned(groups, leaders.group_factors, first)
        index = self._padded(near, near.new_full((1,), self.count))
        last = first + len(index)
        if len(near) == self.count - first and last <= len(leaders):  # all of them: no copy is needed
            return index, leaders.factors[first:last]
        return index, leaders.factors[index.clamp(max=self.count - 1)]

    def _unpruned(self, rows: Factors, leaders: Factors, first: int) -> Tensor:
        """The leaders from `first` on whose lower bound lies within τ of any of the rows."""
        lower_bound = self._backend.kl_products(rows, leaders[: self._whole_steps(self.count)])[:, first : self.count]
        reach = self._error(rows, leaders[: self.count]).add_(self._rule.tau + GROUP_SLACK)
        return (lower_bound <= reach[:, None]).any(0).nonzero()[:, 0] + first

    def _error(self, rows: Factors, leaders: Factors) -> Tensor:
        return product_error(self._rule.tau, rows, leaders) + self._rule.noise

    def _exact_kl(self, p: Tensor, row: Tensor, leader: Tensor) -> Tensor:
        """KL in float32 of the pairs (p[row], leaders[leader])."""
        kl = torch.empty(len(row), device=p.device)

        def work(start: int, stop: int) -> None:
            pairs = slice(start, stop)
            kl[pairs] = self._rule.pair_kl(self._backend, p, row[pairs], self._leaders.p, leader[pairs])

        self._pool.run(work, len(row), self._tiling.exact_pairs)
        return kl

    def _accepted_pairs(self, p: Tensor) -> Tensor:
        """Which of all pairs of a few rows the rule accepts, bool, (n, n); in float32."""
        log = self._rule.log(p)
        products = torch.empty(len(p), len(p), device=p.device)

        def work(start: int, stop: int) -> None:
            torch.mm(p[start:stop], log.T, out=products[start:stop])

        self._pool.run(work, len(p), self._tiling.candidate_tile)
        return self._rule.accepts(self._rule.square_kl(p, log, products))

    def _append(self, rows: Rows) -> None:
        if self.count + len(rows) > len(self._leaders):
            self._grow(self.count + len(rows))
        self._leaders[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def _grow(self, needed: int) -> None:
        key_tokens = self._member_sums.shape[1]
        leader_bytes = 4 * key_tokens + row_bytes(key_tokens, self._backend)
        if needed * leader_bytes > self._budget_bytes:
            raise MemoryBudgetExceeded(needed * leader_bytes, self._budget_bytes)
        capacity = min(max(needed, 2 * len(self._leaders), LEAST_CAPACITY), self._budget_bytes // leader_bytes)

        def resize(old: Tensor) -> Tensor:
            new = old.new_zeros(capacity, *old.shape[1:])
            new[: self.count] = old[: self.count]
            return new

        self._member_counts = resize(self._member_counts)
        self._member_sums = resize(self._member_sums)
        self._leaders.resize(resize)

    def _whole_steps(self, count: int) -> int:
        """The next multiple of the shape step."""
        return max(1, -(-count // self._tiling.shape_step)) * self._tiling.shape_step

    def _padded(self, index: Tensor, padding: Tensor) -> Tensor:
        return torch.cat([index, padding.expand(self._whole_steps(len(index)) - len(index))])


def walk_greedily(near: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The greedy walk over a square matrix of decided pairs: rows that lead, and each row's index among them."""
    joined = np.full(len(near), -1, np.int64)
    leaders: list[int] = []
    for row in range(len(near)):
        if joined[row] < 0:
            joined[near[row] & (joined < 0)] = len(leaders)
            joined[row] = len(leaders)  # also where rounding puts a row's KL to itself beyond τ
            leaders.append(row)
    return np.array(leaders, np.int64), joined
