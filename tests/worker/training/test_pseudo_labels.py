"""Moving objects are labelled and cut out, and the file returns the same labels."""

from pathlib import Path

import numpy as np

from tests.worker.method.test_motion import noise
from worker.training.frame_store import FrameStore
from worker.training.pseudo_labels import PseudoLabels, label_moving_objects, read_pseudo_labels, save_pseudo_labels
from worker.training.scenes.sprites import CANVAS


def moving_square() -> FrameStore:
    frames = np.stack([noise(1, (96, 192)) // 2] * 7)
    for index in range(7):
        frames[index, 30:62, 60 + 4 * index : 92 + 4 * index] = noise(2, (32, 32)) // 2 + 120
    return FrameStore(np.array([0]), frames)


def test_a_moving_square_is_labelled_and_cut_out(tmp_path: Path) -> None:
    pseudo_labels = label_moving_objects(moving_square(), every=2)
    np.testing.assert_array_equal(pseudo_labels.frames, [0, 2, 4, 6])
    found = pseudo_labels.labels[1] == 1
    true = np.zeros((96, 192), bool)
    true[30:62, 68:100] = True
    assert (found & true).sum() / (found | true).sum() > 0.8
    assert pseudo_labels.cutouts
    assert pseudo_labels.cutouts[0].picture.shape == (CANVAS, CANVAS, 3)
    save_pseudo_labels(pseudo_labels, tmp_path / "pseudo_labels.npz")
    again = read_pseudo_labels(tmp_path / "pseudo_labels.npz")
    np.testing.assert_array_equal(again.labels, pseudo_labels.labels)
    np.testing.assert_array_equal(again.cutouts[0].alpha, pseudo_labels.cutouts[0].alpha)


def test_a_static_clip_yields_no_objects(tmp_path: Path) -> None:
    still = FrameStore(np.array([0]), np.stack([noise(1, (96, 192))] * 5))
    pseudo_labels = label_moving_objects(still, every=2)
    assert not pseudo_labels.labels.any()
    assert pseudo_labels.cutouts == []
    save_pseudo_labels(pseudo_labels, tmp_path / "pseudo_labels.npz")
    assert isinstance(read_pseudo_labels(tmp_path / "pseudo_labels.npz"), PseudoLabels)
