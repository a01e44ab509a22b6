"""The Triton backend in Triton's interpreter: its results, not its speed. Run by test_triton_backend.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.worker import reference
from tests.worker.method.test_algorithm1 import assignment, groups, maps_of
from tests.worker.numerics.backends import CPU, make_maps
from worker.method.algorithm1 import algorithm1
from worker.method.assignment import kl_to_centroids
from worker.numerics.tile_pool import TilePool
from worker.numerics.torch_backend import CPU_TILING
from worker.numerics.triton_backend import TritonBackend

POOL = TilePool(1)  # the interpreter keeps its position in one variable for all threads


@pytest.fixture(params=[False, True], ids=["compare all", "prune"])
def backend(request):
    """Small tiles, for tensors of a CPU."""
    tiling = replace(CPU_TILING, prunes=request.param)
    return TritonBackend(CPU, tiling=tiling, tiles=((16, 32, 4),), row_step=64, interpreted=True)


def test_each_kernel_agrees_with_torch(backend):
    backend.check(20, 70)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_rows_are_the_mean_over_heads_of_the_softmax(backend, scale):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 20, 3, 5, generator=generator) * scale
    keys = torch.randn(40, 3, 5, generator=generator)
    rows = make_maps(queries, keys, backend=backend, pool=POOL).rows(0, 2)
    expected = reference.attention(queries.flatten(0, 1).numpy(), keys.numpy())
    np.testing.assert_allclose(rows, expected, atol=1e-5 if scale > 1 else 1e-6)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_clusters_and_labels_are_those_of_the_reference(backend, tau):
    rows, _ = groups(7, 5, 40, 20, noise=0.4)
    maps = maps_of(rows, 20, backend=backend, pool=POOL)
    exact = maps.rows(0, 2).numpy().astype(np.float64)
    centres, assigned, parents, margin = reference.algorithm1(exact, tau)
    assert margin > 1e-4
    level = algorithm1(maps, [tau])[0]
    np.testing.assert_array_equal(level.rounds[0].parents, parents[0])
    np.testing.assert_allclose(level.centroids, centres, atol=1e-5)
    np.testing.assert_array_equal(assignment(maps, level), assigned)


def test_kl_is_approximate_and_the_nearest_is_exact(backend):
    rows = np.random.default_rng(0).dirichlet(np.full(40, 2.0), 80)
    rows[40:] = 0.999 * rows[:40] + 0.001 * rows[40:]
    maps = maps_of(rows, 40, backend=backend, pool=POOL)
    level = algorithm1(maps, [0.3])[0]
    centroids = level.centroids.numpy().astype(np.float64)
    for start, stop, (found,) in kl_to_centroids(maps, [level]):
        exact = reference.symmetric_kl(maps.rows(start, stop).numpy().astype(np.float64), centroids)
        found = found.flatten(0, 1).numpy()
        np.testing.assert_array_equal(found.argmin(1), exact.argmin(1))
        np.testing.assert_allclose(found, exact, atol=0.05)
