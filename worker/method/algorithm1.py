"""Attention maps -> cluster centroids -> distances of every token to them."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.method.attention import AttentionMaps
from worker.method.windowed import WINDOW, Window
from worker.numerics import kernels, loops
from worker.numerics.divergence import (
    BFLOAT16_UNIT,
    EPSILON,
    GROUPS_SLACK,
    RELEASED_NOISE,
    SLACK,
    Factors,
    fast_dtype,
    group_count,
    group_width,
    grouped,
    log_density,
    near_enough,
    pair_divergences,
    released_log,
    released_own,
    released_pair_divergences,
)
from worker.numerics.tile_pool import Crew

BLOCK_BYTES, GPU_BLOCK_BYTES = 2**26, 2**30  # of rows that are worked on together, with their factors
SHAPE_STEP = 64  # of rows and of leaders that are multiplied
CANDIDATES = 256  # rows among which new leaders are looked for at once
PRODUCT_ROWS = 256  # rows of one thread's product: below, products are slower
PAIRS, GPU_PAIRS = 8, 2**12  # single pairs that are decided at once
DISTANCE_BYTES = 2**24  # of distances given out at once
MEMORY_BYTES = 4 * 2**30

Progress = Callable[[int, int], None]
Source = Callable[[int, int, Tensor], None]  # writes rows start to stop (exclusive) into a tensor


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


@dataclass
class _Rows:
    """Rows, and what is made of them to compare them quickly.

    Attributes:
        p: The rows, (n, K*N) float32.
        factors: Theirs.
        coarse: Factors of their sums over groups of keys; None on a GPU, which compares all with all.
    """

    p: Tensor
    factors: Factors
    coarse: Factors | None

    @classmethod
    def empty(cls, count: int, key_tokens: int, device: torch.device) -> "_Rows":
        dtype, coarse = fast_dtype(device), None
        if device.type == "cpu":
            coarse = Factors.empty(count, group_count(key_tokens), dtype, device)
        p = torch.empty(count, key_tokens, device=device)
        return cls(p, Factors.empty(count, key_tokens, dtype, device), coarse)

    @staticmethod
    def bytes_of(key_tokens: int, device: torch.device) -> int:
        """The memory that one row takes, but for what is small beside it."""
        return key_tokens * (4 + 2 * fast_dtype(device).itemsize)

    def __len__(self) -> int:
        return len(self.p)

    def __getitem__(self, index: slice | Tensor) -> "_Rows":
        p = self.p[index] if isinstance(index, slice) else self.p.index_select(0, index)
        return _Rows(p, self.factors[index], None if self.coarse is None else self.coarse[index])

    def __setitem__(self, index: slice, rows: "_Rows") -> None:
        self.p[index], self.factors[index] = rows.p, rows.factors
        if self.coarse is not None and rows.coarse is not None:
            self.coarse[index] = rows.coarse

    def first(self, count: int) -> "_Rows":
        """The first rows, with what a GPU keeps of their rounding."""
        some = slice(0, count)
        return _Rows(self.p[some], self.factors.first(count), None if self.coarse is None else self.coarse[some])

    def prepare(self) -> None:
        """Make what is made of the rows."""
        self.factors.fill(self.p)
        if self.coarse is not None:
            self.coarse.fill(grouped(self.p, group_width(self.p.shape[1])))


class _Block:
    """Rows that are worked on together: memory that is filled again and again."""

    def __init__(self, count: int, key_tokens: int, device: torch.device, crew: Crew, tile_rows: int) -> None:
        self._all = self.rows = _Rows.empty(count, key_tokens, device)
        self._crew, self._tile_rows = crew, tile_rows
        self.capacity = count

    @staticmethod
    def rows_of(key_tokens: int, device: torch.device) -> int:
        """How many rows make a block."""
        limit = BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES
        return max(1, limit // _Rows.bytes_of(key_tokens, device))

    def fill(self, count: int, source: Source, breathe: Callable[[], None]) -> None:
        """Take `count` rows from `source(start, stop, out)`."""
        rows = self.rows = self._all.first(count)

        def work(start: int, stop: int) -> None:
            source(start, stop, rows.p[start:stop])
            if rows.factors.rest is None:
                rows[start:stop].prepare()

        self._crew.run(work, count, self._crew.step(count, self._tile_rows), breathe)
        if rows.factors.rest is not None:
            rows.prepare()


class _Leaders:
    """The greedy walk of Algorithm 1 as a stream: each row joins the earliest leader within τ, or becomes one.

    "x takes every remaining centre within τ" says the same from the leader's side. So rows may come block by block,
    in order, and only the leaders' rows and the sums of their members stay. The distance is to the leader's own
    row; the centre is the mean of all members.

    Which leaders are looked at is decided by sums over groups of keys, J of which is never larger. Most of those pairs
    are decided by products of the factors, which are quick and nearly exact. The few whose distance the products leave
    in doubt are computed in float32, so that all are decided as float32 decides them.

    Args:
        tau: Merge threshold.
        released: Whether pairs are decided as the released code decides them: a distance of exactly τ merges (J <= τ,
            where the paper has J < τ), and J is rounded as there.
        key_tokens: Length of a row.
        memory_bytes: Allowed for all that grows with the leaders.
    """

    def __init__(
        self, tau: float, *, released: bool, key_tokens: int, device: torch.device, crew: Crew, memory_bytes: int
    ) -> None:
        self.tau = tau
        self._compare = torch.le if released else torch.lt
        self._released = released
        self._crew = crew
        self._memory_bytes = memory_bytes
        self.count = 0
        self._members = torch.zeros(0, device=device)
        self._sums = torch.zeros(0, key_tokens, device=device)
        self._rows = _Rows.empty(0, key_tokens, device)

    def take(self, block: _Block, breathe: Callable[[], None]) -> NDArray[np.int64]:
        """Assign rows, in order, to leaders old and new; returns the leader's index of each row."""
        labels = self._join(block.rows, 0, breathe)
        rest, first_new = (labels < 0).nonzero()[:, 0], self.count
        for start in range(0, len(rest), CANDIDATES):
            breathe()
            candidates = rest[start : start + CANDIDATES]
            if self.count > first_new:
                rows = block.rows[_padded(candidates, candidates[-1:])]
                labels[candidates] = self._join(rows, first_new, breathe)[: len(candidates)]
                candidates = candidates[labels[candidates] < 0]
            if len(candidates):
                near = self._within(block.rows.p.index_select(0, candidates))
                leaders, joined = _walk(near.cpu().numpy())
                labels[candidates] = torch.from_numpy(joined + self.count).to(labels.device)
                self._add(block.rows[candidates[torch.from_numpy(leaders).to(labels.device)]])
        self._add_members(labels, block.rows)
        return labels.cpu().numpy()

    def means(self) -> Tensor:
        """The centres: the mean of each leader's members, (C, K*N)."""
        return self._sums[: self.count] / self._members[: self.count, None]

    def _join(self, rows: _Rows, first: int, breathe: Callable[[], None]) -> Tensor:
        """The earliest leader within τ of each row, from leader `first` on; -1 where there is none."""
        p = rows.p
        if self.count == first:
            return torch.full((len(p),), -1, device=p.device)
        earliest = torch.empty(len(p), dtype=torch.int64, device=p.device)
        doubtful: list[Tensor] = []

        def decide(start: int, stop: int) -> None:
            index, others = self._looked_at(rows.coarse, start, stop, first)
            some = rows.factors[start:stop]
            distances, doubt = near_enough(some, others), self._doubt(some, others)[:, None]
            near = self._compare(distances, self.tau - doubt)
            earliest[start:stop] = torch.where(near, index, self.count).amin(1)
            # What lies behind a leader that takes the row in any case need not be known.
            unsure = self._compare(distances, self.tau + doubt) & (index < earliest[start:stop, None])
            if len(pairs := unsure.nonzero()):
                doubtful.append(torch.stack([pairs[:, 0] + start, index[pairs[:, 1]]]))

        most = PRODUCT_ROWS if p.device.type == "cpu" else len(p)
        self._crew.run(decide, len(p), self._crew.step(len(p), most), breathe)
        if doubtful:
            row, leader = torch.cat(doubtful, 1)
            near = self._compare(self._exact(p, row, self._rows.p, leader, breathe), self.tau)
            earliest.scatter_reduce_(0, row[near], leader[near], "amin")
        return torch.where(earliest < self.count, earliest, -1)

    def _looked_at(self, coarse: Factors | None, start: int, stop: int, first: int) -> tuple[Tensor, Factors]:
        """The leaders from `first` on with which the rows start to stop are multiplied: indices and factors.

        On a CPU they are filled up with some whose index is `count`.
        """
        if coarse is None or self._rows.coarse is None:
            return torch.arange(first, self.count, device=self._sums.device), self._rows.factors[first : self.count]
        found = self._candidates(coarse[start:stop], self._rows.coarse, first)
        index = _padded(found, found.new_full((1,), self.count))
        last = first + len(index)
        if len(found) == self.count - first and last <= len(self._rows):  # all: they need not be copied
            return index, self._rows.factors[first:last]
        return index, self._rows.factors[index.clamp(max=self.count - 1)]

    def _candidates(self, rows: Factors, leaders: Factors, first: int) -> Tensor:
        """The leaders from `first` on that any of the coarse rows may be within τ of."""
        least = near_enough(rows, leaders[: _whole_steps(self.count)])[:, first : self.count]
        reach = self._doubt(rows, leaders[: self.count]).add_(self.tau + GROUPS_SLACK)
        return (least <= reach[:, None]).any(0).nonzero()[:, 0] + first

    def _add_members(self, labels: Tensor, rows: _Rows) -> None:
        sums, members = self._sums[: self.count], self._members[: self.count]
        if labels.device.type == "cpu":
            sums.index_add_(0, labels, rows.p)
            members.add_(torch.bincount(labels, minlength=self.count))
            return
        # On a GPU index_add_ adds in an order that differs from run to run; a product does not.
        belongs = labels == torch.arange(self.count, device=labels.device)[:, None]
        members.add_(belongs.sum(1))
        if rows.factors.rest is None:
            sums.addmm_(belongs.float(), rows.p)
        else:
            for part in (rows.factors.p, rows.factors.rest):
                sums.add_(torch.mm(belongs.to(part.dtype), part, out_dtype=torch.float32))

    def _doubt(self, rows: Factors, leaders: Factors) -> Tensor:
        doubt = rows.doubt(self.tau, leaders)
        return doubt + RELEASED_NOISE if self._released else doubt

    def _exact(self, p: Tensor, row: Tensor, q: Tensor, other: Tensor, breathe: Callable[[], None]) -> Tensor:
        """J in float32 of the pairs (p[row], q[other])."""
        distances = torch.empty(len(row), device=p.device)
        divergences = released_pair_divergences if self._released else pair_divergences

        def work(start: int, stop: int) -> None:
            distances[start:stop] = divergences(p, row[start:stop], q, other[start:stop])

        self._crew.run(work, len(row), PAIRS if p.device.type == "cpu" else GPU_PAIRS, breathe)
        return distances

    def _within(self, p: Tensor) -> Tensor:
        """Which of all pairs of a few rows are within τ, in float32: one product, J = own + own - G - G'."""
        log = released_log(p, torch.empty_like(p)) if self._released else log_density(p, torch.empty_like(p))
        products = torch.empty(len(p), len(p), device=p.device)

        def work(start: int, stop: int) -> None:
            torch.mm(p[start:stop], log.T, out=products[start:stop])

        self._crew.run(work, len(p), 64 if p.device.type == "cpu" else len(p))
        own = released_own(p, log) if self._released else products.diagonal()
        return self._compare(own[:, None] + own[None, :] - (products + products.T), self.tau)

    def _add(self, rows: _Rows) -> None:
        if self.count + len(rows) > len(self._sums):
            self._grow(self.count + len(rows))
        self._rows[self.count : self.count + len(rows)] = rows
        self.count += len(rows)

    def _grow(self, wanted: int) -> None:
        key_tokens, device = self._sums.shape[1], self._sums.device
        row_bytes = 4 * key_tokens + _Rows.bytes_of(key_tokens, device)
        if wanted * row_bytes > self._memory_bytes:
            raise MemoryBudgetExceeded(wanted * row_bytes, self._memory_bytes)
        capacity = min(max(wanted, 2 * len(self._sums), 64), self._memory_bytes // row_bytes)

        def grown(old: Tensor) -> Tensor:
            new = old.new_zeros(capacity, *old.shape[1:])
            new[: self.count] = old[: self.count]
            return new

        self._members = grown(self._members)
        self._sums = grown(self._sums)  # one by one: only one of them is there twice
        self._rows.p = grown(self._rows.p)
        self._rows.factors = self._rows.factors.map(grown)
        if self._rows.coarse is not None:
            self._rows.coarse = self._rows.coarse.map(grown)


def _whole_steps(count: int) -> int:
    """Up to the next multiple of `SHAPE_STEP`: the first bfloat16 product of a shape costs as much as ten more."""
    return max(1, -(-count // SHAPE_STEP)) * SHAPE_STEP


def _padded(index: Tensor, filling: Tensor) -> Tensor:
    return torch.cat([index, filling.expand(_whole_steps(len(index)) - len(index))])


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


@dataclass(frozen=True)
class _Job:
    """What all passes over the maps share: the maps, where to report progress, and how much memory leaders may take."""

    maps: AttentionMaps
    on_progress: Progress | None
    memory_bytes: int

    def leaders(self, tau: float, *, released: bool) -> _Leaders:
        return _Leaders(
            tau,
            released=released,
            key_tokens=self.maps.key_tokens,
            device=self.maps.device,
            crew=self.maps.crew,
            memory_bytes=self.memory_bytes,
        )

    def block(self, count: int) -> _Block:
        return _Block(count, self.maps.key_tokens, self.maps.device, self.maps.crew, self.maps.tile_rows)

    def report(self, done: int) -> Callable[[], None]:
        """What to call while a frame is worked on and `done` frames are finished."""
        if self.on_progress is None:
            return lambda: None
        tell = self.on_progress
        return lambda: tell(done, self.maps.frame_count)

    def merge(self, tau: float, centroids: Tensor, rounds: list[Round], *, released: bool) -> Level:
        """The later rounds: the same walk over all centres until their number stops changing."""
        breathe = self.report(self.maps.frame_count)
        block = self.block(min(len(centroids), _Block.rows_of(self.maps.key_tokens, self.maps.device)))
        while True:
            leaders = self.leaders(tau, released=released)
            parents = []
            for start in range(0, len(centroids), block.capacity):
                some = centroids[start : start + block.capacity]
                block.fill(len(some), _Kept(some).fill, breathe)
                parents.append(leaders.take(block, breathe))
            if leaders.count == len(centroids):
                return Level(tau, centroids, tuple(rounds))
            centroids = leaders.means()
            rounds.append(Round(np.concatenate(parents)))


def _parts(count: int, most: int) -> list[tuple[int, int]]:
    """Ranges of about the same size, each of at most `most`."""
    step = -(-count // -(-count // most))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


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

    Memory is leaders × key tokens and one block, whatever the number of frames.

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
    job = _Job(maps, on_progress, memory_bytes // len(taus))
    walks = [job.leaders(tau, released=False) for tau in taus]
    parents: list[list[NDArray[np.int64]]] = [[] for _ in taus]
    most = _Block.rows_of(maps.key_tokens, maps.device)
    together = max(1, most // maps.tokens_per_frame)  # small frames share a block, large ones are cut
    block = job.block(min(most, min(together, maps.frame_count) * maps.tokens_per_frame))
    for first in range(0, maps.frame_count, together):
        breathe = job.report(first)
        breathe()
        frames = maps.load(first, min(first + together, maps.frame_count))
        for start, stop in _parts(len(frames), most):
            block.fill(stop - start, _shifted(frames.fill, start), breathe)
            for walk, labels in zip(walks, parents, strict=True):
                labels.append(walk.take(block, breathe))
        frames.done()
    job.report(maps.frame_count)()
    return [
        job.merge(tau, walk.means(), [Round(np.concatenate(labels))], released=False)
        for tau, walk, labels in zip(taus, walks, parents, strict=True)
    ]


def _shifted(source: Source, offset: int) -> Source:
    return lambda start, stop, out: source(start + offset, stop + offset, out)


def windowed(
    maps: AttentionMaps,
    taus: Sequence[float],
    *,
    on_progress: Progress | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Level]:
    """Hierarchical clustering as the authors' released code does it, which differs from Algorithm 1.

    The first level works in windows of 3 frames: each row is replaced by the mean of the window's rows within τ
    (J <= τ), renormalised; on those smoothed rows a greedy merge (J <= τ), each merged group's plain mean a centre.
    Later rounds merge the centres of all windows likewise until their number stops changing.

    Arguments, results and errors are those of `algorithm1`; the first round's parents are the windows' groups.
    """
    _checked(taus)
    job = _Job(maps, on_progress, memory_bytes // len(taus))
    centroids: list[list[Tensor]] = [[] for _ in taus]
    parents: list[list[NDArray[np.int64]]] = [[] for _ in taus]
    if (needed := Window.bytes_needed(maps, len(taus))) > memory_bytes:
        raise MemoryBudgetExceeded(needed, memory_bytes)
    window = Window(maps, len(taus))
    # Beside a window a block is kept small.
    smooth = job.block(min(window.capacity, max(1, _Block.rows_of(maps.key_tokens, maps.device) // 4)))
    for first in range(0, maps.frame_count, WINDOW):
        breathe = job.report(first)
        breathe()
        window.fill(maps.load(first, min(first + WINDOW, maps.frame_count)), taus, breathe)
        for level, (tau, means, labels) in enumerate(zip(taus, centroids, parents, strict=True)):
            window.smooth(level, breathe)
            walk = job.leaders(tau, released=True)
            offset = sum(map(len, means))
            for start, stop in _parts(len(window), smooth.capacity):
                smooth.fill(stop - start, _shifted(window.copy, start), breathe)
                labels.append(walk.take(smooth, breathe) + offset)
            means.append(walk.means())
            needed = 4 * maps.key_tokens * (offset + walk.count)
            if needed > job.memory_bytes:
                raise MemoryBudgetExceeded(needed, job.memory_bytes)
    job.report(maps.frame_count)()
    return [
        job.merge(tau, torch.cat(means), [Round(np.concatenate(labels))], released=True)
        for tau, means, labels in zip(taus, centroids, parents, strict=True)
    ]


def distances(
    maps: AttentionMaps, levels: Sequence[Level], *, on_progress: Progress | None = None
) -> Iterator[tuple[int, int, list[Tensor]]]:
    """J of every token to every centroid, some frames at a time, in one pass over the maps for all levels.

    Z = argmin over the last dimension is the assignment of Algorithm 1.

    Yields:
        (start frame, stop frame, per level the distances in nats, (b, N, C) float32 on the maps' device).
    """
    job = _Job(maps, on_progress, 0)
    centroids = [level.centroids for level in levels]
    centres = _QuickCentres(centroids, job) if kernels.available(maps.device) else _Centres(centroids, maps)
    row_bytes = 4 * (sum(len(level.centroids) for level in levels) + maps.query_numbers)
    together = max(1, DISTANCE_BYTES // (row_bytes * maps.tokens_per_frame))
    for first in range(0, maps.frame_count, together):
        last = min(first + together, maps.frame_count)
        found = centres.measure(first, last, job.report(first))
        yield first, last, [out.view(last - first, maps.tokens_per_frame, -1) for out in found]
    job.report(maps.frame_count)()


class _Kept:
    """Rows that lie in memory, read as those of loaded frames are."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def fill(self, start: int, stop: int, out: Tensor) -> None:
        out.copy_(self._rows[start:stop])

    def done(self) -> None:
        pass


class _Centres:
    """The centroids of some levels, from which rows are measured in float32.

    Rows that were kept in bfloat16 are good enough where the nearest centroid is nearest by more than their
    rounding can change; other rows are computed again.
    """

    def __init__(self, levels: Sequence[Tensor], maps: AttentionMaps) -> None:
        self._maps = maps
        self._levels = levels
        self._logs = [log_density(p, torch.empty_like(p)) for p in levels]
        self._owns = [(p * log).sum(-1) for p, log in zip(levels, self._logs, strict=True)]
        self._scratch = threading.local()

    def measure(self, first: int, last: int, breathe: Callable[[], None]) -> list[Tensor]:
        """Per level the distances of all rows of the frames, (b*N, C)."""
        maps = self._maps
        kept = maps.kept(first, last)
        count = (last - first) * maps.tokens_per_frame
        found = [torch.empty(count, len(p), device=maps.device) for p in self._levels]
        source = _Kept(kept) if kept is not None else maps.load(first, last)

        def work(start: int, stop: int) -> None:
            p, _ = self._spare(stop - start)
            source.fill(start, stop, p)
            self._measure(p, [out[start:stop] for out in found])

        maps.crew.run(work, count, maps.crew.step(count, maps.tile_rows), breathe)
        source.done()
        if kept is not None and maps.dtype != torch.bfloat16:
            self._measure_doubtful(first, last, found, breathe)
        return found

    def _measure_doubtful(self, first: int, last: int, found: list[Tensor], breathe: Callable[[], None]) -> None:
        rows = torch.stack([_doubtful(out) for out in found]).any(0).nonzero()[:, 0]
        if not len(rows):
            return
        frames = self._maps.load(first, last)

        def work(start: int, stop: int) -> None:
            some = rows[start:stop]
            p, _ = self._spare(len(some))
            frames.fill_some(some, p)
            exact = [torch.empty(len(some), out.shape[1], device=out.device) for out in found]
            self._measure(p, exact)
            for out, values in zip(found, exact, strict=True):
                out[some] = values

        crew = self._maps.crew
        crew.run(work, len(rows), crew.step(len(rows), self._maps.tile_rows), breathe)

    def _spare(self, count: int) -> tuple[Tensor, Tensor]:
        if not hasattr(self._scratch, "p"):
            shape = (self._maps.tile_rows, self._maps.key_tokens)
            self._scratch.p, self._scratch.log = torch.empty(2, *shape, device=self._maps.device)
        return self._scratch.p[:count], self._scratch.log[:count]

    def _measure(self, p: Tensor, found: Sequence[Tensor]) -> None:
        _, log = self._spare(len(p))
        own = torch.empty(len(p), device=p.device)
        loops.logs_and_own(p, log, own, epsilon=EPSILON)
        for centroids, logs, owns, out in zip(self._levels, self._logs, self._owns, found, strict=True):
            torch.add(own[:, None], owns, out=out)
            out.addmm_(p, logs.T, alpha=-1).addmm_(log, centroids.T, alpha=-1)


def _doubtful(distances: Tensor) -> Tensor:
    """Which rows, rounded to bfloat16 before they were measured, may be nearest to another centroid, bool, (n,).

    Rounding p by δp changes J by sum δp·Δl + Δp·δl + δp·δl, where Δ is the difference to the centroid. With the unit
    u that is at most u(2√J + J) + u√J and a little: the sums are those of `Factors.doubt`.
    """
    if distances.shape[1] == 1:
        return torch.zeros(len(distances), dtype=torch.bool, device=distances.device)
    nearest = distances.topk(2, largest=False).values.clamp_min_(0)
    reach = (3 * nearest.sqrt() + nearest).mul_(BFLOAT16_UNIT * SLACK).add_(1e-4)
    return nearest[:, 1] - reach[:, 1] <= nearest[:, 0] + reach[:, 0]


class _QuickCentres:
    """The same on a GPU: measured by products of the factors, and again in float32 where it matters.

    Where another centroid may be nearest, the distances to all that may be are exact; the others are off by no more
    than `Factors.doubt`, some hundredths of a nat at most.
    """

    def __init__(self, levels: Sequence[Tensor], job: "_Job") -> None:
        self._maps, self._levels = job.maps, levels
        self._block = job.block(_Block.rows_of(job.maps.key_tokens, job.maps.device))
        self._factors = []
        for p in levels:
            factors = Factors.empty(len(p), p.shape[1], fast_dtype(p.device), p.device)
            factors.fill(p)
            self._factors.append(factors)

    def measure(self, first: int, last: int, breathe: Callable[[], None]) -> list[Tensor]:
        """Per level the distances of all rows of the frames, (b*N, C)."""
        frames = self._maps.load(first, last)
        found = [torch.empty(len(frames), len(p), device=self._maps.device) for p in self._levels]
        for start, stop in _parts(len(frames), self._block.capacity):
            self._block.fill(stop - start, _shifted(frames.fill, start), breathe)
            for p, factors, out in zip(self._levels, self._factors, found, strict=True):
                out[start:stop] = self._measure(p, factors)
        frames.done()
        return found

    def _measure(self, p: Tensor, factors: Factors) -> Tensor:
        rows = self._block.rows.factors
        distances = near_enough(rows, factors)
        nearest = distances.amin(1).clamp_min_(0)
        reach = nearest + 2 * rows.doubt(nearest + 3 * rows.doubt(nearest, factors), factors)
        candidates = distances <= reach[:, None]
        candidates &= candidates.sum(1, keepdim=True) > 1
        row, centroid = candidates.nonzero().T
        for start in range(0, len(row), GPU_PAIRS):
            some, other = row[start : start + GPU_PAIRS], centroid[start : start + GPU_PAIRS]
            distances[some, other] = pair_divergences(self._block.rows.p, some, p, other)
        return distances
