"""Small packs of generated frames, for all tests of training; their seeds are no training's."""

from pathlib import Path

import numpy as np
import pytest

from worker.training.frame_store import Pack, read_pack, write_pack
from worker.training.scenes import draw_scene


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Two clips of 7 and 6 frames of moving objects, 64x128."""
    path: Path = tmp_path_factory.mktemp("pack") / "frames.pack"
    clips = [
        draw_scene(np.random.default_rng(900_000 + count), frames=count, size=(64, 128), objects=2).frames
        for count in (7, 6)
    ]
    write_pack(path, clips)
    return read_pack(path)
