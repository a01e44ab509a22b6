"""Every backend on a CPU against float64 NumPy; Triton's is tested in test_triton_backend.py."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker import reference
from tests.worker.numerics.backends import BACKENDS, CPU, make_backend
from worker.numerics import choose
from worker.numerics.backend import EPSILON
from worker.numerics.numba_backend import NumbaBackend
from worker.numerics.torch_backend import TorchBackend

ROOT = Path(__file__).parents[3]
COMPILE = "from worker.numerics import numba_ops; print(type(numba_ops.fill_factors).__name__)"

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 70))
with_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(params=["torch bfloat16", "numba bfloat16"], ids=["torch", "numba"])
def backend(request):
    return make_backend(request.param)


def uniform(seed, shape, low, high):
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32))


def distributions(seed, shape, spread=8.0):
    """Rows that sum to 1, with some zeros."""
    rows = uniform(seed, shape, -spread, spread).exp()
    rows[rows < np.exp(-0.9 * spread)] = 0
    return rows / rows.sum(1, keepdim=True).clamp_min(1e-30)


def exact_log(p):
    return np.log(np.maximum(p.double().numpy(), EPSILON) * p.shape[1])


@with_fixture
@given(seed=seeds, shape=sizes, scale=st.sampled_from([0.0, 1.0, 30.0]), shift=st.booleans(), first=st.booleans())
def test_a_weighted_softmax_is_added(backend, seed, shape, scale, shift, first):
    scores, mean = uniform(seed, shape, -scale, scale), uniform(seed + 1, shape, 0, 1)
    expected = torch.softmax(scores.double(), -1) / 3 + (0 if first else mean.double())
    if first:
        mean.fill_(torch.nan)
    backend.add_softmax(scores, mean, 1 / 3, shift=shift, first=first)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


@with_fixture
@given(seed=seeds, shape=sizes, scale=st.sampled_from([1e3, 1e6]))
def test_scores_far_from_zero_are_shifted(backend, seed, shape, scale):
    scores, mean = uniform(seed, shape, -scale, scale), torch.empty(shape)
    expected = torch.softmax(scores.double(), -1)
    backend.add_softmax(scores, mean, 1.0, shift=True, first=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-30)


@with_fixture
@given(seed=seeds, tokens=st.integers(1, 40), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_scores_that_may_overflow_need_a_shift(backend, seed, tokens, scale):
    queries, keys = uniform(seed, (2, 3, 4), -scale, scale), uniform(seed + 1, (2, 4, tokens), -scale, scale)
    prepared = backend.prepare_keys(keys, torch.float32)
    scores = queries @ keys / 2
    overflows = not (scores.exp().sum(-1).isfinite().all() and (scores.exp() > 0).all())
    assert backend.needs_shift(queries, prepared) >= overflows
    if scale < 1:
        assert not backend.needs_shift(queries, prepared)


def test_exponentials_and_logarithms_are_accurate_to_the_last_bits(backend):
    numbers = torch.linspace(-80, 80, 100_001)[None]
    pairs = torch.stack([numbers[0], torch.zeros_like(numbers[0])], 1).contiguous()
    weights = torch.empty_like(pairs)
    backend.add_softmax(pairs, weights, 1.0, shift=False, first=True)
    ratio = (weights[:, 0].double() / weights[:, 1].double()).log()
    np.testing.assert_allclose(ratio, numbers[0].double(), atol=1e-6)
    p = torch.logspace(-12, 0, 100_001)[:, None].contiguous()
    log, negentropy = torch.empty_like(p), torch.empty(len(p))
    backend.log_rows(p, log, negentropy)
    np.testing.assert_allclose(log, exact_log(p), rtol=2e-7, atol=1e-7)


@with_fixture
@given(seed=seeds, shape=sizes)
def test_logs_are_clamped_and_negentropies_are_sums_with_them(backend, seed, shape):
    p = distributions(seed, shape)
    log, negentropy = torch.empty_like(p), torch.empty(len(p))
    backend.log_rows(p, log, negentropy)
    np.testing.assert_allclose(log, exact_log(p), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(negentropy, (p.double().numpy() * exact_log(p)).sum(1), rtol=1e-5, atol=1e-5)


@with_fixture
@given(seed=seeds, shape=sizes)
def test_factors_are_the_nearest_bfloat16_and_sums_are_of_them(backend, seed, shape):
    p = distributions(seed, shape)
    factors = backend.empty_factors(*shape)
    backend.fill_factors(p, factors)
    assert torch.equal(factors.p, p.bfloat16())
    # A logarithm between two of bfloat16's numbers may become either: it is itself rounded first.
    np.testing.assert_allclose(factors.log.double(), exact_log(p), rtol=2**-7.9, atol=1e-6)
    terms = factors.p.double() * factors.log.double()
    np.testing.assert_allclose(factors.negentropy, terms.sum(1), rtol=1e-5, atol=1e-5)
    expected = (terms * factors.log.double()).sum(1).sqrt()
    np.testing.assert_allclose(factors.log_norm, expected, rtol=1e-5, atol=1e-5)


@with_fixture
@given(seed=seeds, keys=st.integers(1, 200), pairs=st.integers(0, 20))
def test_pair_kl_is_that_of_the_requested_pairs(backend, seed, keys, pairs):
    p, q = distributions(seed, (4, keys)), distributions(seed + 1, (3, keys))
    row, other = np.random.default_rng(seed).integers(0, 3, (pairs, 2)).T  # not contiguous
    kl = backend.pair_kl(p, torch.from_numpy(row), q, torch.from_numpy(other))
    difference = np.maximum(p.double().numpy(), EPSILON)[row] - np.maximum(q.double().numpy(), EPSILON)[other]
    expected = (difference * (exact_log(p)[row] - exact_log(q)[other])).sum(1)
    np.testing.assert_allclose(kl, expected, rtol=1e-5, atol=1e-5)


@with_fixture
@given(seed=seeds, keys=st.integers(2, 200))
def test_pair_kl_matches_the_definition(backend, seed, keys):
    rows = distributions(seed, (6, keys), spread=3.0)
    expected = reference.symmetric_kl(rows.double().numpy(), rows.double().numpy())
    first, second = torch.tensor([0, 0, 3, 5]), torch.tensor([0, 1, 2, 4])
    for pair_kl in (backend.pair_kl, backend.pair_kl_as_released):
        kl = pair_kl(rows, first, rows, second)
        np.testing.assert_allclose(kl, expected[first, second], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
def test_kl_to_centroids_matches_the_definition_for_all_levels(name):
    backend = make_backend(name)
    p = distributions(0, (9, 30), spread=3.0)
    levels = [distributions(1, (4, 30), spread=3.0), distributions(2, (1, 30), spread=3.0)]
    kl = [torch.empty(9, len(level)) for level in levels]
    backend.centroid_kl(p, [backend.prepare_centroids(level) for level in levels], kl)
    for level, level_kl in zip(levels, kl, strict=True):
        expected = reference.symmetric_kl(p.double().numpy(), level.double().numpy())
        np.testing.assert_allclose(level_kl, expected, rtol=1e-5, atol=1e-5)


def test_members_are_added_to_their_leaders(backend):
    p, labels = distributions(3, (6, 10)), torch.tensor([0, 2, 0, 1, 2, 2])
    factors = backend.empty_factors(6, 10)
    sums, counts = torch.ones(3, 10), torch.zeros(3)
    backend.add_members(sums, counts, labels, p, factors)
    expected = np.stack([1 + p[labels == leader].double().numpy().sum(0) for leader in range(3)])
    np.testing.assert_allclose(sums, expected, atol=1e-6)
    assert counts.tolist() == [2, 1, 3]


def test_a_cpu_uses_numba():
    assert type(choose.choose_backend(CPU)) is NumbaBackend


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_backend_that_cannot_be_loaded_is_replaced_by_torch_with_a_warning(monkeypatch, caplog, device):
    def fail(_name):
        raise RuntimeError("no compiler")

    choose._load.cache_clear()
    choose._triton_works.cache_clear()
    monkeypatch.setattr(choose.importlib, "import_module", fail)
    with caplog.at_level(logging.WARNING):
        assert type(choose.choose_backend(torch.device(device))) is TorchBackend
    assert "no compiler" in caplog.text
    choose._load.cache_clear()
    choose._triton_works.cache_clear()


def test_operations_compile_where_no_folder_is_writable(tmp_path):
    """Neither beside the source, which belongs to another user in a container, nor in a home that does not exist."""
    folder = tmp_path / "worker" / "numerics"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    for name in ("__init__.py", "numba_ops.py"):
        (folder / name).write_bytes((ROOT / "worker" / "numerics" / name).read_bytes())
    (folder / "__pycache__").write_text("not a folder")
    environment = {name: value for name, value in os.environ.items() if name not in ("XDG_CACHE_HOME", "PYTHONPATH")}
    environment |= {"HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not any(tmp_path.rglob("*.nbi"))
