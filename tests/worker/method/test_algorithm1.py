import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from benchmarks.dense import dense_algorithm1
from tests.worker import reference
from tests.worker.numerics.backends import BACKENDS, CPU, make_backend, make_maps
from worker.method.algorithm1 import Level, Round, algorithm1
from worker.method.assignment import kl_to_centroids
from worker.method.attention import AttentionMaps
from worker.method.leaders import MemoryBudgetExceeded
from worker.method.windowed import windowed
from worker.numerics.choose import choose_backend
from worker.numerics.numba_backend import NumbaBackend
from worker.numerics.tile_pool import TilePool
from worker.numerics.torch_backend import CPU_TILING

MARGIN = 1e-4  # nats: a pair nearer to τ than this may fall on either side in float32


def maps_of(rows, tokens_per_frame, **options):
    """Attention maps whose rows are the given distributions, (T*N, M) with M a multiple of N."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    keys = rows.shape[1]
    queries = rows.clamp_min(1e-30).log().view(-1, tokens_per_frame, 1, keys) * math.sqrt(keys)
    return make_maps(queries, torch.eye(keys)[:, None], **options)


def assignment(maps, level):
    return torch.cat([z[0].argmin(-1).flatten() for _, _, z in kl_to_centroids(maps, [level])]).cpu().numpy()


def same_partition(a, b):
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


def adjusted_rand_index(a, b):
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    both, in_a, in_b = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = in_a * in_b / pairs(np.array([len(a)]))
    return (both - chance) / ((in_a + in_b) / 2 - chance)


def groups(seed, count, tokens, keys, noise=0.05):
    """Rows around `count` separated centres, and the group of each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 2, (count, keys))
    truth = rng.integers(0, count, tokens)
    logits = centres[truth] + rng.normal(0, noise, (tokens, keys))
    rows = np.exp(logits)
    return rows / rows.sum(1, keepdims=True), truth


@st.composite
def clips(draw):
    """Rows of a small clip, tokens per frame, τ: random, in groups, chained, with copies, zeros and near-τ pairs."""
    tokens_per_frame, frames = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    count, keys = tokens_per_frame * frames, tokens_per_frame * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["random", "groups", "chain", "peaked"]))
    if kind == "groups":
        logits = rng.normal(0, 1.5, (6, keys))[rng.integers(0, draw(st.integers(1, 6)), count)]
        logits = logits + rng.normal(0, 0.3, (count, keys))
    elif kind == "chain":  # each row near its neighbours only: the order of the walk decides
        logits = np.cumsum(rng.normal(0, 0.4, (count, keys)), axis=0)
    else:
        logits = rng.normal(0, 1.0 if kind == "random" else 6.0, (count, keys))
    rows = np.exp(logits - logits.max(1, keepdims=True))
    if draw(st.booleans()):  # copies
        rows[rng.integers(0, count, count // 2)] = rows[rng.integers(0, count)]
    if draw(st.booleans()):  # zeros
        rows[rng.random(rows.shape) < 0.2] = 0
        rows[:, 0] += 1e-3
    rows = (rows / rows.sum(1, keepdims=True)).astype(np.float32)
    tau = draw(st.sampled_from([0.05, 0.5, 1.0, 1.6, 5.0]))
    if draw(st.booleans()):  # a pair just outside the margin
        i, j = rng.integers(0, count, 2)
        tau = max(0.01, reference.symmetric_kl(rows[[i]], rows[[j]])[0, 0] + rng.choice([-2, 2]) * MARGIN)
    return rows, tokens_per_frame, float(tau)


def exact_maps(rows, tokens_per_frame, **options):
    """The maps and their rows as float64: the reference works on exactly the rows that the worker computes."""
    maps = maps_of(rows, tokens_per_frame, **options)
    return maps, maps.rows(0, maps.frame_count).numpy().astype(np.float64)


def assert_equal(level, maps, expected):
    centres, assigned, parents, _ = expected
    assert len(level.centroids) == len(centres)
    for ours, theirs in zip(level.rounds, parents, strict=True):
        np.testing.assert_array_equal(ours.parents, theirs)
    np.testing.assert_allclose(level.centroids, centres, atol=1e-6)
    z = np.concatenate([z[0].numpy().reshape(-1, len(centres)) for _, _, z in kl_to_centroids(maps, [level])])
    chosen, best = z.argmin(1), z.min(1)
    tied = np.partition(z, 1, axis=1)[:, 1] - best < MARGIN if len(centres) > 1 else np.zeros(len(z), bool)
    np.testing.assert_array_equal(chosen[~tied], assigned[~tied])


@pytest.fixture(params=BACKENDS)
def backend(request):
    return make_backend(request.param)


@pytest.fixture(params=[(name, groups) for name in BACKENDS for groups in (300, 3)], ids=lambda p: f"{p[0]} {p[1]}")
def pruning_backend(request):
    """Backends that prune leaders with 300 groups, so that each key is a group here, or with 3."""
    name, groups = request.param
    return make_backend(name, groups=groups)


hypothetical = settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@hypothetical
@given(clip=clips())
def test_algorithm1_equals_the_reference(pruning_backend, clip):
    rows, tokens_per_frame, tau = clip
    maps, exact = exact_maps(rows, tokens_per_frame, backend=pruning_backend)
    expected = reference.algorithm1(exact, tau)
    assume(expected[3] > MARGIN)
    assert_equal(algorithm1(maps, [tau])[0], maps, expected)


@hypothetical
@given(clip=clips())
def test_windowed_equals_the_reference(pruning_backend, clip):
    rows, tokens_per_frame, tau = clip
    maps, exact = exact_maps(rows, tokens_per_frame, backend=pruning_backend)
    expected = reference.windowed(exact, tau, tokens_per_frame)
    assume(expected[3] > MARGIN)
    assert_equal(windowed(maps, [tau])[0], maps, expected)


def block_bytes(rows, keys, name):
    """Memory of a block of so many rows: float32 rows and two factors."""
    return rows * keys * (4 + 2 * BACKENDS[name][1].itemsize)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("groups", [300, 3])
@pytest.mark.parametrize("shape_step", [1, 64])
@pytest.mark.parametrize("block_rows", [1, 3, 1000])
@pytest.mark.parametrize("candidate_rows", [1, 2, 1000])
@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_blocks_of_any_size_give_the_same_clusters(name, block_rows, candidate_rows, shape_step, groups, procedure):
    rng = np.random.default_rng(7)
    rows = rng.dirichlet(np.full(8, 0.8), 48).astype(np.float32)
    backend = make_backend(
        name,
        block_bytes=block_bytes(block_rows, 8, name),
        candidate_rows=candidate_rows,
        shape_step=shape_step,
        groups=groups,
    )
    maps, exact = exact_maps(rows, 8, backend=backend)
    expected = reference.algorithm1(exact, 1.0) if procedure is algorithm1 else reference.windowed(exact, 1.0, 8)
    assert expected[3] > MARGIN
    assert len(expected[0]) > 3
    assert len(expected[2]) > 1
    assert_equal(procedure(maps, [1.0])[0], maps, expected)


class CountingBackend(NumbaBackend):
    """Counts the pairs whose KL is computed from factors over all keys."""

    compared = 0

    def kl_products(self, rows, others):
        if rows.p.shape[1] == 20:
            self.compared += len(rows) * len(others)
        return super().kl_products(rows, others)


@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.bfloat16])
def test_leaders_that_are_far_from_all_rows_of_a_tile_are_pruned(factor_dtype):
    def pairs_compared(*, prunes):
        block = 20 * 20 * (4 + 2 * factor_dtype.itemsize)
        tiling = replace(CPU_TILING, block_bytes=block, shape_step=1, prunes=prunes, groups=19)
        backend = CountingBackend(CPU, factor_dtype=factor_dtype, tiling=tiling)
        maps, exact = exact_maps(rows, 20, backend=backend)
        assert_equal(algorithm1(maps, [1.0])[0], maps, reference.algorithm1(exact, 1.0))
        return backend.compared

    rows, truth = groups(3, 30, 600, 20)
    rows = rows[np.argsort(truth, kind="stable")]
    assert pairs_compared(prunes=True) < pairs_compared(prunes=False) / 4


def test_a_leader_in_the_last_frame_is_kept(backend):
    rows, _ = groups(1, 1, 40, 10)
    late, _ = groups(2, 1, 1, 10)
    rows[-1] = late
    maps, exact = exact_maps(rows, 10, backend=backend)
    level = algorithm1(maps, [1.0])[0]
    assert_equal(level, maps, reference.algorithm1(exact, 1.0))
    np.testing.assert_array_equal(assignment(maps, level), [0] * 39 + [1])


@pytest.mark.parametrize(("order", "parents"), [("acb", [0, 1, 0]), ("cab", [0, 1, 0]), ("bac", [0, 0, 0])])
def test_a_token_joins_the_earliest_leader_and_not_the_nearest(backend, order, parents):
    # Along a line b lies within τ of a and of c, and nearer to c; a and c are apart.
    points = {"a": [0.5, 0.5], "b": [0.67, 0.33], "c": [0.75, 0.25]}
    kl = reference.symmetric_kl(*[np.array(list(points.values()))] * 2)
    tau = (kl[0, 1] + kl[0, 2]) / 2
    assert kl[1, 2] < kl[0, 1] < tau < kl[0, 2]
    maps, exact = exact_maps(np.array([points[name] for name in order]), 1, backend=backend)
    level = algorithm1(maps, [tau])[0]
    np.testing.assert_array_equal(level.rounds[0].parents, parents)
    assert_equal(level, maps, reference.algorithm1(exact, tau))


def test_the_dense_implementation_of_the_benchmark_equals_the_reference():
    rows = torch.from_numpy(np.random.default_rng(7).dirichlet(np.full(8, 0.8), 48)).float()
    centroids, labels = dense_algorithm1(rows, 1.0)
    expected, assigned, _, margin = reference.algorithm1(rows.numpy().astype(np.float64), 1.0)
    assert margin > MARGIN
    np.testing.assert_allclose(centroids, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, assigned)


def test_an_infinite_tau_gives_one_cluster(backend):
    maps = maps_of(np.random.default_rng(3).dirichlet(np.ones(6), 30), 6, backend=backend)
    for procedure in (algorithm1, windowed):
        assert len(procedure(maps, [math.inf])[0].centroids) == 1


def test_equal_maps_share_a_label(backend):
    rows = np.random.default_rng(4).dirichlet(np.full(6, 0.3), 5)[np.arange(30) % 5]
    maps = maps_of(rows, 6, backend=backend)
    for procedure in (algorithm1, windowed):
        level = procedure(maps, [1e-3])[0]
        assert len(level.centroids) == 5
        np.testing.assert_array_equal(assignment(maps, level), np.arange(30) % 5)


@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_each_level_equals_a_separate_run(procedure, backend):
    maps = maps_of(np.random.default_rng(5).dirichlet(np.full(8, 0.8), 64), 8, backend=backend)
    taus = [0.5, 2.0, 1.0, 7.0]
    for level, tau in zip(procedure(maps, taus), taus, strict=True):
        own = procedure(maps, [tau])[0]
        assert level.tau == tau
        torch.testing.assert_close(level.centroids, own.centroids, rtol=0, atol=0)
        for ours, theirs in zip(level.rounds, own.rounds, strict=True):
            np.testing.assert_array_equal(ours.parents, theirs.parents)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_bfloat16_finds_separated_groups(seed, procedure):
    rows, truth = groups(seed, 12, 400, 40, noise=0.1)
    maps = maps_of(rows, 40, dtype=torch.bfloat16, keep_bytes=2**20)
    level = procedure(maps, [1.0])[0]
    assert adjusted_rand_index(assignment(maps, level), truth) >= 0.99


@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_progress_counts_frames_and_may_cancel_the_run(procedure):
    rows = np.random.default_rng(6).dirichlet(np.ones(4), 40)
    calls = []
    procedure(maps_of(rows, 4, pool=TilePool(2, lambda *progress: calls.append(progress))), [1.0])
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == 10
    assert {call[1] for call in calls} == {10}

    class CancelledError(Exception):
        pass

    def cancel(done, _total):
        if done >= 3:
            raise CancelledError

    with pytest.raises(CancelledError):
        procedure(maps_of(rows, 4, pool=TilePool(2, cancel)), [1.0])


@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_leaders_that_exceed_the_budget_raise_an_error_with_both_numbers(procedure):
    maps = maps_of(np.random.default_rng(8).dirichlet(np.full(20, 0.1), 200), 20)
    with pytest.raises(MemoryBudgetExceeded) as error:
        procedure(maps, [0.01], budget_bytes=10_000)
    assert error.value.needed_bytes > error.value.budget_bytes == 10_000
    assert "10000" in str(error.value)


@pytest.mark.parametrize("taus", [[], [0.0], [1.0, -1.0], [math.nan]])
def test_thresholds_are_above_zero(taus):
    with pytest.raises(ValueError, match="tau must be above 0"):
        algorithm1(maps_of(np.ones((4, 2)) / 2, 2), taus)


def test_kl_to_centroids_comes_frame_by_frame_for_all_levels(backend):
    rows = np.random.default_rng(9).dirichlet(np.full(8, 0.8), 24).astype(np.float32)
    maps, exact = exact_maps(rows, 8, backend=backend)
    levels = algorithm1(maps, [0.5, 2.0])
    seen = []
    for start, stop, per_level in kl_to_centroids(maps, levels):
        seen += range(start, stop)
        for level, z in zip(levels, per_level, strict=True):
            assert z.shape == (stop - start, 8, len(level.centroids))
            frame = reference.symmetric_kl(exact[start * 8 : stop * 8], level.centroids.numpy().astype(np.float64))
            np.testing.assert_allclose(z.flatten(0, 1), frame, atol=1e-5)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("keep_frames", [1, 5, 8])
@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_rows_kept_in_bfloat16_give_the_assignment_that_float32_gives(keep_frames, tau):
    rng = np.random.default_rng(10)
    rows = rng.dirichlet(np.full(40, 2.0), 160)
    rows[:80] = 0.999 * rows[80:] + 0.001 * rows[:80]  # ties, nearly
    plain, keeping = maps_of(rows, 20), maps_of(rows, 20, keep_bytes=keep_frames * 20 * 40 * 2)
    levels = algorithm1(plain, [tau, 2 * tau])
    algorithm1(keeping, [tau])
    assert keeping.kept(0, keep_frames) is not None
    for (_, _, exact), (_, _, kept) in zip(
        kl_to_centroids(plain, levels), kl_to_centroids(keeping, levels), strict=True
    ):
        for a, b in zip(exact, kept, strict=True):
            torch.testing.assert_close(a.argmin(-1), b.argmin(-1))
            torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_the_gpu_agrees_with_the_cpu(procedure):
    if not torch.cuda.is_available():
        assert not os.environ.get("REQUIRE_GPU"), "REQUIRE_GPU is set and there is no GPU"
        pytest.skip("no GPU")
    generator = torch.Generator().manual_seed(0)
    prototypes, noise = torch.randn(30, 4, 48, generator=generator), torch.randn(6, 400, 4, 48, generator=generator)
    tokens = prototypes[torch.randint(0, 30, (6, 400), generator=generator)] + 0.3 * noise
    keys = tokens[::3].flatten(0, 1)
    gpu_backend = choose_backend(torch.device("cuda"))
    cpu = make_maps(tokens, keys)
    gpu = AttentionMaps(tokens, keys.cuda(), backend=gpu_backend, pool=TilePool(gpu_backend.threads))
    torch.testing.assert_close(gpu.rows(0, 6).cpu(), cpu.rows(0, 6), rtol=1e-4, atol=1e-7)
    taus = [0.3, 1.0, 3.0]
    on_gpu, on_cpu = procedure(gpu, taus), procedure(cpu, taus)
    for ours, expected in zip(on_gpu, on_cpu, strict=True):
        assert adjusted_rand_index(assignment(gpu, ours), assignment(cpu, expected)) > 0.999
    again = procedure(gpu, taus)
    for ours, theirs in zip(on_gpu, again, strict=True):
        torch.testing.assert_close(ours.centroids, theirs.centroids, rtol=0, atol=0)


def test_a_level_checks_that_its_rounds_lead_to_its_centroids():
    with pytest.raises(ValueError, match="do not lead"):
        Level(1.0, torch.ones(2, 3) / 3, (Round(np.array([0, 1, 2])), Round(np.array([0, 0, 0]))))
