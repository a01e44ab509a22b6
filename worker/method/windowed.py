"""A window of frames as the released code clusters it first: which rows are neighbours, and the means over them."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from worker.method.attention import AttentionMaps, LoadedFrames
from worker.numerics.divergence import (
    GROUPS_SLACK,
    group_count,
    group_width,
    grouped,
    log_density,
    released_log,
    released_own,
    symmetric_kl,
)

WINDOW = 3  # frames
TILE_ROWS, GPU_TILE_ROWS = 128, 1024  # sorted rows whose neighbours are looked for together
COLUMNS, GPU_COLUMNS = 256, 4096  # rows they are compared with, or averaged over, at once
RUN = 128  # rows side by side that are worth a product of their own: they need not be copied
LOG_ROWS = 16  # whose logs one thread takes at once
PIVOT_ROWS = 32  # rows are sorted around every so many


class Window:
    """The rows of a window, which of them are within some thresholds of each other, and the means over neighbours.

    All of it in float32, and J rounded as the released code rounds it, so that pairs near τ fall as there. That code
    takes two products over all pairs for the distances and a third for the means. Here most pairs are shown to be far
    apart at little cost: summing both rows over groups of keys never makes J larger. Rows are sorted by what they are
    like, so that the neighbours of some rows that are worked on together are few, and only those are looked at.

    Args:
        maps: The attention maps; a window is at most 3 of their frames.
        levels: The number of thresholds.
    """

    def __init__(self, maps: AttentionMaps, levels: int) -> None:
        self.capacity = min(WINDOW, maps.frame_count) * maps.tokens_per_frame
        on_cpu = maps.device.type == "cpu"
        self._crew, self._fill_rows, self._device = maps.crew, maps.tile_rows, maps.device
        self._tile = _tile_rows(maps)
        self._columns = COLUMNS if on_cpu else GPU_COLUMNS
        self._log_rows = LOG_ROWS if on_cpu else self.capacity
        self._scratch = threading.local()
        # One after the other: the rows as they come; the logs of the sorted rows; smoothed rows, again as they came.
        self._rows = torch.empty(self.capacity, maps.key_tokens, device=maps.device)
        self._sorted = torch.empty(self.capacity, maps.key_tokens, device=maps.device)
        self._near = [_Neighbours(self.capacity, self._tile, maps.device) for _ in range(levels)]
        self._count = 0

    @staticmethod
    def bytes_needed(maps: AttentionMaps, levels: int) -> int:
        """The memory that a window of these maps takes."""
        rows = min(WINDOW, maps.frame_count) * maps.tokens_per_frame
        return rows * 2 * 4 * maps.key_tokens + levels * _pairs(rows, rows, _tile_rows(maps))

    def __len__(self) -> int:
        return self._count

    def fill(self, frames: LoadedFrames, taus: Sequence[float], breathe: Callable[[], None]) -> None:
        """Take the rows of the frames and decide which pairs are neighbours at each threshold (J <= τ)."""
        self._count = len(frames)
        rows = self._rows[: len(frames)]
        width = group_width(rows.shape[1])
        summaries = torch.empty(len(frames), group_count(rows.shape[1]), device=self._device)

        def fill(start: int, stop: int) -> None:
            frames.fill(start, stop, rows[start:stop])
            summaries[start:stop] = grouped(rows[start:stop], width)

        self._crew.run(fill, len(frames), self._fill_rows, breathe)
        frames.done()
        order = self._order = _like_beside_like(summaries)

        def sort(start: int, stop: int) -> None:
            torch.index_select(rows, 0, order[start:stop], out=self._sorted[start:stop])

        self._crew.run(sort, len(frames), self._log_rows, breathe)
        summaries = summaries[order]
        self._find_neighbours(summaries, taus, breathe)

    def _find_neighbours(self, summaries: Tensor, taus: Sequence[float], breathe: Callable[[], None]) -> None:
        count = len(self)
        p, log = self._sorted[:count], self._rows[:count]
        own = torch.empty(count, device=self._device)
        summary_log = log_density(summaries, torch.empty_like(summaries))
        summary_own = torch.linalg.vecdot(summaries, summary_log)

        def logs(start: int, stop: int) -> None:
            own[start:stop] = released_own(p[start:stop], released_log(p[start:stop], log[start:stop]))

        self._crew.run(logs, count, self._log_rows, breathe)
        for each in self._near:
            each.count = count

        def decide(start: int, stop: int) -> None:
            # Only with the rows from `start` on: the other half of the square is the same.
            least = summary_own[start:stop, None] + summary_own[None, start:]
            least.addmm_(summaries[start:stop], summary_log[start:].T, alpha=-1)
            least.addmm_(summary_log[start:stop], summaries[start:].T, alpha=-1)
            others = (least <= max(taus) + GROUPS_SLACK).any(0).nonzero()[:, 0] + start
            tiles = [each.tile(start).zero_() for each in self._near]
            for some in self._pieces(others):
                other_p, other_log = self._taken(p, some, "p"), self._taken(log, some, "log")
                crossed = torch.mm(p[start:stop], other_log.T).add_(torch.mm(log[start:stop], other_p.T))
                distances = (own[start:stop, None] + own[some]).sub_(crossed)
                for tile, tau in zip(tiles, taus, strict=True):
                    tile[:, _moved(some, -start)] = distances <= tau
            for tile in tiles:
                square = tile[:, : stop - start]
                square |= square.T.clone()
                square.fill_diagonal_(True)  # also where rounding puts J of a row to itself beyond τ

        self._crew.run(decide, count, self._tile, breathe)

    def smooth(self, level: int, breathe: Callable[[], None]) -> None:
        """Make the means over each row's neighbours at a threshold, renormalised; `copy` then gives them."""
        p = self._sorted

        def work(start: int, stop: int) -> None:
            rows = self._near[level].rows(start)
            neighbours = rows.any(0).nonzero()[:, 0]
            mean = self._buffer("mean", self._tile)[: stop - start].zero_()
            for some in self._pieces(neighbours):
                mean.addmm_(rows[:, some].float(), self._taken(p, some, "p"))
            self._rows[self._order[start:stop]] = mean.div_(mean.sum(-1, keepdim=True))

        self._crew.run(work, len(self), self._tile, breathe)

    def copy(self, start: int, stop: int, out: Tensor) -> None:
        """Write the smoothed rows start to stop (exclusive), in the frames' order, into `out`."""
        out.copy_(self._rows[start:stop])

    def _pieces(self, index: Tensor) -> list[slice | Tensor]:
        """Rows of these indices, cut to pieces; on a CPU slices of many side by side, and the others together."""
        if index.device.type != "cpu":  # copies are quick there, and to ask where they lie is not
            return list(index.split(self._columns))  # type: ignore[no-untyped-call]
        runs = index.tensor_split((index.diff() > 1).nonzero()[:, 0] + 1)
        pieces: list[slice | Tensor] = [slice(int(run[0]), int(run[-1]) + 1) for run in runs if len(run) >= RUN]
        if alone := [run for run in runs if len(run) < RUN]:
            pieces += torch.cat(alone).split(self._columns)  # type: ignore[no-untyped-call]
        return pieces

    def _taken(self, rows: Tensor, index: slice | Tensor, name: str) -> Tensor:
        if isinstance(index, slice):
            return rows[index]
        return torch.index_select(rows, 0, index, out=self._buffer(name, self._columns)[: len(index)])

    def _buffer(self, name: str, count: int) -> Tensor:
        """A thread's own memory."""
        if not hasattr(self._scratch, name):
            setattr(self._scratch, name, torch.empty(count, self._rows.shape[1], device=self._device))
        buffer: Tensor = getattr(self._scratch, name)
        return buffer


class _Neighbours:
    """Which pairs of the sorted rows are neighbours at one threshold.

    Noted of each tile of rows with itself and what lies behind it. Of a tile and what lies before it the others'
    notes tell: half the memory of all pairs.

    Attributes:
        count: The rows there are now, at most `capacity`.
    """

    def __init__(self, capacity: int, tile: int, device: torch.device) -> None:
        self._pairs = torch.empty(_pairs(capacity, capacity, tile), dtype=torch.bool, device=device)
        self._tile_rows, self.count = tile, capacity

    def tile(self, start: int) -> Tensor:
        """Of the tile that starts there with the rows from `start` on, bool, (n, count - start)."""
        shape = min(self._tile_rows, self.count - start), self.count - start
        offset = _pairs(self.count, start, self._tile_rows)
        return self._pairs[offset : offset + shape[0] * shape[1]].view(shape)

    def rows(self, start: int) -> Tensor:
        """Of the tile that starts there with all rows, bool, (n, count)."""
        own = self.tile(start)
        before = (self.tile(first)[:, start - first :][:, : len(own)].T for first in range(0, start, self._tile_rows))
        return torch.cat([*before, own], 1)


def _pairs(count: int, stop: int, tile: int) -> int:
    """How many pairs are noted of `count` rows in the tiles up to row `stop`."""
    return sum(min(tile, count - first) * (count - first) for first in range(0, stop, tile))


def _tile_rows(maps: AttentionMaps) -> int:
    return TILE_ROWS if maps.device.type == "cpu" else GPU_TILE_ROWS


def _moved(index: slice | Tensor, by: int) -> slice | Tensor:
    return slice(index.start + by, index.stop + by) if isinstance(index, slice) else index + by


def _like_beside_like(summaries: Tensor) -> Tensor:
    """An order of rows: grouped around some of them, each of those followed by the one most like it."""
    some = summaries[::PIVOT_ROWS]
    among = symmetric_kl(some, some).cpu().numpy()
    place, current = np.zeros(len(some), np.int64), 0
    left = np.ones(len(some), bool)
    for number in range(len(some)):
        place[current], left[current] = number, False
        current = int(np.where(left, among[current], np.inf).argmin())
    parts = summaries.split(GPU_TILE_ROWS)  # type: ignore[no-untyped-call]
    group = torch.cat([symmetric_kl(part, some).argmin(1) for part in parts])
    return torch.argsort(torch.from_numpy(place).to(group.device)[group], stable=True)
