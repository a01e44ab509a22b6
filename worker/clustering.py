"""Attention maps -> cluster centroids -> distances of every token to them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.attention import AttentionMaps

EPSILON = 1e-12  # keeps log finite, far below 1 / k
WINDOW = 3  # frames the released code clusters together first
TILE_BYTES = 2**26  # float32 rows worked on at once
CANDIDATES = 256  # rows among which new leaders are looked for at once
MEMORY_BYTES = 4 * 2**30

Progress = Callable[[int, int], None]


class MemoryBudgetExceeded(Exception):
    """The leaders' rows outgrow the memory allowed: a smaller key ratio or grid, or a larger τ, needs less."""

    def __init__(self, needed_bytes: int, allowed_bytes: int) -> None:
        super().__init__(f"clustering needs {needed_bytes} bytes for its leaders, {allowed_bytes} are allowed")
        self.needed_bytes = needed_bytes
        self.allowed_bytes = allowed_bytes


@dataclass(frozen=True)
class Round:
    """One round of the loop of Algorithm 1: what merged into what.

    Attributes:
        parents: For each centre before the round the index of the centre it merged into, (C_before,) int64. The
            first round's are of the tokens themselves, (T*N,). The next round starts from max + 1 centres.
    """

    parents: NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """The clusters at one τ.

    Attributes:
        tau: Merge threshold on the symmetric KL divergence, nats.
        centroids: Cluster centroids after the last round, themselves distributions, (C, K*N) float32.
        rounds: The tokens' own round, then those that merged something; the last round of the loop, in which the
            number of centres stays, is left out. The label of a token after round r is
            rounds[r].parents[... rounds[0].parents[token]].
    """

    tau: float
    centroids: Tensor
    rounds: tuple[Round, ...]

    def __post_init__(self) -> None:
        counts = [int(r.parents.max()) + 1 for r in self.rounds]
        sizes = [len(r.parents) for r in self.rounds[1:]]
        if not counts or sizes != counts[:-1] or counts[-1] != len(self.centroids):
            raise ValueError(f"rounds do not lead to {len(self.centroids)} centroids: {counts = }, {sizes = }")


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
    return _distances(_Rows(p), _Rows(q))


class _Rows:
    """Distributions with what distances need of them: log(p·k) and own terms.

    The factor k, the number of key tokens, adds the same to all logs, which leaves J as it is for rows that sum to
    1, and brings the logs near 0, where float32 is finest.
    """

    def __init__(self, p: Tensor) -> None:
        self.p = p
        self.log = p.clamp_min(EPSILON).mul_(p.shape[-1]).log_()
        self.own = (p * self.log).sum(-1)

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, index: "slice | Tensor") -> "_Rows":
        part = object.__new__(_Rows)
        part.p, part.log, part.own = self.p[index], self.log[index], self.own[index]
        return part


def _distances(a: _Rows, b: _Rows) -> Tensor:
    """J between all rows of a and all of b, (n, m)."""
    # Expanded into two matrix products: the sum as written would hold (n, m, k) values at once.
    distances = a.own[:, None] + b.own[None, :]
    return distances.addmm_(a.p, b.log.T, alpha=-1).addmm_(a.log, b.p.T, alpha=-1)


class _Leaders:
    """The greedy walk of Algorithm 1 as a stream: each row joins the earliest leader within τ, or becomes one.

    "x takes every remaining centre within τ" says the same from the leader's side. So rows may come block by block,
    in order, and only the leaders' rows and the sums of their members stay. The distance is to the leader's own
    row; the centre is the mean of all members.

    Args:
        within: Whether distances of this τ merge: J < τ in the paper, J ≤ τ in the released code.
        key_tokens: Length of a row.
        memory_bytes: Allowed for all that grows with the leaders.
    """

    def __init__(
        self, within: Callable[[Tensor], Tensor], key_tokens: int, device: torch.device, memory_bytes: int
    ) -> None:
        self._within = within
        self._memory_bytes = memory_bytes
        self.count = 0
        self._members = torch.zeros(0, device=device)
        self._sums = torch.zeros(0, key_tokens, device=device)
        self._rows = _Rows(self._sums)

    def take(self, rows: _Rows, breathe: Callable[[], None]) -> NDArray[np.int64]:
        """Assign rows, in order, to leaders old and new; returns the leader's index of each row."""
        labels = torch.full((len(rows),), -1, device=rows.p.device)
        if self.count:
            labels = self._join(rows, 0)
        rest = (labels < 0).nonzero()[:, 0]
        while len(rest):
            breathe()
            head, tail = rest[:CANDIDATES], rest[CANDIDATES:]
            candidates = rows[head]
            near = self._within(_distances(candidates, candidates)).cpu().numpy()
            leaders, joined = _walk(near)
            first_new = self.count
            self._add(candidates[torch.from_numpy(leaders).to(head.device)])
            labels[head] = torch.from_numpy(joined + first_new).to(head.device)
            if len(tail):
                labels[tail] = self._join(rows[tail], first_new)
                tail = tail[labels[tail] < 0]
            rest = tail
        self._sums[: self.count].index_add_(0, labels, rows.p)
        self._members[: self.count] += torch.bincount(labels, minlength=self.count)
        return labels.cpu().numpy()

    def means(self) -> Tensor:
        """The centres: the mean of each leader's members, (C, K*N)."""
        return self._sums[: self.count] / self._members[: self.count, None]

    def _join(self, rows: _Rows, first_leader: int) -> Tensor:
        """The earliest leader within τ of each row, from `first_leader` on; -1 where there is none."""
        near = self._within(_distances(rows, self._rows[slice(first_leader, self.count)]))
        index = torch.arange(first_leader, self.count, device=near.device)
        earliest = torch.where(near, index, self.count).amin(1)
        return torch.where(earliest < self.count, earliest, -1)

    def _add(self, rows: _Rows) -> None:
        if self.count + len(rows) > len(self._sums):
            self._grow(max(2 * len(self._sums), self.count + len(rows), 64))
        new = slice(self.count, self.count + len(rows))
        self._rows.p[new], self._rows.log[new], self._rows.own[new] = rows.p, rows.log, rows.own
        self.count += len(rows)

    def _grow(self, capacity: int) -> None:
        needed = 3 * 4 * capacity * self._sums.shape[1]
        if needed > self._memory_bytes:
            raise MemoryBudgetExceeded(needed, self._memory_bytes)

        def grown(old: Tensor) -> Tensor:
            new = old.new_zeros(capacity, *old.shape[1:])
            new[: self.count] = old[: self.count]
            return new

        self._sums, self._members = grown(self._sums), grown(self._members)
        self._rows.p, self._rows.log, self._rows.own = map(grown, (self._rows.p, self._rows.log, self._rows.own))


def _walk(near: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The greedy walk over a square matrix of decided pairs: leaders' rows, and each row's index among them."""
    joined = np.full(len(near), -1, np.int64)
    leaders: list[int] = []
    for row in range(len(near)):
        if joined[row] < 0:
            joined[near[row] & (joined < 0)] = len(leaders)
            joined[row] = len(leaders)  # also where rounding puts a row's distance to itself beyond τ
            leaders.append(row)
    return np.array(leaders, np.int64), joined


def _tiles(total: int, key_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that are worked on at once."""
    step = max(1, TILE_BYTES // (4 * key_tokens))
    return pairwise([*range(0, total, step), total])


def _merge(
    tau: float,
    centroids: Tensor,
    rounds: list[Round],
    within: Callable[[Tensor], Tensor],
    memory_bytes: int,
    breathe: Callable[[], None],
) -> Level:
    """The later rounds: the same walk over all centres until their number stops changing."""
    while True:
        leaders = _Leaders(within, centroids.shape[1], centroids.device, memory_bytes)
        tiles = _tiles(len(centroids), centroids.shape[1])
        parents = np.concatenate([leaders.take(_Rows(centroids[a:b]), breathe) for a, b in tiles])
        if leaders.count == len(centroids):
            return Level(tau, centroids, tuple(rounds))
        centroids = leaders.means()
        rounds.append(Round(parents))


def _checked(taus: Sequence[float]) -> None:
    if not taus or not all(tau > 0 for tau in taus):
        raise ValueError(f"expected thresholds above 0, got {list(taus)}")


def algorithm1(
    maps: AttentionMaps,
    taus: Sequence[float],
    *,
    on_progress: Progress | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Level]:
    """Hierarchical clustering of attention maps: Algorithm 1, for several thresholds in one pass over the maps.

    Memory is leaders × key tokens and one tile, whatever the number of frames.

    Args:
        maps: The attention maps of all frames.
        taus: Merge thresholds, nats; a level each, equal to a run of its own.
        on_progress: Called with (frames done, all frames) at least every second or so; may raise to stop.
        memory_bytes: Allowed for the leaders of all levels together.

    Raises:
        MemoryBudgetExceeded: the leaders outgrow `memory_bytes`.
        ValueError: no threshold, or one that is not above 0.

    Source: Algorithm 1, Appendix A of Ding et al., "Betrayed by Attention" (arXiv:2311.17893).
    """
    _checked(taus)
    share = memory_bytes // len(taus)
    within = [_strictly_within(tau) for tau in taus]
    walks = [_Leaders(inside, maps.key_tokens, maps.device, share) for inside in within]
    parents: list[list[NDArray[np.int64]]] = [[] for _ in taus]
    done = 0

    def breathe() -> None:
        if on_progress is not None:
            on_progress(done, maps.frame_count)

    for frame in range(maps.frame_count):
        breathe()
        frame_rows = maps.rows(frame, frame + 1)
        for start, stop in _tiles(len(frame_rows), maps.key_tokens):
            rows = _Rows(frame_rows[start:stop])
            for walk, labels in zip(walks, parents, strict=True):
                breathe()
                labels.append(walk.take(rows, breathe))
        done = frame + 1
    breathe()
    return [
        _merge(tau, walk.means(), [Round(np.concatenate(labels))], inside, share, breathe)
        for tau, walk, labels, inside in zip(taus, walks, parents, within, strict=True)
    ]


def windowed(
    maps: AttentionMaps,
    taus: Sequence[float],
    *,
    on_progress: Progress | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Level]:
    """Hierarchical clustering as the authors' released code does it, which differs from Algorithm 1.

    The first level works in windows of 3 frames: each row is replaced by the mean of the window's rows within τ
    (J ≤ τ), renormalised; on those smoothed rows a greedy merge (J ≤ τ), each merged group's plain mean a centre.
    Later rounds merge the centres of all windows likewise until their number stops changing.

    Arguments, results and errors are those of `algorithm1`; the first round's parents are the windows' groups.
    """
    _checked(taus)
    share = memory_bytes // len(taus)
    within = [_within_or_at(tau) for tau in taus]
    centroids: list[list[Tensor]] = [[] for _ in taus]
    parents: list[list[NDArray[np.int64]]] = [[] for _ in taus]
    done = 0

    def breathe() -> None:
        if on_progress is not None:
            on_progress(done, maps.frame_count)

    for first in range(0, maps.frame_count, WINDOW):
        breathe()
        stop_frame = min(first + WINDOW, maps.frame_count)
        window = _Rows(maps.rows(first, stop_frame))
        for level, inside in enumerate(within):
            walk = _Leaders(inside, maps.key_tokens, maps.device, share)
            offset = sum(map(len, centroids[level]))
            for start, stop in _tiles(len(window), maps.key_tokens):
                breathe()
                near = inside(_distances(window[slice(start, stop)], window)).float()
                smooth = near @ window.p
                smooth /= smooth.sum(-1, keepdim=True)
                parents[level].append(walk.take(_Rows(smooth), breathe) + offset)
            centroids[level].append(walk.means())
            needed = 3 * 4 * maps.key_tokens * (offset + walk.count)
            if needed > share:
                raise MemoryBudgetExceeded(needed, share)
        done = stop_frame
    breathe()
    return [
        _merge(tau, torch.cat(means), [Round(np.concatenate(labels))], inside, share, breathe)
        for tau, means, labels, inside in zip(taus, centroids, parents, within, strict=True)
    ]


def _strictly_within(tau: float) -> Callable[[Tensor], Tensor]:
    return lambda distances: distances < tau


def _within_or_at(tau: float) -> Callable[[Tensor], Tensor]:
    return lambda distances: distances <= tau


def distances(
    maps: AttentionMaps, levels: Sequence[Level], *, on_progress: Progress | None = None
) -> Iterator[tuple[int, int, list[Tensor]]]:
    """J of every token to every centroid, frame by frame, in one pass over the maps for all levels.

    Z = argmin over the last dimension is the assignment of Algorithm 1.

    Yields:
        (start frame, stop frame, per level the distances in nats, (b, N, C) float32 on the maps' device).
    """
    centroids = [_Rows(level.centroids) for level in levels]
    for frame in range(maps.frame_count):
        if on_progress is not None:
            on_progress(frame, maps.frame_count)
        frame_rows = maps.rows(frame, frame + 1)
        parts: list[list[Tensor]] = [[] for _ in levels]
        for start, stop in _tiles(len(frame_rows), maps.key_tokens):
            rows = _Rows(frame_rows[start:stop])
            for part, centres in zip(parts, centroids, strict=True):
                part.append(_distances(rows, centres))
        yield frame, frame + 1, [torch.cat(part)[None] for part in parts]
    if on_progress is not None:
        on_progress(maps.frame_count, maps.frame_count)
