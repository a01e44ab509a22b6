import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker import reference
from tests.worker.numerics.backends import BACKENDS, CPU, make_backend
from worker.numerics.kl import symmetric_kl
from worker.numerics.kl_bounds import ambiguous_after_rounding, group_sums, product_error
from worker.numerics.torch_backend import fastest_factor_dtype


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


def factors_of(p, backend):
    factors = backend.empty_factors(*p.shape)
    backend.fill_factors(p, factors)
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


BFLOAT16 = [name for name in BACKENDS if "bfloat16" in name]


@pytest.mark.parametrize("name", BFLOAT16)
@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 600), KINDS, KINDS)
def test_products_in_bfloat16_err_by_less_than_their_bound(name, seed, keys, kind, other_kind):
    rng = np.random.default_rng(seed)
    p, q = distributions(rng, 12, keys, kind), distributions(rng, 12, keys, other_kind)
    q[:4] = p[:4]
    q[4:8] = 0.9 * p[4:8] + 0.1 * q[4:8]
    exact = symmetric_kl(p.double(), q.double())
    backend = make_backend(name)
    a, b = factors_of(p, backend), factors_of(q, backend)
    kl = backend.kl_products(a, b).double()
    for tau in exact.flatten().clamp_min(1e-3).tolist():
        error = product_error(tau, a, b)[:, None]
        assert (exact[kl < tau - error] < tau).all()
        assert (exact[kl > tau + error] > tau).all()


@pytest.mark.parametrize("name", BFLOAT16)
def test_the_bound_is_of_the_order_of_the_error(name):
    """A bound without limits would be right, too, but would leave every pair undecided."""
    rows = distributions(np.random.default_rng(0), 50, 600, "plain")
    backend = make_backend(name)
    factors = factors_of(rows, backend)
    exact = symmetric_kl(rows.double(), rows.double())
    error = product_error(exact.median().item(), factors, factors)
    assert error.max() < 0.1 * exact.median()


def test_products_in_float32_have_no_error_bound():
    rows = distributions(np.random.default_rng(0), 5, 30, "plain")
    backend = make_backend("numba float32")
    factors = factors_of(rows, backend)
    assert (product_error(1.0, factors, factors) == 0).all()
    torch.testing.assert_close(backend.kl_products(factors, factors), symmetric_kl(rows, rows))


@pytest.mark.parametrize(("bfloat16_s", "expected"), [(0.9, torch.bfloat16), (1.1, torch.float32)])
def test_the_faster_dtype_is_used_for_factors(bfloat16_s, expected):
    seconds = {torch.float32: 1.0, torch.bfloat16: bfloat16_s}
    assert fastest_factor_dtype(CPU, lambda dtype: seconds[dtype]) == expected
    assert fastest_factor_dtype(torch.device("cuda"), lambda dtype: seconds[dtype]) == torch.bfloat16


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(1, 12))
def test_kl_of_group_sums_is_a_lower_bound(seed, keys, groups):
    rows = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(keys, 0.3), 6))
    sums = group_sums(rows, groups)
    assert sums.shape[1] <= groups
    torch.testing.assert_close(sums.sum(1), rows.sum(1))
    assert (symmetric_kl(sums, sums) <= symmetric_kl(rows, rows) + 1e-6).all()
    assert torch.equal(group_sums(rows, keys), rows)


@given(st.integers(0, 2**32 - 1), st.integers(2, 300), KINDS)
def test_rows_with_another_nearest_centroid_after_rounding_are_ambiguous(seed, keys, kind):
    rng = np.random.default_rng(seed)
    rows = distributions(rng, 40, keys, kind)
    centroids = distributions(rng, 8, keys, kind)
    centroids[4:] = 0.999 * centroids[:4] + 0.001 * centroids[4:]  # nearly ties
    exact = symmetric_kl(rows.double(), centroids.double())
    rounded = symmetric_kl(rows.bfloat16().double(), centroids.double())
    ambiguous = ambiguous_after_rounding(rounded.float())
    assert torch.equal(rounded.argmin(1)[~ambiguous], exact.argmin(1)[~ambiguous])


def test_rows_far_nearer_to_one_centroid_are_not_ambiguous():
    assert not ambiguous_after_rounding(torch.tensor([[0.1, 5.0], [2.0, 0.3]])).any()
    assert not ambiguous_after_rounding(torch.tensor([[0.1], [2.0]])).any()
    assert ambiguous_after_rounding(torch.tensor([[0.1, 0.1001]])).all()
