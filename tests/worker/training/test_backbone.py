"""Training `tiny`: the loss falls, resuming is exact, what is written loads as a model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from worker.models.backbone import Backbone, create_vit
from worker.models.weights import Preprocessing, load_into, read_weights
from worker.training.backbone import Schedule, project, start_from_pictures, train_backbone
from worker.training.frame_store import Pack
from worker.training.grouping import group_shares, grouping_loss
from worker.training.pseudo_labels import Fate
from worker.training.samples import Samples

OPTIONS = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
SCHEDULE = Schedule(steps=6, batch=2, size=(32, 64), warm_up=2)


@pytest.fixture
def fate(pack: Pack) -> Fate:
    labels = np.zeros((4, *pack.frames.shape[1:3]), np.uint8)
    labels[:, 16:40, 32:64] = 1
    return Fate(np.array([0, 3, 7, 10]), labels, [])


def test_training_resumes_exactly(pack: Pack, fate: Fate, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(step: int, _loss: float) -> None:
        if step == 5:
            raise Stopped

    whole = train_backbone(pack, fate, OPTIONS, SCHEDULE, tmp_path / "whole", save_every=3, workers=0)
    with pytest.raises(Stopped):
        train_backbone(pack, fate, OPTIONS, SCHEDULE, tmp_path / "parts", save_every=3, workers=0, on_step=stop)
    parts = train_backbone(pack, fate, OPTIONS, SCHEDULE, tmp_path / "parts", save_every=3, workers=0)
    one, other = read_weights(whole).vit, read_weights(parts).vit
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ValueError, match="another schedule"):
        train_backbone(pack, fate, OPTIONS, Schedule(steps=7), tmp_path / "whole", workers=0)


def test_thirty_steps_on_one_batch_bring_its_loss_down(pack: Pack, fate: Fate) -> None:
    samples = Samples(pack, fate, size=(32, 64), seed=900, count=4)
    frames, labels, whole = (torch.stack(part) for part in zip(*(samples[i] for i in range(4)), strict=True))
    torch.manual_seed(0)
    vit = create_vit("VisionTransformer", OPTIONS).train().requires_grad_(True)
    start_from_pictures(vit, 0)
    optimizer = torch.optim.AdamW(vit.parameters(), lr=2e-3)
    shares = group_shares(labels, 8)
    losses = []
    for _ in range(30):
        queries, keys = (part.reshape(4, -1, *part.shape[2:]) for part in project(vit, frames.flatten(0, 1)))
        loss = grouping_loss(queries, keys, shares, shares, whole)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_what_is_trained_is_what_segments() -> None:
    torch.manual_seed(0)
    vit = create_vit("VisionTransformer", OPTIONS)
    start_from_pictures(vit, 0)
    frames = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8)
    queries, keys = project(vit, frames)
    backbone = Backbone(vit, preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    projections = backbone.project(frames)
    torch.testing.assert_close(queries, projections.queries)
    torch.testing.assert_close(keys, projections.keys)


def test_the_start_compares_patches_by_what_they_show() -> None:
    vit = create_vit("VisionTransformer", OPTIONS)
    start_from_pictures(vit, 0)
    frames = torch.zeros(1, 32, 64, 3, dtype=torch.uint8)
    frames[:, :, 32:] = 200
    queries, keys = project(vit, frames)
    attention = torch.softmax(torch.einsum("bihd,bjhd->bhij", queries, keys) / 24**0.5, -1).mean(1)[0]
    halves = attention.reshape(4, 8, 4, 8)
    assert halves[:2, :, :2].sum() > halves[:2, :, 2:].sum()


def test_samples_depend_on_their_number_alone(pack: Pack, fate: Fate) -> None:
    samples = Samples(pack, fate, size=(32, 64), seed=900, start=0, count=40)
    later = Samples(pack, fate, size=(32, 64), seed=900, start=20, count=20)
    np.testing.assert_array_equal(samples.sample(25).frames, later.sample(25).frames)
    assert torch.equal(samples[25][1], later[5][1])
    kinds = {samples.sample(number).is_ground_whole for number in range(20)}
    assert kinds == {True, False}


def test_weights_load_into_the_same_architecture(pack: Pack, fate: Fate, tmp_path: Path) -> None:
    made = train_backbone(pack, fate, OPTIONS, Schedule(steps=1, batch=1, size=(32, 64)), tmp_path, workers=0)
    load_into(create_vit("VisionTransformer", OPTIONS), read_weights(made).vit)
