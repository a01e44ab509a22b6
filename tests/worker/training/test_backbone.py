"""Training `tiny`: the loss falls, resuming is exact, the file written loads as a model."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worker.models.backbone import Backbone, create_vit
from worker.models.weights import Preprocessing, load_into, read_weights
from worker.training.backbone import train_backbone
from worker.training.frame_store import FrameStore
from worker.training.grouping import group_shares, grouping_loss
from worker.training.pseudo_labels import PseudoLabels
from worker.training.run import TrainingRun, TrainingStopped
from worker.training.samples import Samples
from worker.training.vit import Schedule, VitTraining, initialize_from_image_statistics, project

OPTIONS = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}


@pytest.fixture
def pseudo_labels(store: FrameStore) -> PseudoLabels:
    labels = np.zeros((4, *store.frames.shape[1:3]), np.uint8)
    labels[:, 16:40, 32:64] = 1
    return PseudoLabels(np.array([0, 3, 7, 10]), labels, [])


class Interrupted(Exception):
    pass


def interrupt_at(last_step: int) -> Callable[[int, float], None]:
    def on_step(step: int, _loss: float) -> None:
        if step == last_step:
            raise Interrupted

    return on_step


def run(folder: Path, **options: Any) -> TrainingRun:
    return TrainingRun(folder, **{"workers": 0, "save_every": 3, **options})


def train(store: FrameStore, pseudo_labels: PseudoLabels, schedule: Schedule, run: TrainingRun, patch: int = 8) -> Path:
    training = VitTraining.begin(OPTIONS | {"patch_size": patch}, schedule, run, mixed=True)
    return train_backbone(training, store, pseudo_labels, run)


def test_training_resumes_exactly(store: FrameStore, pseudo_labels: PseudoLabels, tmp_path: Path) -> None:
    """Also where a step draws some of its query tokens at random: a sample has 1,024, a step takes 256."""
    schedule = Schedule(steps=6, batch=1, size=(64, 128), warm_up=2)
    whole = train(store, pseudo_labels, schedule, run(tmp_path / "whole"), patch=4)
    with pytest.raises(Interrupted):
        train(store, pseudo_labels, schedule, run(tmp_path / "parts", on_step=interrupt_at(5)), patch=4)
    resumed: list[int] = []
    rest = run(tmp_path / "parts", on_step=lambda step, _: resumed.append(step))
    parts = train(store, pseudo_labels, schedule, rest, patch=4)
    assert resumed == [4, 5, 6]
    expected, found = read_weights(whole).vit, read_weights(parts).vit
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_folder_with_another_schedule_is_refused(
    store: FrameStore, pseudo_labels: PseudoLabels, tmp_path: Path
) -> None:
    train(store, pseudo_labels, Schedule(steps=1, batch=1, size=(32, 64)), run(tmp_path))
    with pytest.raises(ValueError, match="another schedule"):
        train(store, pseudo_labels, Schedule(steps=7), run(tmp_path))


def test_thirty_steps_on_one_batch_bring_its_loss_down(store: FrameStore, pseudo_labels: PseudoLabels) -> None:
    samples = Samples(store, pseudo_labels, size=(32, 64), seed=900, count=4)
    frames, labels, whole = (torch.stack(part) for part in zip(*(samples[i] for i in range(4)), strict=True))
    torch.manual_seed(0)
    vit = create_vit("VisionTransformer", OPTIONS).train().requires_grad_(True)
    initialize_from_image_statistics(vit, 0)
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


def test_training_and_inference_compute_the_same_projections() -> None:
    torch.manual_seed(0)
    vit = create_vit("VisionTransformer", OPTIONS)
    initialize_from_image_statistics(vit, 0)
    frames = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8)
    queries, keys = project(vit, frames)
    backbone = Backbone(vit, preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    projections = backbone.project(frames)
    torch.testing.assert_close(queries, projections.queries)
    torch.testing.assert_close(keys, projections.keys)


def test_initial_attention_compares_patches_by_colour() -> None:
    vit = create_vit("VisionTransformer", OPTIONS)
    initialize_from_image_statistics(vit, 0)
    frames = torch.zeros(1, 32, 64, 3, dtype=torch.uint8)
    frames[:, :, 32:] = 200
    queries, keys = project(vit, frames)
    attention = torch.softmax(torch.einsum("bihd,bjhd->bhij", queries, keys) / 24**0.5, -1).mean(1)[0]
    halves = attention.reshape(4, 8, 4, 8)
    assert halves[:2, :, :2].sum() > halves[:2, :, 2:].sum()


def test_a_sample_depends_only_on_its_index(store: FrameStore, pseudo_labels: PseudoLabels) -> None:
    samples = Samples(store, pseudo_labels, size=(32, 64), seed=900, start=0, count=40)
    later = Samples(store, pseudo_labels, size=(32, 64), seed=900, start=20, count=20)
    np.testing.assert_array_equal(samples.sample(25).frames, later.sample(25).frames)
    assert torch.equal(samples[25][1], later[5][1])
    kinds = {samples.sample(number).is_ground_whole for number in range(20)}
    assert kinds == {True, False}


def test_weights_load_into_the_same_architecture(
    store: FrameStore, pseudo_labels: PseudoLabels, tmp_path: Path
) -> None:
    schedule = Schedule(steps=1, batch=1, size=(32, 64))
    weights = train(store, pseudo_labels, schedule, run(tmp_path))
    load_into(create_vit("VisionTransformer", OPTIONS), read_weights(weights).vit)


def test_sigterm_to_all_processes_of_a_run_saves_the_steps_done(
    store: FrameStore, pseudo_labels: PseudoLabels, tmp_path: Path
) -> None:
    def terminate_all(step: int, _loss: float) -> None:
        if step == 2:
            for child in multiprocessing.active_children():
                child.terminate()
            os.kill(os.getpid(), signal.SIGTERM)

    schedule = Schedule(steps=400, batch=1, size=(32, 64))
    with pytest.raises(TrainingStopped, match="step 2"):
        train(store, pseudo_labels, schedule, run(tmp_path, workers=1, on_step=terminate_all))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
