"""A small frame store of synthetic frames for all tests of training; its seeds are not used in training."""

from pathlib import Path

import numpy as np
import pytest

from worker.training.frame_store import FrameStore, read_store, write_store
from worker.training.scenes.scene import draw_scene


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """Two clips of 7 and 6 frames of moving objects, 64x128."""
    path: Path = tmp_path_factory.mktemp("store") / "frames.store"
    clips = [
        draw_scene(np.random.default_rng(900_000 + count), frames=count, size=(64, 128), objects=2).frames
        for count in (7, 6)
    ]
    write_store(path, clips)
    return read_store(path)
