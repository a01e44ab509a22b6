"""The kernels in Triton's interpreter: what they compute, if not how fast. Run by test_kernels.py."""

import numpy as np
import pytest
import torch

from tests.worker import reference
from tests.worker.method.test_algorithm1 import assignment, groups, maps_of
from worker.method.algorithm1 import algorithm1, distances
from worker.method.attention import AttentionMaps
from worker.numerics import kernels
from worker.video.clip import PatchGrid


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Small tiles, and for a CPU's tensors; in one thread, as the interpreter notes its place for all of them."""
    torch.set_num_threads(1)
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    monkeypatch.setattr(kernels, "TILES", ((16, 32, 4),))
    monkeypatch.setattr(kernels, "WIDE", 64)
    monkeypatch.setattr(kernels, "available", lambda _device: True)


def test_each_kernel_gives_what_torch_gives():
    kernels._try(torch.device("cpu"), 20, 70)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_rows_are_the_mean_over_heads_of_the_softmax(scale):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 20, 3, 5, generator=generator) * scale
    keys = torch.randn(40, 3, 5, generator=generator)
    rows = AttentionMaps(queries, keys).rows(0, 2)
    expected = reference.attention(queries.flatten(0, 1).numpy(), keys.numpy())
    np.testing.assert_allclose(rows, expected, atol=1e-5 if scale > 1 else 1e-6)


def test_pooled_rows_are_sums_too():
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(1, 20, 2, 4, generator=generator), torch.randn(20, 2, 4, generator=generator)
    rows = AttentionMaps(queries, keys).rows(0, 1).view(20, 4, 5)
    pooled = AttentionMaps(queries, keys, pool=4, grid=PatchGrid(4, 5)).rows(0, 1)
    torch.testing.assert_close(pooled, torch.stack([rows[:, :, :4].sum((1, 2)), rows[:, :, 4:].sum((1, 2))], 1))


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_clusters_and_labels_are_those_of_the_reference(tau):
    rows, _ = groups(7, 5, 40, 20, noise=0.4)
    maps = maps_of(rows, 20)
    exact = maps.rows(0, 2).numpy().astype(np.float64)
    centres, assigned, parents, margin = reference.algorithm1(exact, tau)
    assert margin > 1e-4
    level = algorithm1(maps, [tau])[0]
    np.testing.assert_array_equal(level.rounds[0].parents, parents[0])
    np.testing.assert_allclose(level.centroids, centres, atol=1e-5)
    np.testing.assert_array_equal(assignment(maps, level), assigned)


def test_distances_are_near_and_the_nearest_is_exact():
    rows = np.random.default_rng(0).dirichlet(np.full(40, 2.0), 80)
    rows[40:] = 0.999 * rows[:40] + 0.001 * rows[40:]
    maps = maps_of(rows, 40)
    level = algorithm1(maps, [0.3])[0]
    centroids = level.centroids.numpy().astype(np.float64)
    for start, stop, (found,) in distances(maps, [level]):
        exact = reference.symmetric_kl(maps.rows(start, stop).numpy().astype(np.float64), centroids)
        found = found.flatten(0, 1).numpy()
        np.testing.assert_array_equal(found.argmin(1), exact.argmin(1))
        np.testing.assert_allclose(found, exact, atol=0.05)
