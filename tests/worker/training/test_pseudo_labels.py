"""What moves is labelled, cut out, and comes back from its file."""

from pathlib import Path

import numpy as np

from tests.worker.method.test_motion import noise
from worker.training.frame_store import Pack
from worker.training.pseudo_labels import Fate, common_fate, read_fate, save_fate
from worker.training.scenes import CANVAS


def moving_square() -> Pack:
    frames = np.stack([noise(1, (96, 192)) // 2] * 7)
    for index in range(7):
        frames[index, 30:62, 60 + 4 * index : 92 + 4 * index] = noise(2, (32, 32)) // 2 + 120
    return Pack(np.array([0]), frames)


def test_a_moving_square_is_labelled_and_cut_out(tmp_path: Path) -> None:
    fate = common_fate(moving_square(), every=2)
    np.testing.assert_array_equal(fate.frames, [0, 2, 4, 6])
    found = fate.labels[1] == 1
    true = np.zeros((96, 192), bool)
    true[30:62, 68:100] = True
    assert (found & true).sum() / (found | true).sum() > 0.8
    assert fate.cutouts
    assert fate.cutouts[0].picture.shape == (CANVAS, CANVAS, 3)
    save_fate(fate, tmp_path / "fate.npz")
    again = read_fate(tmp_path / "fate.npz")
    np.testing.assert_array_equal(again.labels, fate.labels)
    np.testing.assert_array_equal(again.cutouts[0].alpha, fate.cutouts[0].alpha)


def test_where_nothing_moves_nothing_is_found(tmp_path: Path) -> None:
    still = Pack(np.array([0]), np.stack([noise(1, (96, 192))] * 5))
    fate = common_fate(still, every=2)
    assert not fate.labels.any()
    assert fate.cutouts == []
    save_fate(fate, tmp_path / "fate.npz")
    assert isinstance(read_fate(tmp_path / "fate.npz"), Fate)
