"""The assignment of Algorithm 1: the nearest centroid of every token, in a second pass over the maps."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.method.algorithm1 import Level
from worker.method.attention import AttentionMaps, LoadedFrames
from worker.numerics.backend import Centroids
from worker.numerics.blocks import RowSource, copy_from
from worker.numerics.kl_bounds import ambiguous_after_rounding
from worker.numerics.spool import Spool
from worker.numerics.tile_pool import ThreadBuffers
from worker.video.clip import PatchGrid

OUTPUT_BYTES = 2**24  # of the KL yielded at once


class FrameScores(Spool):
    """Scores on disk, one row per frame; `scores[t]` has shape (N, C)."""

    def __getitem__(self, frame_index: int) -> NDArray[np.floating]:
        row: NDArray[np.floating] = self.read(frame_index, frame_index + 1)[0]
        return row


@dataclass(frozen=True)
class Assignment:
    """The assignment of one level.

    Attributes:
        level: Clusters at one tau.
        labels: Nearest centroid of each token, int32, (T, h, w).
        scores: KL - min(KL) of each token to each centroid, float16: the input of the edges.
    """

    level: Level
    labels: NDArray[np.int32]
    scores: FrameScores


@contextmanager
def assign(maps: AttentionMaps, levels: list[Level], grid: PatchGrid, work: Path) -> Iterator[list[Assignment]]:
    """Assign every token to its nearest centroid; the scores in `work` are deleted when the block is left.

    Source: Z = argmin of the symmetric KL divergence, Algorithm 1, Appendix A of Ding et al., "Betrayed by Attention"
    (arXiv:2311.17893).
    """
    with ExitStack() as spools:
        assignments = []
        for index, level in enumerate(levels):
            labels = np.empty((maps.frame_count, grid.height, grid.width), np.int32)
            row_shape = grid.tokens, len(level.centroids)
            scores = FrameScores(work, row_shape=row_shape, dtype=np.float16, name=f"scores-{index}.spool")
            assignments.append(Assignment(level, labels, spools.enter_context(scores)))
        for start, stop, kl_by_level in kl_to_centroids(maps, levels):
            for assignment, kl in zip(assignments, kl_by_level, strict=True):
                nearest = kl.min(-1, keepdim=True)
                assignment.labels[start:stop] = nearest.indices.view(-1, grid.height, grid.width).cpu().numpy()
                beyond = (kl - nearest.values).clamp_(max=torch.finfo(torch.float16).max)
                assignment.scores.append(beyond.to(torch.float16).cpu().numpy())
        yield assignments


def kl_to_centroids(maps: AttentionMaps, levels: Sequence[Level]) -> Iterator[tuple[int, int, list[Tensor]]]:
    """Symmetric KL of every token to every centroid, some frames at a time, in one pass over the maps for all levels.

    Z = argmin over the last dimension is the assignment of Algorithm 1.

    Yields:
        (start frame, stop frame, per level the KL in nats, (b, N, C) float32 on the maps' device).
    """
    measure = _CentroidDistances(maps, [level.centroids for level in levels])
    frame_bytes = 4 * maps.tokens_per_frame * (sum(len(level.centroids) for level in levels) + maps.query_numbers)
    step = max(1, OUTPUT_BYTES // frame_bytes)
    for first in range(0, maps.frame_count, step):
        maps.pool.advance(first, maps.frame_count)
        last = min(first + step, maps.frame_count)
        yield first, last, [kl.view(last - first, maps.tokens_per_frame, -1) for kl in measure.frames(first, last)]
    maps.pool.advance(maps.frame_count, maps.frame_count)


class _CentroidDistances:
    """KL of frames' rows to the centroids of some levels.

    Rows that were kept in bfloat16 suffice where the nearest centroid is nearest by more than their rounding can
    change; other rows are computed again.
    """

    def __init__(self, maps: AttentionMaps, levels: Sequence[Tensor]) -> None:
        self._maps, self._backend, self._pool = maps, maps.backend, maps.pool
        self._levels: list[Centroids] = [maps.backend.prepare_centroids(p) for p in levels]
        self._buffers = ThreadBuffers(maps.device)
        self._tile = maps.backend.tiling.attention_tile(maps.key_tokens)

    def frames(self, first: int, last: int) -> list[Tensor]:
        """Per level the KL of all rows of the frames, (b*N, C)."""
        kept = self._maps.kept(first, last)
        count = (last - first) * self._maps.tokens_per_frame
        kl = [torch.empty(count, len(level.p), device=self._maps.device) for level in self._levels]
        loaded: LoadedFrames | None = None
        if kept is None:
            loaded = self._maps.load(first, last)
            source: RowSource = loaded.fill
        else:
            source = copy_from(kept)

        def work(start: int, stop: int) -> None:
            p = self._buffers.get("p", stop - start, self._maps.key_tokens)
            source(start, stop, p)
            self._backend.centroid_kl(p, self._levels, [level_kl[start:stop] for level_kl in kl])

        self._pool.run(work, count, self._pool.step(count, self._tile))
        if loaded is not None:
            loaded.done()
        elif self._maps.dtype != torch.bfloat16:
            self._recompute_ambiguous(first, last, kl)
        return kl

    def _recompute_ambiguous(self, first: int, last: int, kl: list[Tensor]) -> None:
        rows = torch.stack([ambiguous_after_rounding(level_kl) for level_kl in kl]).any(0).nonzero()[:, 0]
        if not len(rows):
            return
        frames = self._maps.load(first, last)

        def work(start: int, stop: int) -> None:
            index = rows[start:stop]
            p = self._buffers.get("p", len(index), self._maps.key_tokens)
            frames.fill_indexed(index, p)
            exact = [torch.empty(len(index), level_kl.shape[1], device=p.device) for level_kl in kl]
            self._backend.centroid_kl(p, self._levels, exact)
            for level_kl, values in zip(kl, exact, strict=True):
                level_kl[index] = values

        self._pool.run(work, len(rows), self._pool.step(len(rows), self._tile))
