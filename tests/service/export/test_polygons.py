"""Polygons of masks, rasterized by pycocotools (vertices at pixel corners) and OpenCV (vertices at pixel centres)."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco

from service.export.polygons import boundaries, outline, pixel_outline

masks = (
    st.tuples(st.integers(1, 12), st.integers(1, 12))
    .flatmap(lambda shape: npst.arrays(bool, shape))
    .filter(lambda mask: mask.any())
)


def filled(mask: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    return cv2.fillPoly(np.zeros(mask.shape, np.uint8), [polygon.astype(np.int32)], 1).astype(bool)


def disc(size: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size // 2
    return rows**2 + columns**2 <= radius**2


@given(masks)
@settings(deadline=None)
def test_an_outline_encloses_exactly_the_mask(mask):
    polygon = outline(mask)
    x, y = polygon.T
    assert (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2 == mask.sum()
    (encoded,) = coco.frPyObjects([polygon.ravel().astype(float).tolist()], *mask.shape)
    np.testing.assert_array_equal(coco.decode(encoded).astype(bool), mask)


@given(masks)
@settings(deadline=None)
def test_boundaries_are_closed_paths_of_alternately_horizontal_and_vertical_edges(mask):
    for path in boundaries(mask):
        edges = np.roll(path, -1, axis=0) - path
        assert (edges[::2, 1] == 0).all()
        assert (edges[1::2, 0] == 0).all()
        assert (edges != 0).any(1).all()


@given(masks)
@settings(deadline=None)
def test_a_pixel_outline_lies_on_the_mask_and_covers_it(mask):
    polygon = pixel_outline(mask)
    assert mask[polygon[:, 1], polygon[:, 0]].all()
    assert filled(mask, polygon)[mask].all()


@pytest.mark.parametrize("radius", [0, 1, 7, 20])
def test_a_pixel_outline_of_one_part_is_exact(radius):
    mask = disc(48, radius)
    np.testing.assert_array_equal(filled(mask, pixel_outline(mask)), mask)


def test_a_hole_stays_a_hole():
    mask = disc(48, 20) & ~disc(48, 8)
    assert len(boundaries(mask)) == 2
    np.testing.assert_array_equal(filled(mask, pixel_outline(mask)), mask)


def test_the_bridge_between_two_parts_is_one_pixel_wide():
    mask = np.zeros((20, 40), bool)
    mask[4:12, 2:10] = mask[6:16, 25:35] = True
    bridge = filled(mask, pixel_outline(mask)) & ~mask
    assert bridge.any()
    assert (bridge.sum(0) <= 1).all()
    assert np.flatnonzero(bridge.any(0)).tolist() == list(range(10, 25))


def test_an_empty_mask_has_no_outline():
    with pytest.raises(ValueError, match="the mask is empty"):
        outline(np.zeros((3, 3), bool))
