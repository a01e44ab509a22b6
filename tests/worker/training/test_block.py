"""Training the paper's block: the loss falls, resuming is exact, the losses equal their formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worker.models.backbone import Backbone, create_vit
from worker.models.weights import Preprocessing, read_weights
from worker.training.block import (
    BlockSchedule,
    SpatioTemporalBlock,
    motion_consistency,
    semantic_consistency,
    train_block,
)
from worker.training.frame_store import FrameStore
from worker.training.run import TrainingRun

OPTIONS = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(1)
    vit = create_vit("VisionTransformer", OPTIONS)
    return Backbone(vit, preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def test_twenty_steps_bring_the_loss_down(store: FrameStore, backbone: Backbone, tmp_path: Path) -> None:
    losses: list[float] = []
    schedule = BlockSchedule(steps=20, batch=2, rate=1e-3)
    out = train_block(
        store, backbone, "tiny", schedule, TrainingRun(tmp_path, on_step=lambda _, loss: losses.append(loss))
    )
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    block = read_weights(out).block
    assert block is not None
    assert block.backbone == "tiny"
    assert block.qk.shape == (96, 48)
    rows = (tmp_path / "loss.csv").read_text().splitlines()
    assert rows[0] == "step,semantic,motion,seconds"
    assert len(rows) == 21


def test_training_resumes_exactly(store: FrameStore, backbone: Backbone, tmp_path: Path) -> None:
    schedule = BlockSchedule(steps=6, batch=1, rate=1e-3)
    whole = train_block(store, backbone, "tiny", schedule, TrainingRun(tmp_path / "whole"))
    train_block(store, backbone, "tiny", schedule, TrainingRun(tmp_path / "parts", stop_at=4))
    parts = train_block(store, backbone, "tiny", schedule, TrainingRun(tmp_path / "parts"))
    expected, found = read_weights(whole).block, read_weights(parts).block
    assert expected is not None
    assert found is not None
    assert torch.equal(expected.qk, found.qk)
    with pytest.raises(ValueError, match="another schedule"):
        train_block(store, backbone, "tiny", BlockSchedule(steps=7), TrainingRun(tmp_path / "whole"))


def test_too_short_clips_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    short = FrameStore(np.array([0]), np.zeros((4, 64, 128, 3), np.uint8))
    with pytest.raises(ValueError, match="5 frames"):
        train_block(short, backbone, "tiny", BlockSchedule(steps=1), TrainingRun(tmp_path))


def test_attention_spans_all_frames_and_dropout_leaves_the_returned_maps_unchanged() -> None:
    torch.manual_seed(2)
    block = SpatioTemporalBlock(16, 2)
    features, attention = block(torch.randn(1, 10, 16))
    assert features.shape == (1, 10, 16)
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 10))
    assert bool((attention > 0).all())


def test_semantic_consistency_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1, 2, 80, 5, generator=generator)
    queries = torch.tensor([4, 100])
    attention = torch.rand(1, 2, 2, 80, generator=generator)
    near, far = [], []
    for query, row in zip(queries, attention[0], strict=True):
        own = features.reshape(160, 5)[query]
        for frame in range(2):
            order = row[frame].argsort(descending=True).tolist()
            cosine = [F.cosine_similarity(own, features[0, frame, i], dim=0).item() for i in order]
            near += [max(0, 0.9 - value) for value in cosine[:30]]
            far += [max(0, value - 0.1) for value in cosine[40:]]  # of 80 tokens, no more than half are far
    loss = semantic_consistency(features, attention, queries)
    np.testing.assert_allclose(loss.item(), np.mean(near) + np.mean(far), rtol=1e-5)


def test_motion_consistency_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    attention = torch.softmax(3 * torch.randn(1, 240, 240, generator=generator), -1)
    queries = torch.tensor([7, 130])
    a = attention[0].double().numpy()
    entropies, margins = [], []
    for query in queries.tolist():
        first = 120 * (query // 120)
        order = first + np.argsort(-a[query, first : first + 120])
        crossed = [-(a[query] * np.log(a[i])).sum() for i in order]
        margins.append(max(0, 1 + np.mean(crossed[:10]) - np.mean(crossed[-50:])))
        entropies.append(-(a[query] * np.log(a[query])).sum())
    weight = np.exp(-np.array(entropies)) / np.exp(-np.array(entropies)).sum()
    loss = motion_consistency(attention, queries, frames=2)
    np.testing.assert_allclose(loss.item(), weight @ margins, rtol=1e-4)
