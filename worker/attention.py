"""Tokens -> spatio-temporal attention maps over the key frames, block by block."""

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from worker.clip import PatchGrid

TILE_BYTES = 2**21  # one head's scores of a tile: what a core's second-level cache holds


def key_frames(frame_count: int, key_ratio: float) -> list[int]:
    """Indices of the frames that serve as keys: floor(i * T / K) with K = max(1, round(key_ratio * T)).

    Source: the uniform sampling of Section 3 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893). The
    released code's differ: `released_key_frames`.

    Raises:
        ValueError: no frames, or a ratio outside (0, 1].
    """
    if frame_count < 1 or not 0 < key_ratio <= 1:
        raise ValueError(f"expected frames and a key ratio in (0, 1], got {frame_count = }, {key_ratio = }")
    count = max(1, round(key_ratio * frame_count))
    return [i * frame_count // count for i in range(count)]


def released_key_frames(frame_count: int, key_ratio: float) -> list[int]:
    """Indices of the key frames as the released code takes them: arange(T // r) * r with r = 1 / key_ratio.

    For a clip shorter than r frames, where that code has none at all, the first frame.

    Raises:
        ValueError: no frames, or a ratio outside (0, 1].
    """
    if frame_count < 1 or not 0 < key_ratio <= 1:
        raise ValueError(f"expected frames and a key ratio in (0, 1], got {frame_count = }, {key_ratio = }")
    step = round(1 / key_ratio)
    return [i * step for i in range(max(1, frame_count // step))]


class QuerySource(Protocol):
    """Queries that lie elsewhere, such as a Spool: frames start to stop, (b, N, heads, d); bfloat16 as uint16 bits."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> "Tensor | NDArray[Any]": ...


class AttentionMaps:
    """The attention maps A of all query tokens, computed when asked for; the whole of A never exists.

    A[t*N + i] is the mean over heads of softmax(q·k/√d) over all key tokens: a distribution.

    Args:
        queries: (T, N, heads, d) in memory, or a source to read frames from.
        keys: Keys of the key frames, (K*N, heads, d), on the device where the maps are wanted.
        dtype: float32: products and rows in float32. bfloat16: the products' factors and the rows are rounded to
            bfloat16; scores, exponentials and sums stay in float32.
        keep_bytes: Rows of as many leading frames as fit here are kept once computed instead of computed again;
            results do not depend on it.
        pool: 1, or the side of the squares of key patches whose attention is summed after the softmax (2 or 4):
            an approximation, J of pooled rows is a lower bound of J.
        grid: The patch grid, needed to pool.

    Raises:
        ValueError: shapes that do not fit each other, or pooling without a grid.

    Source: Section 3 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893).
    """

    def __init__(
        self,
        queries: "Tensor | QuerySource",
        keys: Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        keep_bytes: int = 0,
        pool: int = 1,
        grid: PatchGrid | None = None,
    ) -> None:
        if keys.ndim != 3 or len(keys) < 1:
            raise ValueError(f"expected keys of shape (K*N, heads, d), got {tuple(keys.shape)}")
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"attention maps are float32 or bfloat16, got {dtype}")
        if len(queries) < 1:
            raise ValueError("expected at least one frame of queries")
        self._queries = queries
        self.device = keys.device
        self.dtype = dtype
        self.frame_count = len(queries)
        first = self._read(0, 1)
        if first.ndim != 4 or first.shape[2:] != keys.shape[1:]:
            raise ValueError(f"expected the same heads and depth, got {tuple(first.shape[1:])}, {tuple(keys.shape)}")
        self.tokens_per_frame = first.shape[1]
        if len(keys) % self.tokens_per_frame:
            raise ValueError(f"{len(keys)} key tokens are not whole frames of {self.tokens_per_frame}")
        self._key_frame_count = len(keys) // self.tokens_per_frame
        if pool not in (1, 2, 4):
            raise ValueError(f"key tokens are pooled by 1, 2 or 4, got {pool}")
        if pool > 1 and (grid is None or grid.tokens != self.tokens_per_frame):
            raise ValueError(f"pooling needs the grid of {self.tokens_per_frame} patches, got {grid}")
        self.pool, self._grid = pool, grid
        self.key_tokens = len(keys)
        if pool > 1 and grid is not None:
            self.key_tokens = self._key_frame_count * -(-grid.height // pool) * -(-grid.width // pool)
        self._keys = self._rounded(keys.float()).permute(1, 2, 0).contiguous()  # (heads, d, K*N)
        self._kept: Tensor | None = None
        self._kept_frames = 0
        row_bytes = self.key_tokens * dtype.itemsize
        self._keep_frames = min(self.frame_count, keep_bytes // (row_bytes * self.tokens_per_frame))

    def rows(self, start_frame: int, stop_frame: int) -> Tensor:
        """Attention maps of the frames start to stop (exclusive), float32, shape (b*N, K*N); rows sum to 1."""
        if not 0 <= start_frame < stop_frame <= self.frame_count:
            raise IndexError(f"frames {start_frame} to {stop_frame} of {self.frame_count}")
        if stop_frame <= self._kept_frames:
            assert self._kept is not None
            return self._kept[start_frame * self.tokens_per_frame : stop_frame * self.tokens_per_frame].float()
        rows = self._compute(self._read(start_frame, stop_frame).flatten(0, 1))
        if start_frame == self._kept_frames and stop_frame <= self._keep_frames:
            if self._kept is None:
                shape = (self._keep_frames * self.tokens_per_frame, self.key_tokens)
                self._kept = torch.empty(shape, dtype=self.dtype, device=self.device)
            self._kept[start_frame * self.tokens_per_frame : stop_frame * self.tokens_per_frame] = rows
            self._kept_frames = stop_frame
        return rows

    def _read(self, start: int, stop: int) -> Tensor:
        """Queries of the frames, (b, N, heads, d), float32 values on the maps' device."""
        got = self._queries[start:stop] if isinstance(self._queries, Tensor) else self._queries.read(start, stop)
        if isinstance(got, np.ndarray):
            got = torch.from_numpy(got)
            got = got.view(torch.bfloat16) if got.dtype == torch.uint16 else got
        return got.to(self.device).float()

    def _rounded(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).float()

    def _compute(self, queries: Tensor) -> Tensor:
        """Rows of the query tokens, (n, heads, d) -> (n, K*N)."""
        count, heads, depth = queries.shape
        scaled = (self._rounded(queries) * depth**-0.5).transpose(0, 1)  # (heads, n, d)
        rows = torch.empty(count, self.key_tokens, device=self.device)
        tile = max(1, TILE_BYTES // (4 * self._keys.shape[2])) if self.device.type == "cpu" else count
        for start in range(0, count, tile):
            part = scaled[:, start : start + tile]
            mean = torch.zeros(part.shape[1], self._keys.shape[2], device=self.device)
            for head in range(heads):
                mean += torch.softmax(part[head] @ self._keys[head], dim=-1)
            mean /= heads
            rows[start : start + tile] = self._pooled(mean)
        return self._rounded(rows)

    def _pooled(self, rows: Tensor) -> Tensor:
        if self.pool == 1 or self._grid is None:
            return rows
        maps = rows.view(-1, self._key_frame_count, self._grid.height, self._grid.width)
        return F.avg_pool2d(maps, self.pool, ceil_mode=True, divisor_override=1).flatten(1)
