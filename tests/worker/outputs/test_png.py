"""PNG masks store object ids with the colours of the VOC palette."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from uvos.palette import color, object_colors, palette
from worker.outputs.png import write_png


def test_the_palette_equals_the_voc_palette():
    assert [tuple(rgb) for rgb in palette()[:9].tolist()] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
    ]
    assert palette()[255].tolist() == [224, 224, 192]


def test_colours_are_unique():
    assert len(np.unique(palette(2000), axis=0)) == 2000
    assert len(np.unique(object_colors(200), axis=0)) == 200


def test_the_colour_of_an_object_is_that_of_overlays():
    assert color(1) == "#ff5d5d"
    assert [color(label) for label in (3, 40)] == ["#{:02x}{:02x}{:02x}".format(*object_colors(41)[i]) for i in (3, 40)]


@given(label_map=npst.arrays(np.uint16, npst.array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 255)))
@settings(deadline=None)
def test_a_png_restores_its_label_map(tmp_path_factory, label_map):
    path = tmp_path_factory.mktemp("png") / "00000.png"
    write_png(path, label_map)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array(image.getpalette("RGB")).reshape(-1, 3)[:256].tolist() == palette().tolist()
        np.testing.assert_array_equal(np.array(image), label_map)


@pytest.mark.parametrize("objects", [None, 300])
def test_more_than_255_objects_are_16_bit_grey(tmp_path, objects):
    label_map = np.arange(60, dtype=np.uint16).reshape(6, 10) + (240 if objects is None else 0)
    write_png(tmp_path / "0.png", label_map, objects=objects)
    with Image.open(tmp_path / "0.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.array(image), label_map)
