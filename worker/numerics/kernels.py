"""Kernels of our own for a GPU: attention rows, factors and pairs in one go each; without them, torch's operations.

They are used where Triton is (it comes with torch for CUDA and needs a C compiler at its first run) and where a
small trial gives what torch's operations give; otherwise the same is computed, only slower, and a warning says so.
"""

import importlib
import logging
import math
import time
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

TILES = ((128, 128, 8), (64, 128, 4), (128, 64, 4))  # rows, columns and warps of a tile of scores, to choose from
WIDE = 4096  # keys of a row at once
INTERPRETED = False  # tests run the kernels on a CPU, where bfloat16 products do not exist

logger = logging.getLogger(__name__)


@cache
def available(device: torch.device) -> bool:
    """Whether the kernels can be used on the device."""
    if device.type != "cuda":
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a compiler's advice is not for those who run this
            _try(device)
    except Exception as error:  # no Triton, no compiler, or whatever a compiler may say: all of it works without
        logger.warning("torch's own operations take the place of kernels and are several times slower: %s", error)
        return False
    return True


@cache
def _triton() -> Any:
    return importlib.import_module(
        "worker.numerics.triton_kernels"
    )  # only where it is used: the import takes half a second


def attend(queries: Tensor, keys: Tensor, out: Tensor) -> None:
    """Mean over heads of softmax(q·k/√d) over all keys.

    Args:
        queries: Contiguous, (heads, n, d), float32 or bfloat16.
        keys: Likewise, (heads, d, m).
        out: (n, m) float32; where the factors are bfloat16, values are rounded to it.
    """
    heads, _, depth = queries.shape
    _attend(queries, keys, out, _fastest_tile(queries.device, queries.dtype, heads, depth))


def _attend(queries: Tensor, keys: Tensor, out: Tensor, tile: tuple[int, int, int]) -> None:
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
        "PRECISION": "ieee" if rounded or INTERPRETED else "tf32x3",
        "WIDEN": INTERPRETED,
        "num_warps": warps,
    }
    scale, tiles = math.log2(math.e) / math.sqrt(depth), -(-count // rows)
    triton = _triton()
    triton.softmax_denominators[(tiles, heads)](queries, keys, scale, denominators, count, total, **options)
    grid = (tiles, -(-total // columns))
    triton.mean_softmax[grid](queries, keys, scale, denominators, out, count, total, ROUND=rounded, **options)


@cache
def _fastest_tile(device: torch.device, dtype: torch.dtype, heads: int, depth: int) -> tuple[int, int, int]:
    """By trying: what is best depends on the device, and what it changes is rounding in the last bits."""
    if INTERPRETED:
        return TILES[0]
    queries = torch.zeros(heads, 4096, depth, dtype=dtype, device=device)
    keys, out = torch.zeros(heads, depth, 8192, dtype=dtype, device=device), torch.empty(4096, 8192, device=device)
    seconds = {}
    for tile in TILES:
        _attend(queries, keys, out, tile)  # compiles
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(3):
            _attend(queries, keys, out, tile)
        torch.cuda.synchronize(device)
        seconds[tile] = time.perf_counter() - began
    return min(seconds, key=lambda tile: seconds[tile])


def factors(
    p: Tensor, rounded: Tensor, rest: Tensor, logs: Tensor, own: Tensor, spread: Tensor, epsilon: float
) -> None:
    """Of rows, (n, m) float32: p and log(p·m) in bfloat16, what rounding p left, own terms and spread."""
    arguments = (p, rounded, rest, logs, own, spread, p.shape[1])
    _triton().factors[(len(p),)](*arguments, EPSILON=epsilon, COLUMNS=WIDE)


def pair_divergences(p: Tensor, row: Tensor, q: Tensor, other: Tensor, *, epsilon: float) -> Tensor:
    """J of the pairs (p[row], q[other]), float32."""
    out = torch.empty(len(row), device=p.device)
    if len(row):
        arguments = (p, row, q, other, out, p.shape[1])
        _triton().pair_divergences[(len(row),)](*arguments, EPSILON=epsilon, COLUMNS=WIDE)
    return out


def _try(device: torch.device, count: int = 150, total: int = 300) -> None:
    """Compare each kernel with torch's operations on a few rows and keys.

    Raises:
        AssertionError: They differ.
    """
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, count, 24, generator=generator).to(device)
    keys = torch.randn(3, 24, total, generator=generator).to(device)
    rows = torch.empty(count, total, device=device)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        attend(queries.to(dtype), keys.to(dtype), rows)
        scores = queries.to(dtype).double() @ keys.to(dtype).double() / math.sqrt(24)
        expected = torch.softmax(scores, -1).mean(0)
        torch.testing.assert_close(rows.double(), expected, rtol=tolerance, atol=1e-7)
    rounded, rest, logs = torch.empty(3, count, total, dtype=torch.bfloat16, device=device)
    own, spread = torch.empty(2, count, device=device)
    factors(rows, rounded, rest, logs, own, spread, epsilon=1e-12)
    torch.testing.assert_close(rounded, rows.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(rounded.float() + rest.float(), rows, rtol=1e-4, atol=0)
    torch.testing.assert_close(logs.float(), (rows * total).log(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(own, (rounded.float() * logs.float()).sum(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spread, (rounded.float() * logs.float() ** 2).sum(1).sqrt(), rtol=1e-4, atol=1e-5)
    first, second = torch.arange(5, device=device), torch.arange(15, 20, device=device)
    a, b = rows[first].double(), rows[second].double()
    expected = ((a - b) * (a.log() - b.log())).sum(1)
    found = pair_divergences(rows, first, rows, second, epsilon=1e-12)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
