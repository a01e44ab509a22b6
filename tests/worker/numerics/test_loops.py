import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.numerics import loops
from worker.numerics import numba_ops as numba_loops
from worker.numerics.divergence import EPSILON

ROOT = Path(__file__).parents[3]
COMPILE = "from worker import numba_loops; import numpy; print(type(numba_loops.factors).__name__)"

compiled = loops._compiled

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 70))


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def loops_of(request):
    """Tests run twice: with the compiled loops, and with torch's operations in their place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "_compiled", lambda: numba_loops if request.param == "compiled" else None)
        yield


def uniform(seed, shape, low, high):
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32))


def distributions(seed, shape, spread=8.0):
    """Rows that sum to 1, some of whose values are 0."""
    rows = uniform(seed, shape, -spread, spread).exp()
    rows[rows < np.exp(-0.9 * spread)] = 0
    return rows / rows.sum(1, keepdim=True).clamp_min(1e-30)


def exact_log(p):
    return np.log(np.maximum(p.double().numpy(), EPSILON) * p.shape[1])


@given(seeds, sizes, st.sampled_from([0.0, 1.0, 30.0]), st.booleans(), st.booleans())
def test_a_share_of_the_softmax_is_added(seed, shape, scale, shift, fresh):
    scores, mean = uniform(seed, shape, -scale, scale), uniform(seed + 1, shape, 0, 1)
    expected = torch.softmax(scores.double(), -1) / 3 + (0 if fresh else mean.double())
    if fresh:
        mean.fill_(torch.nan)
    loops.add_softmax(scores, mean, 1 / 3, shift=shift, fresh=fresh)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


@given(seeds, sizes, st.sampled_from([1e3, 1e6]))
def test_scores_far_from_zero_are_shifted(seed, shape, scale):
    scores, mean = uniform(seed, shape, -scale, scale), torch.empty(shape)
    expected = torch.softmax(scores.double(), -1)
    loops.add_softmax(scores, mean, 1.0, shift=True, fresh=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-30)


def test_exponentials_and_logarithms_are_right_to_the_last_bits():
    numbers = torch.linspace(-80, 80, 100_001)[None]
    pairs = torch.stack([numbers[0], torch.zeros_like(numbers[0])], 1).contiguous()
    shares = torch.empty_like(pairs)
    loops.add_softmax(pairs, shares, 1.0, shift=False, fresh=True)
    ratio = (shares[:, 0].double() / shares[:, 1].double()).log()
    np.testing.assert_allclose(ratio, numbers[0].double(), atol=1e-6)
    p = torch.logspace(-12, 0, 100_001)[:, None].contiguous()
    log, own = torch.empty_like(p), torch.empty(len(p))
    loops.logs_and_own(p, log, own, epsilon=EPSILON)
    np.testing.assert_allclose(log, exact_log(p), rtol=2e-7, atol=1e-7)


@given(seeds, sizes)
def test_logs_are_clamped_and_own_terms_are_sums_with_them(seed, shape):
    p = distributions(seed, shape)
    log, own = torch.empty_like(p), torch.empty(len(p))
    loops.logs_and_own(p, log, own, epsilon=EPSILON)
    np.testing.assert_allclose(log, exact_log(p), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(own, (p.double().numpy() * exact_log(p)).sum(1), rtol=1e-5, atol=1e-5)


@given(seeds, sizes)
def test_factors_are_the_nearest_bfloat16_and_sums_are_of_them(seed, shape):
    p = distributions(seed, shape)
    rounded, log = torch.empty(2, *shape, dtype=torch.bfloat16)
    own, spread = torch.empty(2, len(p))
    loops.factors(p, rounded, log, own, spread, epsilon=EPSILON)
    assert torch.equal(rounded, p.bfloat16())
    # A logarithm between two of bfloat16's numbers may fall on either: it is itself rounded first.
    np.testing.assert_allclose(log.double(), exact_log(p), rtol=2**-7.9, atol=1e-6)
    terms = rounded.double() * log.double()
    np.testing.assert_allclose(own, terms.sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(spread, (terms * log.double()).sum(1).sqrt(), rtol=1e-5, atol=1e-5)


@given(seeds, st.integers(1, 70), st.integers(0, 20))
def test_divergences_are_those_of_the_pairs_asked_for(seed, keys, pairs):
    p, q = distributions(seed, (4, keys)), distributions(seed + 1, (3, keys))
    row, other = np.random.default_rng(seed).integers(0, 3, (pairs, 2)).T  # not contiguous
    found = torch.empty(pairs)
    loops.pair_divergences(p, torch.from_numpy(row), q, torch.from_numpy(other), found, epsilon=EPSILON)
    difference = np.maximum(p.double().numpy(), EPSILON)[row] - np.maximum(q.double().numpy(), EPSILON)[other]
    expected = (difference * (exact_log(p)[row] - exact_log(q)[other])).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_where_loops_do_not_compile_torch_computes_and_a_warning_says_so(monkeypatch, caplog):
    def fail(_name):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(loops.importlib, "import_module", fail)
    assert compiled.__wrapped__() is None
    assert "no compiler" in caplog.text


def test_loops_compile_where_nothing_may_be_written(tmp_path):
    """Neither beside the source, which is another user's in a container, nor in a home that is not there."""
    readonly = tmp_path / "worker"
    readonly.mkdir()
    for name in ("__init__.py", "numba_loops.py"):
        (readonly / name).write_bytes((ROOT / "worker" / name).read_bytes())
    (readonly / "__pycache__").write_text("no folder")
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    environment |= {"HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not any(tmp_path.rglob("*.nbi"))
