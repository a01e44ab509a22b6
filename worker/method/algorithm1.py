"""Algorithm 1: hierarchical clustering of attention maps by their symmetric KL divergence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from worker.method.attention import AttentionMaps
from worker.method.leaders import LeaderClustering
from worker.method.merge_rules import MergeRule, PaperRule
from worker.numerics.blocks import RowBlock, block_capacity, copy_from

BUDGET_BYTES = 4 * 2**30


def algorithm1(maps: AttentionMaps, taus: Sequence[float], *, budget_bytes: int = BUDGET_BYTES) -> list["Level"]:
    """Hierarchical clustering of attention maps, for several thresholds in one pass over the maps.

    Each round is a leader clustering: walk the centres in order; x takes every remaining centre with KL < τ, itself
    included; their mean is a new centre. Rounds repeat until the number of centres stays the same. The first round's
    centres are the attention maps of all tokens. Memory is leaders × key tokens and one block, whatever the number
    of frames.

    Source: Algorithm 1, Appendix A of Ding et al., "Betrayed by Attention" (arXiv:2311.17893); one round is the leader
    algorithm of Hartigan, "Clustering Algorithms" (1975), chapter 3.

    Args:
        maps: The attention maps of all frames.
        taus: Merge thresholds, nats; a level each, equal to that of a separate run.
        budget_bytes: Memory for the leaders of all levels together.

    Raises:
        MemoryBudgetExceeded: The leaders outgrow `budget_bytes`.
        ValueError: There is no threshold, or one is not above 0.
    """
    rules = [PaperRule(tau) for tau in checked(taus)]
    share = budget_bytes // len(rules)
    walks = [LeaderClustering(maps, rule, share) for rule in rules]
    for block in maps.blocks():
        for walk in walks:
            walk.add(block)
    return [
        merge_until_stable(maps, rule, Round(walk.labels()), walk.centroids(), share)
        for rule, walk in zip(rules, walks, strict=True)
    ]


def merge_until_stable(
    maps: AttentionMaps, rule: MergeRule, first: "Round", centroids: Tensor, budget_bytes: int
) -> "Level":
    """The later rounds of Algorithm 1, from the centroids of the first one, (C, K*N)."""
    rounds = [first]
    capacity = min(len(centroids), block_capacity(maps.key_tokens, maps.backend))
    memory = RowBlock(capacity, maps.key_tokens, backend=maps.backend, pool=maps.pool)
    while True:
        walk = LeaderClustering(maps, rule, budget_bytes)
        for block in memory.read(len(centroids), copy_from(centroids)):
            walk.add(block)
        if walk.count == len(centroids):
            return Level(rule.tau, centroids, tuple(rounds))
        centroids = walk.centroids()
        rounds.append(Round(walk.labels()))


def checked(taus: Sequence[float]) -> Sequence[float]:
    """The thresholds.

    Raises:
        ValueError: There is none, or one is not above 0.
    """
    if not taus or not all(tau > 0 for tau in taus):
        raise ValueError(f"thresholds tau must be above 0, and at least one, got {list(taus)}")
    return taus


@dataclass(frozen=True)
class Round:
    """One round of the loop of Algorithm 1.

    Attributes:
        parents: For each centre before the round the index of the centre it merged into, (C_before,) int64. The
            first round's centres are the tokens, (T*N,). The next round starts from max + 1 centres.
    """

    parents: NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """The clusters at one τ.

    Attributes:
        tau: Merge threshold on the symmetric KL divergence, nats.
        centroids: Cluster centroids after the last round, themselves distributions, (C, K*N) float32.
        rounds: The tokens' round, then those that merged something; the last round of the loop, which merges nothing,
            is left out. The label of a token after round r is rounds[r].parents[... rounds[0].parents[token]].
    """

    tau: float
    centroids: Tensor
    rounds: tuple[Round, ...]

    def __post_init__(self) -> None:
        counts = [int(r.parents.max()) + 1 for r in self.rounds]
        sizes = [len(r.parents) for r in self.rounds[1:]]
        if not counts or sizes != counts[:-1] or counts[-1] != len(self.centroids):
            raise ValueError(f"rounds do not lead to {len(self.centroids)} centroids: {counts = }, {sizes = }")
