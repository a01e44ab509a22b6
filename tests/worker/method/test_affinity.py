"""Affinities of keys: the logits equal the definitions, and a common component has no influence."""

import numpy as np
import pytest
import torch

from tests.worker import reference
from worker.method.affinity import (
    KEY_AFFINITIES,
    MAX_LANDMARKS,
    SPECTRAL_CHANNELS,
    CentredCosine,
    KeyAffinity,
    SpectralEmbedding,
)


def keys(frames: int = 3, tokens: int = 5, seed: int = 0) -> torch.Tensor:
    """Keys of 2 heads of 4 channels."""
    return torch.randn(frames, tokens, 2, 4, generator=torch.Generator().manual_seed(seed))


def logits(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    depth = queries.shape[-1]
    return torch.einsum("ihd,jhd->ij", queries.flatten(0, 1), keys.flatten(0, 1)) / depth**0.5


def test_logits_are_the_scaled_cosine_of_centred_keys() -> None:
    frames = keys()
    rows = frames.reshape(15, 8).double().numpy()
    centred = rows - rows[:10].mean(0)  # the first two frames are key frames
    expected = np.empty((15, 15))
    for i in range(15):
        for j in range(15):
            lengths = np.linalg.norm(centred[i]) * np.linalg.norm(centred[j])
            expected[i, j] = 10 * centred[i] @ centred[j] / lengths
    found = logits(*CentredCosine.fit(frames[:2].flatten(0, 1)).project(frames))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [15, 60], ids=["all eigenvectors", "Lanczos"])
def test_logits_of_the_embedding_are_those_of_a_random_walk(tokens: int) -> None:
    frames = keys(tokens=tokens)
    rows = frames.reshape(3 * tokens, 8).double().numpy()
    embedding = reference.spectral_embedding(rows, rows[: 2 * tokens], channels=SPECTRAL_CHANNELS, scale=10)
    found = logits(*SpectralEmbedding.fit(frames[:2].flatten(0, 1)).project(frames))
    np.testing.assert_allclose(found.numpy(), 10 * embedding @ embedding.T, atol=1e-2)


def test_landmarks_are_key_tokens_at_equal_distances() -> None:
    frames = torch.randn(2 * MAX_LANDMARKS, 1, 3, generator=torch.Generator().manual_seed(2))
    embedding = SpectralEmbedding.fit(frames)
    torch.testing.assert_close(embedding.landmarks, embedding.cosine.directions(frames[::2]))


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_video_may_have_fewer_tokens_than_the_embedding_has_channels(tokens: int) -> None:
    frames = keys(frames=1, tokens=tokens)
    for part in SpectralEmbedding.fit(frames[0]).project(frames):
        assert part.shape == (1, tokens, 1, SPECTRAL_CHANNELS)
        assert part.isfinite().all()


@pytest.mark.parametrize("affinity", KEY_AFFINITIES.values())
def test_a_component_common_to_all_keys_has_no_influence(affinity: type[KeyAffinity]) -> None:
    frames = keys(tokens=20)
    shifted = frames + 100 * torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(1))
    found = [logits(*affinity.fit(values.flatten(0, 1)).project(values)) for values in (frames, shifted)]
    torch.testing.assert_close(found[0], found[1], atol=1e-2, rtol=1e-3)


def test_the_result_has_one_head_over_all_channels() -> None:
    queries, centred = CentredCosine(torch.zeros(8)).project(keys())
    assert queries.shape == centred.shape == (3, 5, 1, 8)
