"""The backend for a CUDA device: attention rows, factors and single pairs in one Triton kernel each.

Triton comes with torch for CUDA and needs a C compiler at its first run.
"""

import math
import time
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from worker.numerics import triton_kernels
from worker.numerics.backend import EPSILON, AttentionKeys, Centroids, Factors, Tiling
from worker.numerics.kl_bounds import product_error
from worker.numerics.torch_backend import TorchBackend

Tile = tuple[int, int, int]  # rows, columns and warps of a tile of scores

TILES: tuple[Tile, ...] = ((128, 128, 8), (64, 128, 4), (128, 64, 4))  # the fastest depends on the device
ROW_STEP = 4096  # keys of a row that a kernel reads at once


class TritonBackend(TorchBackend):
    """`TorchBackend` with kernels that write a row once where separate operations cross the memory ten times.

    Args:
        device: A CUDA device.
        tiling: Default: that of a GPU.
        tiles: Tiles of scores to choose from.
        row_step: Keys of a row that a kernel reads at once.
        interpreted: For tests: kernels run in Triton's interpreter on a CPU, which has no bfloat16 products.
    """

    keeps_rows = False  # computing a row again is faster than reading it

    def __init__(
        self,
        device: torch.device,
        *,
        tiling: Tiling | None = None,
        tiles: Sequence[Tile] = TILES,
        row_step: int = ROW_STEP,
        interpreted: bool = False,
    ) -> None:
        super().__init__(device, factor_dtype=torch.bfloat16, tiling=tiling)
        self._tiles, self._row_step, self._interpreted = tuple(tiles), row_step, interpreted

    def prepare_keys(self, keys: Tensor, dtype: torch.dtype) -> AttentionKeys:
        return AttentionKeys(keys.to(dtype).contiguous(), dtype, longest=math.inf)

    def needs_shift(self, queries: Tensor, keys: AttentionKeys) -> bool:  # noqa: ARG002 - the kernel always shifts
        return True

    def attend(self, queries: Tensor, keys: AttentionKeys, out: Tensor, *, shift: bool) -> None:  # noqa: ARG002
        heads, _, depth = queries.shape
        tile = self._tiles[0]
        if len(self._tiles) > 1:
            tile = fastest_tile(self.device, keys.dtype, heads, depth, self._tiles)
        attend(queries.to(keys.dtype).contiguous(), keys.values, out, tile, interpreted=self._interpreted)

    def empty_factors(self, count: int, key_tokens: int) -> Factors:
        part = super().empty_factors(count, key_tokens)
        return Factors(part.p, part.log, part.negentropy, part.log_norm, remainder=torch.empty_like(part.p))

    def fill_factors(self, p: Tensor, factors: Factors) -> None:
        if factors.remainder is None:  # part of a block's rows, whose remainder nothing reads
            self.fill_rounded(p, factors)
            return
        tensors = factors.p, factors.remainder, factors.log, factors.negentropy, factors.log_norm
        triton_kernels.fill_factors[(len(p),)](p, *tensors, p.shape[1], EPSILON=EPSILON, COLUMNS=self._row_step)

    def pair_kl(self, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        out = torch.empty(len(row), device=p.device)
        if len(row):
            arguments = (p, row.contiguous(), q, other.contiguous(), out, p.shape[1])
            triton_kernels.pair_kl[(len(row),)](*arguments, EPSILON=EPSILON, COLUMNS=self._row_step)
        return out

    def pair_kl_as_released(self, p: Tensor, row: Tensor, q: Tensor, other: Tensor) -> Tensor:
        return self.pair_kl(p, row, q, other)  # its products add in another order than the released code's anyway

    def prepare_centroids(self, p: Tensor) -> Centroids:
        factors = self.empty_factors(*p.shape)
        self.fill_factors(p, factors)
        return Centroids(p, factors)

    def centroid_kl(self, p: Tensor, levels: Sequence[Centroids], out: Sequence[Tensor]) -> None:
        """Products of the factors, and exact distances to all centroids that may be the nearest."""
        rows = self.empty_factors(*p.shape)
        self.fill_factors(p, rows)
        for level, kl in zip(levels, out, strict=True):
            kl.copy_(self.kl_products(rows, level.factors))
            nearest = kl.amin(1).clamp_min_(0)
            error = product_error(nearest, rows, level.factors)
            reach = nearest + 2 * product_error(nearest + 3 * error, rows, level.factors)
            candidates = kl <= reach[:, None]
            candidates &= candidates.sum(1, keepdim=True) > 1
            row, centroid = candidates.nonzero().T
            for start in range(0, len(row), step := self.tiling.exact_pairs):
                part, other = row[start : start + step], centroid[start : start + step]
                kl[part, other] = self.pair_kl(p, part, level.p, other)

    def check(self, count: int = 150, total: int = 300) -> None:
        """Compare each kernel with torch's operations on `count` rows of `total` keys.

        Raises:
            AssertionError: They differ.
        """
        generator = torch.Generator().manual_seed(0)
        queries = torch.randn(3, count, 24, generator=generator).to(self.device)
        keys = torch.randn(3, 24, total, generator=generator).to(self.device)
        rows = torch.empty(count, total, device=self.device)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            self.attend(queries, self.prepare_keys(keys, dtype), rows, shift=True)
            scores = queries.to(dtype).double() @ keys.to(dtype).double() / math.sqrt(24)
            torch.testing.assert_close(rows.double(), torch.softmax(scores, -1).mean(0), rtol=tolerance, atol=1e-7)
        factors = self.empty_factors(count, total)
        self.fill_factors(rows, factors)
        assert factors.remainder is not None
        terms = factors.p.float() * factors.log.float()
        torch.testing.assert_close(factors.p, rows.bfloat16(), rtol=0, atol=0)
        torch.testing.assert_close(factors.p.float() + factors.remainder.float(), rows, rtol=1e-4, atol=0)
        torch.testing.assert_close(factors.log.float(), (rows * total).log(), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(factors.negentropy, terms.sum(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(factors.log_norm, (terms * factors.log.float()).sum(1).sqrt(), rtol=1e-4, atol=1e-5)
        first, second = torch.arange(5, device=self.device), torch.arange(15, 20, device=self.device)
        a, b = rows[first].double(), rows[second].double()
        kl = self.pair_kl(rows, first, rows, second)
        torch.testing.assert_close(kl.double(), ((a - b) * (a.log() - b.log())).sum(1), rtol=1e-4, atol=1e-5)


def attend(queries: Tensor, keys: Tensor, out: Tensor, tile: Tile, *, interpreted: bool = False) -> None:
    """Write the mean over heads of softmax(q·k/√d) over all keys.

    Args:
        queries: Contiguous, (heads, n, d), float32 or bfloat16.
        keys: Contiguous, (heads, d, m), of the same dtype.
        out: (n, m) float32; rounded to bfloat16 where the queries are.
        tile: Of the scores.
        interpreted: Whether the kernels run in Triton's interpreter.
    """
    heads, count, depth = queries.shape
    rows, columns, warps = tile
    total = keys.shape[2]
    denominators = torch.empty(heads, count, device=queries.device)
    rounded = queries.dtype == torch.bfloat16
    options = {
        "HEADS": heads,
        "DEPTH": depth,
        "PADDED": max(16, 1 << (depth - 1).bit_length()),
        "ROWS": rows,
        "COLUMNS": columns,
        # Three products of 10-bit mantissas: float32's precision at a multiple of its speed.
        "PRECISION": "ieee" if rounded or interpreted else "tf32x3",
        "WIDEN": interpreted,
        "num_warps": warps,
    }
    scale, tiles = math.log2(math.e) / math.sqrt(depth), -(-count // rows)
    softmax = triton_kernels.softmax_denominators[(tiles, heads)]
    softmax(queries, keys, scale, denominators, count, total, **options)
    mean = triton_kernels.mean_softmax[(tiles, -(-total // columns))]
    mean(queries, keys, scale, denominators, out, count, total, ROUND=rounded, **options)


@cache
def fastest_tile(device: torch.device, dtype: torch.dtype, heads: int, depth: int, tiles: tuple[Tile, ...]) -> Tile:
    """The tile that is measured to be fastest on this device; it changes rounding in the last bits only."""
    queries = torch.zeros(heads, 4096, depth, dtype=dtype, device=device)
    keys, out = torch.zeros(heads, depth, 8192, dtype=dtype, device=device), torch.empty(4096, 8192, device=device)
    seconds = {}
    for tile in tiles:
        attend(queries, keys, out, tile)  # compiles
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(3):
            attend(queries, keys, out, tile)
        torch.cuda.synchronize(device)
        seconds[tile] = time.perf_counter() - start
    return min(seconds, key=lambda tile: seconds[tile])
