"""Tokens -> spatio-temporal attention maps over the key frames, computed tile by tile."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.numerics.backend import Backend
from worker.numerics.blocks import RowBlock, Rows, block_capacity
from worker.numerics.tile_pool import TilePool


def key_frames(frame_count: int, key_ratio: float) -> list[int]:
    """Indices of the frames that serve as keys: floor(i * T / K) with K = max(1, round(key_ratio * T)).

    Source: the uniform sampling of Section 3 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893). The
    released code's differ: `released_key_frames`.

    Raises:
        ValueError: There are no frames, or the ratio is outside (0, 1].
    """
    _check_key_ratio(frame_count, key_ratio)
    count = max(1, round(key_ratio * frame_count))
    return [i * frame_count // count for i in range(count)]


def released_key_frames(frame_count: int, key_ratio: float) -> list[int]:
    """Indices of the key frames as the released code takes them: arange(T // r) * r with r = 1 / key_ratio.

    For a clip shorter than r frames, for which that code has none at all, the first frame.

    Raises:
        ValueError: There are no frames, or the ratio is outside (0, 1].
    """
    _check_key_ratio(frame_count, key_ratio)
    step = round(1 / key_ratio)
    return [i * step for i in range(max(1, frame_count // step))]


def _check_key_ratio(frame_count: int, key_ratio: float) -> None:
    if frame_count < 1:
        raise ValueError(f"key frames need at least one frame, got {frame_count}")
    if not 0 < key_ratio <= 1:
        raise ValueError(f"key_ratio must be in (0, 1], got {key_ratio}")


class QuerySource(Protocol):
    """Queries outside memory, such as a Spool: frames start to stop, (b, N, heads, d); bfloat16 as uint16 bits."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> "Tensor | NDArray[Any]": ...


class AttentionMaps:
    """The attention maps A of all query tokens, computed on demand; all of A is never in memory.

    A[t*N + i] is the mean over heads of softmax(q·k/√d) over all key tokens: a distribution.

    Args:
        queries: (T, N, heads, d) in memory, or a source to read frames from.
        keys: Keys of the key frames, (K*N, heads, d), on the backend's device.
        backend: Computes the rows.
        pool: Its threads compute tiles; reports progress.
        dtype: float32: products and rows in float32. bfloat16: the factors of products and the rows are rounded to
            bfloat16; scores, exponentials and sums stay in float32.
        keep_bytes: Memory in which rows of the leading frames are kept in bfloat16 once computed, for passes that
            can use them, see `kept`.
        timer: Opened by each thread around the computation of rows, to measure its time.

    Attributes:
        frame_count: T.
        tokens_per_frame: N.
        key_tokens: K*N, the length of a row.
        query_numbers: heads * d.

    Raises:
        ValueError: The shapes do not fit each other, or there are no frames.

    Source: Section 3 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893).
    """

    def __init__(
        self,
        queries: "Tensor | QuerySource",
        keys: Tensor,
        *,
        backend: Backend,
        pool: TilePool,
        dtype: torch.dtype = torch.float32,
        keep_bytes: int = 0,
        timer: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        if keys.ndim != 3 or len(keys) < 1:
            raise ValueError(f"keys must have shape (K*N, heads, d), got {tuple(keys.shape)}")
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dtype of attention maps must be float32 or bfloat16, got {dtype}")
        if len(queries) < 1:
            raise ValueError("queries must have at least one frame, got none")
        self.backend, self.pool, self.device, self.dtype = backend, pool, backend.device, dtype
        self._queries = queries
        self.frame_count, self.key_tokens = len(queries), len(keys)
        first = self._read(0, 1)
        if first.ndim != 4 or first.shape[2:] != keys.shape[1:]:
            raise ValueError(
                f"queries and keys must have the same heads and depth, got {tuple(first.shape[1:])} per frame "
                f"and {tuple(keys.shape)}"
            )
        self.tokens_per_frame = first.shape[1]
        self.query_numbers = first.shape[2] * first.shape[3]
        if len(keys) % self.tokens_per_frame:
            raise ValueError(f"keys must be whole frames of {self.tokens_per_frame} tokens, got {len(keys)} tokens")
        self._keys = backend.prepare_keys(self._rounded(keys.float()).permute(1, 2, 0), dtype)
        frame_bytes = self.tokens_per_frame * self.key_tokens * torch.bfloat16.itemsize
        self._keep_frames = min(self.frame_count, keep_bytes // frame_bytes) if backend.keeps_rows else 0
        self._kept: Tensor | None = None
        self._kept_frames = 0
        self._timer = timer

    def rows(self, start_frame: int, stop_frame: int) -> Tensor:
        """Attention maps of the frames start to stop (exclusive), float32, shape (b*N, K*N); rows sum to 1."""
        frames = self.load(start_frame, stop_frame)
        rows = torch.empty(len(frames), self.key_tokens, device=self.device)
        step = self.pool.step(len(frames), self.backend.tiling.attention_tile(self.key_tokens))
        self.pool.run(lambda start, stop: frames.fill(start, stop, rows[start:stop]), len(frames), step)
        frames.done()
        return rows

    def blocks(self) -> Iterator[Rows]:
        """The rows of all frames in order, with their factors; a block is valid until the next one is computed.

        Small frames share a block, large ones are divided.
        """
        most = block_capacity(self.key_tokens, self.backend)
        step = max(1, most // self.tokens_per_frame)  # frames
        capacity = min(most, min(step, self.frame_count) * self.tokens_per_frame)
        memory = RowBlock(capacity, self.key_tokens, backend=self.backend, pool=self.pool)
        for first in range(0, self.frame_count, step):
            self.pool.advance(first, self.frame_count)
            frames = self.load(first, min(first + step, self.frame_count))
            yield from memory.read(len(frames), frames.fill)
            frames.done()
        self.pool.advance(self.frame_count, self.frame_count)

    def load(self, start_frame: int, stop_frame: int) -> "LoadedFrames":
        """The frames start to stop (exclusive), ready for any thread to compute their rows."""
        if not 0 <= start_frame < stop_frame <= self.frame_count:
            raise IndexError(f"frames {start_frame} to {stop_frame} of {self.frame_count}")
        queries = self._read(start_frame, stop_frame).flatten(0, 1)
        queries = self._rounded(queries).transpose(0, 1)  # (heads, b*N, d)
        return LoadedFrames(self, start_frame, stop_frame, queries)

    def kept(self, start_frame: int, stop_frame: int) -> Tensor | None:
        """Rows of frames that were computed before, in bfloat16, (b*N, K*N); None where they were not kept."""
        if self._kept is None or stop_frame > self._kept_frames:
            return None
        return self._kept[start_frame * self.tokens_per_frame : stop_frame * self.tokens_per_frame]

    def _memory_to_keep(self, start_frame: int, stop_frame: int) -> Tensor | None:
        """Memory for the rows of frames that are about to be computed; frames are kept in order."""
        stop_frame = min(stop_frame, self._keep_frames)
        if start_frame != self._kept_frames or stop_frame <= start_frame:
            return None
        if self._kept is None:
            shape = (self._keep_frames * self.tokens_per_frame, self.key_tokens)
            self._kept = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return self._kept[start_frame * self.tokens_per_frame : stop_frame * self.tokens_per_frame]

    def _read(self, start: int, stop: int) -> Tensor:
        """Queries of the frames, (b, N, heads, d), float32 values on the maps' device."""
        values = self._queries[start:stop] if isinstance(self._queries, Tensor) else self._queries.read(start, stop)
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(values)
            values = values.view(torch.bfloat16) if values.dtype == torch.uint16 else values
        return values.to(self.device).float()

    def _rounded(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).float()

    def _attend(self, queries: Tensor, out: Tensor, *, shift: bool) -> None:
        """Rows of a tile of queries, (heads, n, d), into `out`, (n, K*N)."""
        with self._timer():
            self.backend.attend(queries, self._keys, out, shift=shift)


class LoadedFrames:
    """Queries of some frames, from which any thread computes rows tile by tile."""

    def __init__(self, maps: AttentionMaps, start_frame: int, stop_frame: int, queries: Tensor) -> None:
        self._maps, self._stop_frame, self._queries = maps, stop_frame, queries
        self._shift = maps.backend.needs_shift(queries, maps._keys)
        self._keep = maps._memory_to_keep(start_frame, stop_frame)

    def __len__(self) -> int:
        """Number of rows: frames × tokens per frame."""
        return self._queries.shape[1]

    def fill(self, start: int, stop: int, out: Tensor) -> None:
        """Write the rows start to stop (exclusive) into `out`, float32, (stop - start, K*N)."""
        self._maps._attend(self._queries[:, start:stop], out, shift=self._shift)
        if self._keep is not None and start < len(self._keep):
            self._keep[start:stop] = out[: len(self._keep) - start]

    def fill_indexed(self, index: Tensor, out: Tensor) -> None:
        """Write the rows of these indices into `out`, float32, (len(index), K*N)."""
        self._maps._attend(self._queries[:, index], out, shift=self._shift)

    def done(self) -> None:
        """Mark all rows as filled: those that were kept may be used."""
        if self._keep is not None:
            self._maps._kept_frames = min(self._stop_frame, self._maps._keep_frames)
