import gc
import math

import numpy as np
import pytest
import torch

from benchmarks.released import symmetric_kl as released_kl
from tests.worker import reference
from tests.worker.method.test_algorithm1 import groups, maps_of
from tests.worker.numerics.backends import BACKENDS, make_backend, make_maps
from worker.method.windowed import Window, sort_by_similarity

TILES = {
    "default": {},
    "small": {"window_rows": 8, "window_columns": 5, "groups": 7, "window_run": 3, "pivot_step": 4},
    "single": {"window_rows": 1, "window_columns": 1, "groups": 1, "window_run": 1, "pivot_step": 4},
    "as on a GPU": {"window_columns": 40, "window_run": 0, "log_rows": 1000},
}


@pytest.fixture(params=TILES)
def backend(request):
    """No result depends on how the square of all pairs is divided."""
    return make_backend(**TILES[request.param])


@pytest.mark.parametrize("taus", [(1.0,), (0.2, 3.0, math.inf)])
def test_rows_become_the_means_of_their_neighbours(backend, taus):
    rows, _ = groups(3, 6, 60, 20, noise=0.5)
    maps = maps_of(rows, 20, backend=backend)
    exact = maps.rows(0, 3).numpy().astype(np.float64)
    kl = reference.symmetric_kl(exact, exact)
    window = Window(maps, len(taus))
    window.fill(maps.load(0, 3), taus)
    for level, tau in enumerate(taus):
        assert np.abs(kl - tau)[~np.eye(60, dtype=bool)].min() > 1e-4
        near = (kl <= tau).astype(float)
        assert 60 < near.sum() <= 3600
        window.smooth(level)
        smooth = torch.empty(60, 20)
        window.copy_smoothed(0, 60, smooth)
        np.testing.assert_allclose(smooth, near @ exact / near.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_pairs_at_the_threshold_are_decided_as_in_the_released_code(name):
    """Thresholds are KL of a pair as that code rounds it: exact sums decide nearly one pair a threshold otherwise."""
    generator = torch.Generator().manual_seed(0)
    tokens = 0.7 * torch.randn(3, 160, 8, 48, generator=generator)
    queries, keys = tokens, (tokens + 0.3 * torch.randn(tokens.shape, generator=generator))[:2].flatten(0, 1)
    backend = make_backend(name)
    maps = make_maps(queries, keys, backend=backend)
    rows = maps.rows(0, 3)
    expected = released_kl(rows, rows)
    first, second = torch.randint(480, (2, 60), generator=generator)
    taus = expected[first, second][first != second].tolist()
    window = Window(maps, len(taus))
    window.fill(maps.load(0, 3), taus)
    place = window.order.argsort()
    starts = range(0, 480, backend.tiling.window_rows)
    squares = [torch.cat([pairs.rows(start) for start in starts]) for pairs in window.neighbours]
    wrong = sum(
        int((near[place][:, place] != (expected <= tau)).sum()) for near, tau in zip(squares, taus, strict=True)
    )
    assert wrong / 2 < len(taus) / 2


def test_a_window_can_be_filled_again_with_fewer_rows(backend):
    rows, _ = groups(4, 3, 80, 20, noise=0.1)
    maps = maps_of(rows, 20, backend=backend)
    used = Window(maps, 1)
    used.fill(maps.load(0, 3), (1.0,))
    used.smooth(0)
    used.fill(maps.load(3, 4), (1.0,))
    used.smooth(0)
    fresh = Window(maps, 1)
    fresh.fill(maps.load(3, 4), (1.0,))
    fresh.smooth(0)
    smooth, expected = torch.empty(2, 20, 20)
    used.copy_smoothed(0, 20, smooth)
    fresh.copy_smoothed(0, 20, expected)
    assert len(used) == 20
    torch.testing.assert_close(smooth, expected)


def test_rows_of_a_group_become_neighbours_in_the_order():
    rows, truth = groups(5, 4, 200, 30)
    ordered = truth[sort_by_similarity(torch.from_numpy(rows).float(), pivot_step=32).numpy()]
    assert (np.diff(ordered) != 0).sum() == 3


def test_a_window_takes_the_memory_it_announces(backend):
    def storages():
        tensors = [tensor for tensor in gc.get_objects() if type(tensor) is torch.Tensor]
        return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}

    rows, _ = groups(6, 2, 60, 20)
    maps = maps_of(rows, 20, backend=backend)
    before = storages()
    window = Window(maps, 2)
    added = {pointer: size for pointer, size in storages().items() if pointer not in before}
    assert Window.bytes_needed(maps, 2) == sum(added.values())
    del window
