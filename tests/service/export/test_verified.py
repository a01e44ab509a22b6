"""The exports are still those that the importers of Datumaro, FiftyOne and Label Studio have read.

These tools do not co-install with the project, so they read the exports of a fixed result once (`make importers`), and
this suite compares today's exports with those.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.service.export.example import VERIFIED, exports

FILES = sorted(str(path.relative_to(VERIFIED)) for path in VERIFIED.rglob("*") if path.is_file())


def test_every_export_is_verified() -> None:
    assert sorted(exports()) == FILES


@pytest.mark.parametrize("path", FILES)
def test_an_export_equals_the_one_that_the_importers_read(path: str) -> None:
    verified, current = (VERIFIED / path).read_bytes(), exports()[path]
    if Path(path).suffix == ".png":  # the compressed bytes depend on the version of zlib
        np.testing.assert_array_equal(Image.open(io.BytesIO(current)), Image.open(io.BytesIO(verified)))
    else:
        assert current == verified, "run `make importers`: it reads the new exports, then replaces the verified ones"
