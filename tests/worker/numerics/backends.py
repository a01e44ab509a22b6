"""Backends for a CPU, with tiles of any size, and attention maps on them."""

from dataclasses import replace

import torch

from worker.method.attention import AttentionMaps
from worker.numerics.numba_backend import NumbaBackend
from worker.numerics.tile_pool import TilePool
from worker.numerics.torch_backend import CPU_TILING, TorchBackend

CPU = torch.device("cpu")
POOL = TilePool(torch.get_num_threads())

BACKENDS = {
    "torch bfloat16": (TorchBackend, torch.bfloat16),
    "numba float32": (NumbaBackend, torch.float32),
    "numba bfloat16": (NumbaBackend, torch.bfloat16),
}
"""Backends and the dtype of their factors, which may change no result."""


def make_backend(name="numba float32", **tiling):
    """One of `BACKENDS`, with some sizes of its tiles."""
    kind, factor_dtype = BACKENDS[name]
    return kind(CPU, factor_dtype=factor_dtype, tiling=replace(CPU_TILING, **tiling))


def make_maps(queries, keys, *, backend=None, pool=POOL, **options):
    """Attention maps on the CPU."""
    return AttentionMaps(queries, keys, backend=backend or make_backend(), pool=pool, **options)
