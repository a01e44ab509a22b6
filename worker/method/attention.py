"""Tokens -> spatio-temporal attention maps over the key frames, block by block."""

import math
import threading
import time
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from worker.numerics import kernels, loops
from worker.numerics.tile_pool import Crew
from worker.video.clip import PatchGrid

TILE_ROWS = 128  # of one thread's product: below, products are slower, above nothing is gained
TILE_BYTES, GPU_TILE_BYTES = 2**20, 2**28  # of one head's scores: of few key tokens, rows are many
LARGEST_LOG = 87.0  # exp of it is still finite in float32, and of its negative above zero


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
        keep_bytes: The rows of as many leading frames as fit here are kept in bfloat16 once computed, for passes
            that can do with them, see `kept`.
        pool: 1, or the side of the squares of key patches whose attention is summed after the softmax (2 or 4):
            an approximation, J of pooled rows is a lower bound of J.
        grid: The patch grid, needed to pool.

    Attributes:
        frame_count: T.
        tokens_per_frame: N.
        key_tokens: Length of a row: K*N, or fewer where pooled.
        query_numbers: heads * d.
        seconds: Spent on computing rows so far, all threads of the crew taken together.

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
        self.query_numbers = first.shape[2] * first.shape[3]
        if len(keys) % self.tokens_per_frame:
            raise ValueError(f"{len(keys)} key tokens are not whole frames of {self.tokens_per_frame}")
        key_frame_count = len(keys) // self.tokens_per_frame
        if pool not in (1, 2, 4):
            raise ValueError(f"key tokens are pooled by 1, 2 or 4, got {pool}")
        self._pooling = None
        self.key_tokens = len(keys)
        if pool > 1:
            if grid is None or grid.tokens != self.tokens_per_frame:
                raise ValueError(f"pooling needs the grid of {self.tokens_per_frame} patches, got {grid}")
            self._pooling = _Pooling(pool, key_frame_count, grid)
            self.key_tokens = self._pooling.key_tokens
        self._kernels = kernels.available(self.device)
        scaled = self._rounded(keys.float()).permute(1, 2, 0)  # (heads, d, K*N)
        if not self._kernels:  # which scale scores themselves
            scaled = scaled * keys.shape[-1] ** -0.5
        self._keys = scaled.to(dtype if self._kernels else torch.float32).contiguous()
        self._longest_key = float(self._keys.norm(dim=1).amax())
        self._scratch, self._lock = threading.local(), threading.Lock()
        self._kept: Tensor | None = None
        frame_bytes = self.tokens_per_frame * self.key_tokens * torch.bfloat16.itemsize
        self._keep_frames = min(self.frame_count, keep_bytes // frame_bytes)
        self._kept_frames = 0
        self.crew = Crew(self.device)
        self.seconds = 0.0

    def rows(self, start_frame: int, stop_frame: int) -> Tensor:
        """Attention maps of the frames start to stop (exclusive), float32, shape (b*N, K*N); rows sum to 1."""
        frames = self.load(start_frame, stop_frame)
        rows = torch.empty(len(frames), self.key_tokens, device=self.device)
        step = self.crew.step(len(frames), self.tile_rows)
        self.crew.run(lambda start, stop: frames.fill(start, stop, rows[start:stop]), len(frames), step)
        frames.done()
        return rows

    @property
    def tile_rows(self) -> int:
        """How many rows are best computed at once, by one thread."""
        least, tile_bytes = (TILE_ROWS, TILE_BYTES) if self.device.type == "cpu" else (1, GPU_TILE_BYTES)
        return max(least, tile_bytes // (4 * self._keys.shape[2]))

    def load(self, start_frame: int, stop_frame: int) -> "LoadedFrames":
        """The frames start to stop (exclusive), ready for their rows to be computed, by any thread."""
        if not 0 <= start_frame < stop_frame <= self.frame_count:
            raise IndexError(f"frames {start_frame} to {stop_frame} of {self.frame_count}")
        queries = self._read(start_frame, stop_frame).flatten(0, 1)
        queries = self._rounded(queries).transpose(0, 1)  # (heads, b*N, d)
        # |q·k| <= |q||k|: where that is small, exponentials need no shift by the row's maximum.
        largest = LARGEST_LOG - math.log(self._keys.shape[2])
        safe = self._kernels or float(queries.norm(dim=-1).amax()) * self._longest_key < largest
        return LoadedFrames(self, start_frame, stop_frame, queries, safe=safe)

    def kept(self, start_frame: int, stop_frame: int) -> Tensor | None:
        """Rows of frames that were computed before, in bfloat16, (b*N, K*N); None where they were not kept."""
        if self._kept is None or stop_frame > self._kept_frames:
            return None
        return self._kept[start_frame * self.tokens_per_frame : stop_frame * self.tokens_per_frame]

    def _keep(self, start_frame: int, stop_frame: int) -> Tensor | None:
        """Where to keep the rows of frames that are about to be computed; frames are kept in order."""
        stop_frame = min(stop_frame, self._keep_frames)
        if start_frame != self._kept_frames or stop_frame <= start_frame:
            return None
        if self._kept is None:
            shape = (self._keep_frames * self.tokens_per_frame, self.key_tokens)
            self._kept = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return self._kept[start_frame * self.tokens_per_frame : stop_frame * self.tokens_per_frame]

    def _read(self, start: int, stop: int) -> Tensor:
        """Queries of the frames, (b, N, heads, d), float32 values on the maps' device."""
        got = self._queries[start:stop] if isinstance(self._queries, Tensor) else self._queries.read(start, stop)
        if isinstance(got, np.ndarray):
            got = torch.from_numpy(got)
            got = got.view(torch.bfloat16) if got.dtype == torch.uint16 else got
        return got.to(self.device).float()

    def _rounded(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).float()

    def _attend(self, queries: Tensor, out: Tensor, *, safe: bool) -> None:
        """Rows of a tile of queries, (heads, n, d), into `out`, (n, K*N)."""
        began = time.perf_counter()
        mean = out if self._pooling is None else self._buffer("mean", queries.shape[1])
        if self._kernels:
            kernels.attend(queries.to(self.dtype).contiguous(), self._keys, mean)
        else:
            self._attend_head_by_head(queries, safe, mean)
        if self._pooling is not None:
            out.copy_(self._pooling(mean))
        if self.dtype != torch.float32 and not (self._kernels and self._pooling is None):
            out.copy_(out.to(self.dtype))
        with self._lock:
            self.seconds += (time.perf_counter() - began) / self.crew.count

    def _attend_head_by_head(self, queries: Tensor, safe: bool, mean: Tensor) -> None:
        heads, count, _ = queries.shape
        scores = self._buffer("scores", count)
        for head in range(heads):
            torch.mm(queries[head], self._keys[head], out=scores)
            loops.add_softmax(scores, mean, 1 / heads, shift=not safe, fresh=head == 0)

    def _buffer(self, name: str, count: int) -> Tensor:
        """A thread's own memory: touching new pages for every tile costs as much as the work."""
        buffer: Tensor | None = getattr(self._scratch, name, None)
        if buffer is None or len(buffer) < count:
            buffer = torch.empty(max(count, self.tile_rows), self._keys.shape[2], device=self.device)
            setattr(self._scratch, name, buffer)
        return buffer[:count]


class LoadedFrames:
    """Some frames' queries, from which rows are computed tile by tile, by any thread."""

    def __init__(self, maps: AttentionMaps, start_frame: int, stop_frame: int, queries: Tensor, *, safe: bool) -> None:
        self._maps, self._stop_frame, self._queries = maps, stop_frame, queries
        self._safe = safe
        self._keep = maps._keep(start_frame, stop_frame)

    def __len__(self) -> int:
        """Rows: frames × tokens per frame."""
        return self._queries.shape[1]

    def fill(self, start: int, stop: int, out: Tensor) -> None:
        """Write the rows start to stop (exclusive) into `out`, float32, (stop - start, K*N)."""
        self._attend(self._queries[:, start:stop], out)
        if self._keep is not None and start < len(self._keep):
            self._keep[start:stop] = out[: len(self._keep) - start]

    def fill_some(self, rows: Tensor, out: Tensor) -> None:
        """Write the rows of these indices into `out`, float32, (len(rows), K*N)."""
        self._attend(self._queries[:, rows], out)

    def _attend(self, queries: Tensor, out: Tensor) -> None:
        self._maps._attend(queries, out, safe=self._safe)

    def done(self) -> None:
        """All rows have been filled: what was kept of them may be used."""
        if self._keep is not None:
            self._maps._kept_frames = min(self._stop_frame, self._maps._keep_frames)


class _Pooling:
    """Attention summed over squares of key patches."""

    def __init__(self, side: int, key_frame_count: int, grid: PatchGrid) -> None:
        self._side, self._shape = side, (-1, key_frame_count, grid.height, grid.width)
        self.key_tokens = key_frame_count * -(-grid.height // side) * -(-grid.width // side)

    def __call__(self, rows: Tensor) -> Tensor:
        # avg_pool2d with a divisor of 1 sums, and with ceil_mode also the squares that the edge cuts.
        return F.avg_pool2d(rows.view(self._shape), self._side, ceil_mode=True, divisor_override=1).flatten(1)
