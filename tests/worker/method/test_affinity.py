"""Mean-centred keys by cosine: the logits equal the definition, and a common component has no influence."""

import numpy as np
import torch

from worker.method.affinity import CentredCosine


def keys(frames: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, 5, 2, 4, generator=torch.Generator().manual_seed(seed))


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


def test_a_component_common_to_all_keys_has_no_influence() -> None:
    frames = keys()
    shifted = frames + 100 * torch.randn(1, 1, 2, 4, generator=torch.Generator().manual_seed(1))
    found = [logits(*CentredCosine.fit(values.flatten(0, 1)).project(values)) for values in (frames, shifted)]
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)


def test_the_result_has_one_head_over_all_channels() -> None:
    queries, centred = CentredCosine(torch.zeros(8)).project(keys())
    assert queries.shape == centred.shape == (3, 5, 1, 8)
