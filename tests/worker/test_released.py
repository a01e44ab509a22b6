"""A checkpoint of the released code gives that code's numbers: features, attention, labels.

The yardstick is the transcription in `reference.py`: NumPy in float64, from full-size frames on.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worker import checkpoints, reference
from worker.loading import LoadedModel, load_model
from worker.weights import Preprocessing

FRAMES = Path(__file__).parents[3] / "shared/data/davis16-dev/JPEGImages/480p"
SIZE = (64, 136)  # no multiple of the frames' size, not square, and the class token's grid is 28x28


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    torch.save(checkpoints.released_checkpoint(), path)
    return path


@pytest.fixture(scope="module")
def state(checkpoint) -> dict[str, np.ndarray]:
    saved = torch.load(checkpoint, weights_only=True)["model_state_dict"]
    return {name: tensor.numpy() for name, tensor in saved.items()}


@pytest.fixture(scope="module")
def model(checkpoint) -> LoadedModel:
    return load_model(None, weights=checkpoint, device="cpu")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return checkpoints.moving_shapes(10, 118, 250)


def test_the_file_says_which_model_it_is_and_how_frames_are_prepared(model):
    assert (model.entry.name, model.dtype) == ("dino-vits8", "float32")
    assert model.backbone.preprocessing == Preprocessing(
        (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989), "dino"
    )
    assert (model.backbone.heads, model.backbone.head_dim) == (8, 48)


def test_tokens_queries_and_keys_are_those_of_the_released_code(model, state, frames):
    projections = model.backbone.project(torch.from_numpy(frames[:2]), size=SIZE)
    queries, keys = reference.released_queries_and_keys(frames[:2], state, SIZE)
    assert np.abs(queries).max() > 3, "the comparison is to be of numbers worth comparing"
    np.testing.assert_allclose(projections.queries.numpy(), queries, atol=1e-4)
    np.testing.assert_allclose(projections.keys.numpy(), keys, atol=1e-4)


def test_positions_at_the_trained_grid_are_taken_as_they_are(model, state):
    frames = checkpoints.moving_shapes(1, 224, 224)
    projections = model.backbone.project(torch.from_numpy(frames))
    queries, _ = reference.released_queries_and_keys(frames, state, (224, 224))
    np.testing.assert_allclose(projections.queries.numpy(), queries, atol=1e-4)
