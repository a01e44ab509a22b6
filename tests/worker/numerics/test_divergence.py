import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker import reference
from worker.numerics.divergence import Factors, fast_dtype, grouped, near_enough, pair_divergences, symmetric_kl


def distributions(rng, count, keys, kind):
    if kind == "peaked":
        logits = rng.normal(0, 5, (count, keys))
    elif kind == "flat":  # equal entries: rounding errors that do not cancel
        logits = np.repeat(rng.choice([0.0, 0.7], (count, keys // 8 + 1)), 8, axis=1)[:, :keys]
    elif kind == "alike":
        logits = rng.normal(0, 1, keys) + rng.normal(0, 0.02, (count, keys))
    else:
        logits = rng.normal(0, 1, (count, keys))
    rows = np.exp(logits)
    if kind == "zeros":
        rows *= rng.random(rows.shape) < 0.5
        rows[:, 0] += 0.1
    return torch.from_numpy(rows / rows.sum(1, keepdims=True)).float()


KINDS = st.sampled_from(["plain", "peaked", "flat", "alike", "zeros"])


def factors_of(p, dtype):
    factors = Factors.empty(*p.shape, dtype, p.device)
    factors.fill(p)
    return factors


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5), st.integers(1, 40))
def test_symmetric_kl_matches_the_definition(seed, n, m, k):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(k), n), rng.dirichlet(np.ones(k), m)
    expected = reference.symmetric_kl(p, q)
    np.testing.assert_allclose(symmetric_kl(torch.from_numpy(p), torch.from_numpy(q)), expected, atol=1e-9)


def test_symmetric_kl_of_rows_with_zeros_is_finite_and_clamped():
    p, q = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    fast = symmetric_kl(torch.from_numpy(p), torch.from_numpy(q))
    np.testing.assert_allclose(fast, reference.symmetric_kl(p, q))
    assert torch.isfinite(fast).all()


def test_symmetric_kl_needs_the_same_key_tokens():
    with pytest.raises(ValueError, match="same key tokens"):
        symmetric_kl(torch.ones(1, 3) / 3, torch.ones(1, 4) / 4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), KINDS)
def test_pairs_match_the_definition(seed, keys, kind):
    rows = distributions(np.random.default_rng(seed), 6, keys, kind)
    expected = reference.symmetric_kl(rows.numpy().astype(np.float64), rows.numpy().astype(np.float64))
    first, second = torch.tensor([0, 0, 3, 5]), torch.tensor([0, 1, 2, 4])
    found = pair_divergences(rows, first, rows, second)
    np.testing.assert_allclose(found, expected[first, second], rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 600), KINDS, KINDS)
def test_products_in_bfloat16_err_by_less_than_their_doubt(seed, keys, kind, other_kind):
    rng = np.random.default_rng(seed)
    p, q = distributions(rng, 12, keys, kind), distributions(rng, 12, keys, other_kind)
    q[:4] = p[:4]
    q[4:8] = 0.9 * p[4:8] + 0.1 * q[4:8]
    exact = symmetric_kl(p.double(), q.double())
    a, b = factors_of(p, torch.bfloat16), factors_of(q, torch.bfloat16)
    found = near_enough(a, b).double()
    for tau in exact.flatten().clamp_min(1e-3).tolist():
        doubt = a.doubt(tau, b)[:, None]
        assert (exact[found < tau - doubt] < tau).all()
        assert (exact[found > tau + doubt] > tau).all()


def test_products_in_float32_leave_no_doubt():
    rows = distributions(np.random.default_rng(0), 5, 30, "plain")
    factors = factors_of(rows, torch.float32)
    assert (factors.doubt(1.0, factors) == 0).all()
    torch.testing.assert_close(near_enough(factors, factors), symmetric_kl(rows, rows))


def test_the_fast_dtype_is_found_once_and_is_one_of_two():
    found = fast_dtype(torch.device("cpu"))
    assert found in (torch.float32, torch.bfloat16)
    assert fast_dtype(torch.device("cpu")) == found


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(1, 12))
def test_summing_over_groups_of_keys_never_makes_distances_larger(seed, keys, width):
    rows = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(keys, 0.3), 6))
    summed = grouped(rows, width)
    assert summed.shape == (6, -(-keys // width))
    torch.testing.assert_close(summed.sum(1), rows.sum(1))
    assert (symmetric_kl(summed, summed) <= symmetric_kl(rows, rows) + 1e-6).all()
