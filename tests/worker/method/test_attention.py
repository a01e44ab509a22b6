import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker import reference
from tests.worker.numerics.backends import BACKENDS, make_backend, make_maps
from worker.method.attention import key_frames
from worker.numerics.spool import Spool


def tokens(seed, frames, count, heads, depth, scale=1.0):
    return torch.randn(frames, count, heads, depth, generator=torch.Generator().manual_seed(seed)) * scale


@given(st.integers(1, 500), st.floats(0, 1, exclude_min=True))
def test_every_clip_has_key_frames_spread_from_its_start(frame_count, key_ratio):
    chosen = key_frames(frame_count, key_ratio)
    assert len(chosen) == max(1, round(key_ratio * frame_count))
    assert chosen[0] == 0
    assert chosen == sorted(set(chosen))
    assert chosen[-1] < frame_count


@pytest.mark.parametrize(
    ("frame_count", "key_ratio", "expected"), [(5, 0.1, [0]), (20, 0.1, [0, 10]), (3, 1.0, [0, 1, 2])]
)
def test_key_frames_are_floor_i_t_over_k(frame_count, key_ratio, expected):
    assert key_frames(frame_count, key_ratio) == expected


@pytest.mark.parametrize(("frame_count", "key_ratio"), [(0, 0.5), (3, 0.0), (3, 1.1), (3, float("nan"))])
def test_no_key_frames_without_frames_or_a_ratio(frame_count, key_ratio):
    with pytest.raises(ValueError, match=r"key_ratio|key frames"):
        key_frames(frame_count, key_ratio)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 3.0, 300.0])
def test_rows_are_the_mean_over_heads_of_the_softmax(backend, scale):
    queries, keys = tokens(1, 2, 6, 3, 4, scale), tokens(2, 1, 6, 3, 4).flatten(0, 1)
    rows = make_maps(queries, keys, backend=make_backend(backend)).rows(0, 2)
    expected = reference.attention(queries.flatten(0, 1).numpy(), keys.numpy())
    np.testing.assert_allclose(rows, expected, atol=1e-4 if scale > 100 else 1e-6)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize(("tile_rows", "tile_bytes"), [(7, 1), (2, 4 * 18 * 5), (128, 1)])
def test_rows_do_not_depend_on_the_tiles(scale, tile_rows, tile_bytes):
    queries, keys = tokens(1, 2, 9, 3, 4, scale), tokens(2, 2, 9, 3, 4).flatten(0, 1)
    backend = make_backend(attention_rows=tile_rows, attention_bytes=tile_bytes)
    maps = make_maps(queries, keys, backend=backend)
    frames = maps.load(0, 2)
    rows = torch.empty(18, 18)
    for start in range(0, 18, 5):
        frames.fill(start, min(start + 5, 18), rows[start : start + 5])
    expected = reference.attention(queries.flatten(0, 1).numpy(), keys.numpy())
    np.testing.assert_allclose(rows, expected, atol=1e-4 if scale > 100 else 1e-6)
    np.testing.assert_allclose(maps.rows(0, 2), expected, atol=1e-4 if scale > 100 else 1e-6)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_rows_sum_to_one(seed, scale, dtype):
    maps = make_maps(tokens(seed, 2, 12, 2, 8, scale), tokens(seed + 1, 2, 12, 2, 8).flatten(0, 1), dtype=dtype)
    rows = maps.rows(0, 2)
    assert rows.dtype == torch.float32
    assert rows.min() >= 0
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5 if dtype == torch.float32 else 4e-3)


def test_a_token_spool_gives_the_rows_that_memory_gives(tmp_path):
    queries = tokens(3, 5, 12, 2, 8).bfloat16()
    keys = queries[::2].flatten(0, 1)
    with Spool(tmp_path, row_shape=(12, 2, 8), dtype=np.uint16) as spool:
        spool.append(queries.view(torch.uint16).numpy())
        torch.testing.assert_close(make_maps(spool, keys).rows(1, 4), make_maps(queries, keys).rows(1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep_frames", [0, 1, 3, 9])
def test_rows_of_leading_frames_are_kept_rounded_where_they_fit(dtype, keep_frames):
    queries, keys = tokens(4, 4, 9, 2, 8), tokens(5, 2, 9, 2, 8).flatten(0, 1)
    maps = make_maps(queries, keys, dtype=dtype, keep_bytes=keep_frames * 9 * 18 * 2)
    assert maps.kept(0, 1) is None
    rows = [maps.rows(frame, frame + 1) for frame in range(4)]
    for frame in range(4):
        kept = maps.kept(frame, frame + 1)
        assert (kept is not None) == (frame < keep_frames)
        if kept is not None:
            torch.testing.assert_close(kept, rows[frame].bfloat16(), rtol=0, atol=0)
        torch.testing.assert_close(maps.rows(frame, frame + 1), rows[frame], rtol=0, atol=0)


def test_those_of_frames_computed_together_that_fit_are_kept():
    queries, keys = tokens(4, 4, 9, 2, 8), tokens(5, 2, 9, 2, 8).flatten(0, 1)
    maps = make_maps(queries, keys, keep_bytes=3 * 9 * 18 * 2)
    rows = maps.rows(0, 4)
    torch.testing.assert_close(maps.kept(0, 3), rows[:27].bfloat16(), rtol=0, atol=0)
    assert maps.kept(2, 4) is None


def test_frames_computed_out_of_order_are_not_kept():
    queries, keys = tokens(4, 4, 9, 2, 8), tokens(5, 2, 9, 2, 8).flatten(0, 1)
    maps = make_maps(queries, keys, keep_bytes=2**20)
    maps.rows(2, 3)
    maps.rows(0, 1)
    assert maps.kept(0, 1) is not None
    assert maps.kept(1, 3) is None


def test_single_rows_are_the_rows_of_their_frames():
    queries, keys = tokens(4, 4, 9, 2, 8), tokens(5, 2, 9, 2, 8).flatten(0, 1)
    maps = make_maps(queries, keys)
    chosen = torch.tensor([0, 5, 17])
    some = torch.empty(3, maps.key_tokens)
    maps.load(1, 3).fill_indexed(chosen, some)
    torch.testing.assert_close(some, maps.rows(1, 3)[chosen])


def test_shapes_that_do_not_fit_are_refused():
    queries, keys = tokens(8, 2, 6, 2, 4), tokens(9, 1, 6, 2, 4).flatten(0, 1)
    with pytest.raises(ValueError, match="heads and depth"):
        make_maps(queries, keys[:, :1])
    with pytest.raises(ValueError, match="whole frames"):
        make_maps(queries, keys[:5])
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        make_maps(queries, keys, dtype=torch.float16)
    with pytest.raises(ValueError, match="at least one frame"):
        make_maps(queries[:0], keys)
    with pytest.raises(IndexError, match="frames 1 to 3 of 2"):
        make_maps(queries, keys).rows(1, 3)
