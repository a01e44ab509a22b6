import math
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.worker import reference
from worker.method import algorithm1 as clustering
from worker.method.algorithm1 import Level, MemoryBudgetExceeded, Round, algorithm1, distances, windowed
from worker.method.attention import AttentionMaps
from worker.numerics import divergence

MARGIN = 1e-4  # nats: a pair nearer to τ than this may fall on either side in float32


def maps_of(rows, tokens_per_frame, **options):
    """Attention maps whose rows are the given distributions, (T*N, M) with M a multiple of N."""
    rows = torch.as_tensor(rows, dtype=torch.float32)
    keys = rows.shape[1]
    queries = rows.clamp_min(1e-30).log().view(-1, tokens_per_frame, 1, keys) * math.sqrt(keys)
    return AttentionMaps(queries, torch.eye(keys)[:, None], **options)


def assignment(maps, level):
    return torch.cat([z[0].argmin(-1).flatten() for _, _, z in distances(maps, [level])]).cpu().numpy()


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


def realised(rows, tokens_per_frame):
    """The maps and their rows as float64: what the reference is given is exactly what the worker sees."""
    maps = maps_of(rows, tokens_per_frame)
    return maps, maps.rows(0, maps.frame_count).numpy().astype(np.float64)


def equals(level, maps, expected):
    centres, assigned, parents, _ = expected
    assert len(level.centroids) == len(centres)
    for ours, theirs in zip(level.rounds, parents, strict=True):
        np.testing.assert_array_equal(ours.parents, theirs)
    np.testing.assert_allclose(level.centroids, centres, atol=1e-6)
    z = np.concatenate([z[0].numpy().reshape(-1, len(centres)) for _, _, z in distances(maps, [level])])
    chosen, best = z.argmin(1), z.min(1)
    tied = np.partition(z, 1, axis=1)[:, 1] - best < MARGIN if len(centres) > 1 else np.zeros(len(z), bool)
    np.testing.assert_array_equal(chosen[~tied], assigned[~tied])


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"], autouse=True)
def product_dtype(request, monkeypatch):
    """What products are computed in is chosen by speed and may change nothing: every test runs with both."""
    monkeypatch.setattr(clustering, "fast_dtype", lambda _device: request.param)


@pytest.fixture(params=[300, 3], ids=["each key", "groups of keys"])
def key_groups(request, monkeypatch):
    """Which leaders are looked at is decided by sums over groups of keys; that may change nothing either."""
    monkeypatch.setattr(divergence, "GROUPS", request.param)


hypothetical = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("key_groups")
@hypothetical
@given(clips())
def test_algorithm1_equals_the_reference(clip):
    rows, tokens_per_frame, tau = clip
    maps, exact = realised(rows, tokens_per_frame)
    expected = reference.algorithm1(exact, tau)
    assume(expected[3] > MARGIN)
    equals(algorithm1(maps, [tau])[0], maps, expected)


@pytest.mark.usefixtures("key_groups")
@hypothetical
@given(clips())
def test_windowed_equals_the_reference(clip):
    rows, tokens_per_frame, tau = clip
    maps, exact = realised(rows, tokens_per_frame)
    expected = reference.windowed(exact, tau, tokens_per_frame)
    assume(expected[3] > MARGIN)
    equals(windowed(maps, [tau])[0], maps, expected)


@pytest.mark.usefixtures("key_groups")
@pytest.mark.parametrize("shape_step", [1, 64])
@pytest.mark.parametrize("rows_a_block", [1, 3, 1000])
@pytest.mark.parametrize("candidates", [1, 2, 1000])
@pytest.mark.parametrize("procedure", ["algorithm1", "windowed"])
def test_blocks_of_any_size_give_the_same_clusters(monkeypatch, rows_a_block, candidates, shape_step, procedure):
    rng = np.random.default_rng(7)
    rows = rng.dirichlet(np.full(8, 0.8), 48).astype(np.float32)
    monkeypatch.setattr(clustering._Block, "rows_of", lambda *_: rows_a_block)
    monkeypatch.setattr(clustering, "CANDIDATES", candidates)
    monkeypatch.setattr(clustering, "SHAPE_STEP", shape_step)
    maps, exact = realised(rows, 8)
    arguments = (exact, 1.0) if procedure == "algorithm1" else (exact, 1.0, 8)
    expected = getattr(reference, procedure)(*arguments)
    assert expected[3] > MARGIN
    assert len(expected[0]) > 3
    assert len(expected[2]) > 1
    equals(getattr(clustering, procedure)(maps, [1.0])[0], maps, expected)


def test_leaders_that_are_far_from_all_of_some_rows_are_not_looked_at(monkeypatch):
    looked_at = []
    _candidates = clustering._Leaders._candidates

    def candidates(self, *arguments):
        found = _candidates(self, *arguments)
        looked_at.append((len(found), self.count))
        return found

    monkeypatch.setattr(clustering._Leaders, "_candidates", candidates)
    monkeypatch.setattr(clustering._Block, "rows_of", lambda *_: 20)
    rows, truth = groups(3, 30, 600, 20)
    rows = rows[np.argsort(truth, kind="stable")]
    maps, exact = realised(rows, 20)
    equals(algorithm1(maps, [1.0])[0], maps, reference.algorithm1(exact, 1.0))
    found, leaders = np.array(looked_at).sum(0)
    assert leaders > 300
    assert found < leaders / 4


def test_a_leader_found_in_the_last_frame_is_kept():
    rows, _ = groups(1, 1, 40, 10)
    late, _ = groups(2, 1, 1, 10)
    rows[-1] = late
    maps, exact = realised(rows, 10)
    level = algorithm1(maps, [1.0])[0]
    equals(level, maps, reference.algorithm1(exact, 1.0))
    np.testing.assert_array_equal(assignment(maps, level), [0] * 39 + [1])


def test_a_token_joins_the_earliest_leader_and_not_the_nearest():
    # Along a line b lies within τ of a and of c, and nearer to c; a and c are apart.
    a, b, c = (np.array([0.5 + x, 0.5 - x]) for x in (0.0, 0.17, 0.25))
    j = reference.symmetric_kl(np.array([a, b, c]), np.array([a, b, c]))
    tau = (j[0, 1] + j[0, 2]) / 2
    assert j[1, 2] < j[0, 1] < tau < j[0, 2]
    for order, parents in (((a, c, b), [0, 1, 0]), ((c, a, b), [0, 1, 0]), ((b, a, c), [0, 0, 0])):
        for tokens_per_frame in (1,):
            level = algorithm1(maps_of(np.array(order), tokens_per_frame), [tau])[0]
            np.testing.assert_array_equal(level.rounds[0].parents, parents)


def test_an_infinite_tau_gives_one_cluster():
    maps = maps_of(np.random.default_rng(3).dirichlet(np.ones(6), 30), 6)
    for procedure in (algorithm1, windowed):
        assert len(procedure(maps, [math.inf])[0].centroids) == 1


def test_equal_maps_share_a_label():
    rows = np.random.default_rng(4).dirichlet(np.full(6, 0.3), 5)[np.arange(30) % 5]
    maps = maps_of(rows, 6)
    for procedure in (algorithm1, windowed):
        level = procedure(maps, [1e-3])[0]
        assert len(level.centroids) == 5
        np.testing.assert_array_equal(assignment(maps, level), np.arange(30) % 5)


@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_each_level_equals_a_run_of_its_own(procedure):
    maps = maps_of(np.random.default_rng(5).dirichlet(np.full(8, 0.8), 64), 8)
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
def test_progress_counts_frames_and_may_stop_the_run(procedure):
    maps = maps_of(np.random.default_rng(6).dirichlet(np.ones(4), 40), 4)
    calls = []
    procedure(maps, [1.0], on_progress=lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == 10
    assert {call[1] for call in calls} == {10}

    class StopError(Exception):
        pass

    def stop(done, _total):
        if done >= 3:
            raise StopError

    with pytest.raises(StopError):
        procedure(maps, [1.0], on_progress=stop)


@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_leaders_that_outgrow_the_budget_name_both_numbers(procedure):
    maps = maps_of(np.random.default_rng(8).dirichlet(np.full(20, 0.1), 200), 20)
    with pytest.raises(MemoryBudgetExceeded) as error:
        procedure(maps, [0.01], memory_bytes=10_000)
    assert error.value.needed_bytes > error.value.allowed_bytes == 10_000
    assert "10000" in str(error.value)


@pytest.mark.parametrize("taus", [[], [0.0], [1.0, -1.0], [math.nan]])
def test_thresholds_are_above_zero(taus):
    with pytest.raises(ValueError, match="thresholds"):
        algorithm1(maps_of(np.ones((4, 2)) / 2, 2), taus)


def test_distances_come_frame_by_frame_for_all_levels():
    rows = np.random.default_rng(9).dirichlet(np.full(8, 0.8), 24).astype(np.float32)
    maps, exact = realised(rows, 8)
    levels = algorithm1(maps, [0.5, 2.0])
    seen = []
    for start, stop, per_level in distances(maps, levels):
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
    for (_, _, exact), (_, _, kept) in zip(distances(plain, levels), distances(keeping, levels), strict=True):
        for a, b in zip(exact, kept, strict=True):
            torch.testing.assert_close(a.argmin(-1), b.argmin(-1))
            torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("procedure", [algorithm1, windowed])
def test_the_gpu_gives_what_the_cpu_gives(procedure, monkeypatch):
    if not torch.cuda.is_available():
        assert not os.environ.get("REQUIRE_GPU"), "REQUIRE_GPU is set and there is no GPU"
        pytest.skip("no GPU")
    monkeypatch.setattr(clustering, "fast_dtype", divergence.fast_dtype)
    generator = torch.Generator().manual_seed(0)
    kinds, noise = torch.randn(30, 4, 48, generator=generator), torch.randn(6, 400, 4, 48, generator=generator)
    tokens = kinds[torch.randint(0, 30, (6, 400), generator=generator)] + 0.3 * noise
    keys = tokens[::3].flatten(0, 1)
    cpu, gpu = AttentionMaps(tokens, keys), AttentionMaps(tokens, keys.cuda())
    torch.testing.assert_close(gpu.rows(0, 6).cpu(), cpu.rows(0, 6), rtol=1e-4, atol=1e-7)
    taus = [0.3, 1.0, 3.0]
    found, wanted = procedure(gpu, taus), procedure(cpu, taus)
    for ours, theirs in zip(found, wanted, strict=True):
        labels, expected = assignment(gpu, ours), assignment(cpu, theirs)
        assert adjusted_rand_index(labels, expected) > 0.999
    again = procedure(gpu, taus)
    for ours, theirs in zip(found, again, strict=True):
        torch.testing.assert_close(ours.centroids, theirs.centroids, rtol=0, atol=0)


def test_a_level_checks_that_its_rounds_lead_to_its_centroids():
    with pytest.raises(ValueError, match="do not lead"):
        Level(1.0, torch.ones(2, 3) / 3, (Round(np.array([0, 1, 2])), Round(np.array([0, 0, 0]))))
