"""A checkpoint of the released code gives that code's numbers: features, attention, labels.

Expected values come from the transcription in `reference.py`: NumPy in float64, from full-size frames on.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import linear_sum_assignment

from tests.worker import reference
from tests.worker.models import checkpoints
from tests.worker.numerics.backends import make_maps
from uvos.contract import Clustering
from uvos.models import MODELS
from worker.method.assignment import kl_to_centroids
from worker.method.attention import released_key_frames
from worker.method.windowed import windowed
from worker.models.loading import LoadedModel, load_model
from worker.models.weights import Preprocessing

TAUS = (1.0, 1.6)
FRAMES = Path(__file__).parents[4] / "shared/data/davis16-dev/JPEGImages/480p"
SIZE = (64, 136)  # no multiple of the frames' size, not square, and the class token's grid is 28x28


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    torch.save(checkpoints.released_checkpoint(), path)
    return path


@pytest.fixture(scope="module")
def state(checkpoint) -> dict[str, np.ndarray]:
    return released_state(checkpoint)


def released_state(checkpoint: Path) -> dict[str, np.ndarray]:
    saved = torch.load(checkpoint, weights_only=True)["model_state_dict"]
    return {name: tensor.numpy() for name, tensor in saved.items()}


def shallow(folder: Path, *, layers: int = 3, gain: float = 1.45) -> Path:
    """A checkpoint of few layers, for tests that do not depend on their number; more gain gives more clusters."""
    torch.save(checkpoints.released_checkpoint(layers=layers, gain=gain), folder / "shallow.pth")
    return folder / "shallow.pth"


def load_shallow(path: Path, *, layers: int = 3) -> LoadedModel:
    entry = MODELS["dino-vits8"].model_copy(update={"timm_options": {"depth": layers}})
    return load_model(entry, weights=path, device="cpu", clustering=Clustering.windowed)


@pytest.fixture(scope="module")
def model(checkpoint) -> LoadedModel:
    return load_model(None, weights=checkpoint, device="cpu")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return checkpoints.moving_shapes(2, 118, 250)


def test_the_checkpoint_determines_the_model_and_the_preprocessing(model):
    assert (model.entry.name, model.dtype) == ("dino-vits8", "float32")
    assert model.backbone.preprocessing == Preprocessing(
        (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989), "dino"
    )
    assert (model.backbone.heads, model.backbone.head_dim) == (8, 48)


def test_tokens_queries_and_keys_are_those_of_the_released_code(model, state, frames):
    projections = model.backbone.project(torch.from_numpy(frames), size=SIZE)
    queries, keys = reference.released_queries_and_keys(frames, state, SIZE)
    assert np.abs(queries).max() > 3, "the values are too small for the tolerance"
    np.testing.assert_allclose(projections.queries.numpy(), queries, atol=1e-4)
    np.testing.assert_allclose(projections.keys.numpy(), keys, atol=1e-4)


def test_positions_at_the_trained_grid_are_taken_as_they_are(tmp_path):
    path = shallow(tmp_path, layers=1)
    frames = checkpoints.moving_shapes(1, 224, 224)
    queries, _ = reference.released_queries_and_keys(frames, released_state(path), (224, 224))
    projections = load_shallow(path, layers=1).backbone.project(torch.from_numpy(frames))
    np.testing.assert_allclose(projections.queries.numpy(), queries, atol=1e-4)


def test_large_frames_are_resized_in_float64(tmp_path):
    frames = checkpoints.moving_shapes(1, 480, 854)
    pixels = load_shallow(shallow(tmp_path, layers=1), layers=1).backbone._pixels(torch.from_numpy(frames), SIZE)
    resized = reference.bilinear(frames[0], SIZE) / 255
    expected = (resized - reference.RELEASED_MEAN) / reference.RELEASED_STD
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("frame_count", "key_ratio", "expected"),
    [(16, 0.1, [0]), (25, 0.1, [0, 10]), (12, 0.2, [0, 5]), (7, 0.3, [0, 3]), (3, 1.0, [0, 1, 2]), (4, 0.1, [0])],
)
def test_key_frames_are_evenly_spaced_and_at_least_one(frame_count, key_ratio, expected):
    assert released_key_frames(frame_count, key_ratio) == expected


@given(st.integers(1, 500), st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.5, 1.0]))
def test_key_frames_are_those_of_the_released_code_where_it_has_any(frame_count, key_ratio):
    step = round(1 / key_ratio)
    if frame_count >= step:
        assert released_key_frames(frame_count, key_ratio) == list(np.arange(frame_count // step) * step)


def test_label_maps_are_those_of_the_released_code(tmp_path):
    assert_same_labels(shallow(tmp_path), checkpoints.moving_shapes(12, 118, 250), SIZE)


@pytest.mark.data
@pytest.mark.skipif(not FRAMES.is_dir(), reason="needs ../shared/data")
def test_label_maps_of_real_frames_are_those_of_the_released_code(tmp_path):
    files = sorted((FRAMES / "elephant").glob("*.jpg"))[:10]
    frames = np.stack([np.asarray(Image.open(file)) for file in files])
    assert_same_labels(shallow(tmp_path, gain=1.25), frames, (64, 112))


def assert_same_labels(checkpoint: Path, frames: np.ndarray, size: tuple[int, int]) -> None:
    """At least 99.5 % of tokens have the same label after matching, at the paper's thresholds and two key ratios."""
    ours = load_shallow(checkpoint).backbone.project(torch.from_numpy(frames), size=size)
    theirs = reference.released_queries_and_keys(frames, released_state(checkpoint), size)
    for key_ratio in (0.1, 0.2):
        key_frames = released_key_frames(len(frames), key_ratio)
        maps = make_maps(ours.queries, ours.keys[key_frames].flatten(0, 1))
        levels = windowed(maps, TAUS)
        parts = [[level.argmin(-1).flatten() for level in parts] for _, _, parts in kl_to_centroids(maps, levels)]
        queries, keys = (array.reshape(-1, 8, 48) for array in (theirs[0], theirs[1][key_frames]))
        rows = reference.released_attention(queries, keys)
        np.testing.assert_allclose(maps.rows(0, len(frames)).numpy(), rows, atol=1e-4)
        for tau, labels in zip(TAUS, map(torch.cat, zip(*parts, strict=True)), strict=True):
            expected = reference.released_clusters(rows, tau, tokens_per_frame=rows.shape[0] // len(frames))
            assert 5 <= len(np.unique(expected)) <= 200, (
                "too few or too many clusters for the comparison to mean anything"
            )
            assert agreement(labels.numpy(), expected) >= 0.995


def agreement(ours, theirs) -> float:
    """Share of tokens with the same label, ids matched one to one as well as can be."""
    counts = np.zeros((ours.max() + 1, theirs.max() + 1), int)
    np.add.at(counts, (ours, theirs), 1)
    return counts[linear_sum_assignment(counts, maximize=True)].sum() / len(ours)
