"""The loss of `tiny`: least where attention is uniform over the group, and equal to its definition."""

import numpy as np
import torch

from worker.training.grouping import SIZE_POWER, group_shares, grouping_loss
from worker.training.samples import GROUPS


def labels() -> torch.Tensor:
    """Two views of 2x4 patches of 8 pixels: the left half is object 1, one patch is unknown."""
    labels = torch.zeros(1, 2, 16, 32, dtype=torch.uint8)
    labels[..., :16] = 1
    labels[:, 1, :8, :8] = 255
    return labels


def test_shares_are_computed_per_patch() -> None:
    shares = group_shares(labels(), 8)
    assert shares.shape == (1, 16, GROUPS)
    assert shares[0, 0].tolist() == [0.0, 1.0] + [0.0] * (GROUPS - 2)
    assert shares[0, 8].sum() == 0, "the group of the first patch of the second view is unknown"
    half = labels()
    half[..., 12:16] = 0
    assert group_shares(half, 8)[0, 1, :2].tolist() == [0.5, 0.5]


def loss_of(logit: float, whole: bool = True) -> float:
    """The loss for equal tokens within a group and opposite ones across groups, at logit `logit`."""
    shares = group_shares(labels(), 8)
    side = shares[..., 1] - shares[..., 0]
    queries = torch.stack([logit * side, torch.zeros_like(side)], -1)[:, :, None] * 2**0.5
    keys = torch.stack([side, torch.zeros_like(side)], -1)[:, :, None]
    return grouping_loss(queries, keys, shares, shares, torch.tensor([whole])).item()


def test_the_loss_falls_to_the_entropy_of_the_groups_as_attention_separates_them() -> None:
    values = [loss_of(logit) for logit in (-2, 0, 1, 10)]
    assert values == sorted(values, reverse=True)
    weights = np.array([8.0, 7.0]) ** SIZE_POWER
    np.testing.assert_allclose(values[-1], weights @ np.log([8, 7]) / weights.sum(), atol=1e-3)


def test_background_with_unlabelled_objects_only_has_to_attend_to_background() -> None:
    assert loss_of(10, whole=False) < loss_of(10, whole=True)
    weights = np.array([8.0, 7.0]) ** SIZE_POWER
    np.testing.assert_allclose(loss_of(10, whole=False), weights[1] * np.log(7) / weights.sum(), atol=1e-3)


def test_the_loss_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(5)
    queries, keys = torch.randn(2, 1, 16, 3, 4, generator=generator).unbind(0)
    shares = group_shares(labels(), 8)
    attention = np.zeros((16, 16))
    for head in range(3):
        logits = queries[0, :, head].numpy() @ keys[0, :, head].numpy().T / 2
        logits[:, 8] = -np.inf
        attention += np.exp(logits) / np.exp(logits).sum(1, keepdims=True) / 3
    total, weight = 0.0, 0.0
    for i in range(16):
        for g in (0, 1):
            members = [j for j in range(16) if shares[0, j, g] == 1]
            if i in members:
                total += len(members) ** (SIZE_POWER - 1) * -np.mean([np.log(attention[i, j]) for j in members])
                weight += len(members) ** (SIZE_POWER - 1)
    loss = grouping_loss(queries, keys, shares, shares, torch.tensor([True]))
    np.testing.assert_allclose(loss.item(), total / weight, rtol=1e-5)
