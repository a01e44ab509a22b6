"""MOTS PNG by its published rules: class and object are `divmod(value, 1000)`, 0 is background."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from service.export import mots
from tests.service.export.documents import a_document, a_manifest, videos
from uvos.errors import ResultNotFound


@given(videos)
@settings(deadline=None)
def test_images_hold_class_and_object_of_every_pixel(label_maps):
    data = mots.render(a_document(label_maps), a_manifest(label_maps, name="clip"))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("instances/labels.txt") == b"object\n"
        for index, label_map in enumerate(label_maps):
            image = Image.open(archive.open(f"instances/clip/{index:05d}.png"))
            assert image.mode == "I;16"
            classes, objects = np.divmod(np.asarray(image), 1000)
            np.testing.assert_array_equal(classes, label_map > 0)
            np.testing.assert_array_equal(objects, label_map)
        assert len(archive.namelist()) == len(label_maps) + 1


def test_the_highest_object_id_is_999():
    label_maps = np.full((1, 2, 2), 999, np.uint16)
    mots.render(a_document(label_maps), a_manifest(np.zeros_like(label_maps)))
    with pytest.raises(ResultNotFound, match="at most 999 objects, this level has 1000"):
        mots.render(a_document(label_maps + 1), a_manifest(np.zeros_like(label_maps)))
