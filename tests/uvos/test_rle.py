"""Decoding restores the masks that pycocotools encoded."""

import numpy as np
import pytest
import supervision
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.service.export.documents import a_document, pycocotools_counts, videos
from uvos import rle
from uvos.contract import RleMask


@given(npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, max_side=40)))
@settings(deadline=None)
def test_masks_are_restored(mask):
    np.testing.assert_array_equal(rle.mask(RleMask(size=mask.shape, counts=pycocotools_counts(mask))), mask)


@pytest.mark.parametrize("size", [(1, 1), (480, 854), (1, 70_000), (70_000, 1)])
def test_long_runs_are_restored(size):
    rng = np.random.default_rng(0)
    for filled in (0, 1, 0.001, 0.5, 0.999):
        mask = rng.random(size) < filled
        lengths = rle.runs(pycocotools_counts(mask))
        assert lengths.sum() == mask.size
        np.testing.assert_array_equal(rle.mask(RleMask(size=size, counts=pycocotools_counts(mask))), mask)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_run_lengths_are_restored(lengths):
    mask = (np.arange(len(lengths)) % 2 == 1).repeat(np.array(lengths) % 5000 + 1)
    restored = rle.runs(pycocotools_counts(mask[:, None]))
    assert restored.tolist() == (np.array(lengths) % 5000 + 1).tolist()


@given(videos)
@settings(deadline=None)
def test_label_maps_are_restored(label_maps):
    document = a_document(label_maps)
    for frame, label_map in zip(document.frames, label_maps, strict=True):
        np.testing.assert_array_equal(rle.label_map(frame, document.size), label_map)


def test_supervision_decodes_the_same_masks():
    mask = np.random.default_rng(0).random((48, 64)) < 0.5
    counts = pycocotools_counts(mask)
    np.testing.assert_array_equal(supervision.rle_to_mask(counts, (64, 48)), mask)
    np.testing.assert_array_equal(rle.mask(RleMask(size=mask.shape, counts=counts)), mask)


def test_empty_counts_have_no_runs():
    assert rle.runs("").tolist() == []
