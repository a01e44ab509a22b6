"""Distilling `tiny`: the loss falls, resuming is exact, SIGTERM saves, the losses equal their formulas."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.models.backbone import Backbone, create_vit
from worker.models.weights import Preprocessing, read_weights
from worker.training.distillation import distil, key_regression, relation_divergence
from worker.training.frame_store import FrameStore
from worker.training.run import TrainingRun, TrainingStopped
from worker.training.teacher import (
    KeyBasis,
    SamplePlan,
    TeacherSamples,
    make_teacher_samples,
    read_teacher_samples,
)
from worker.training.vit import Schedule, VitTraining
from worker.video.clip import PatchGrid

STUDENT = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
PLAN = SamplePlan(crops=4, scenes=4, grid=PatchGrid(4, 8), patch=8)


@pytest.fixture(scope="module")
def teacher() -> Backbone:
    torch.manual_seed(1)
    options = {"img_size": 64, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 2}
    vit = create_vit("VisionTransformer", options)
    return Backbone(vit, preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def samples(store: FrameStore, teacher: Backbone, tmp_path_factory: pytest.TempPathFactory) -> TeacherSamples:
    return make_teacher_samples(store, teacher, PLAN, tmp_path_factory.mktemp("samples"))


def train(samples: TeacherSamples, schedule: Schedule, run: TrainingRun) -> Path:
    return distil(VitTraining.begin(STUDENT, schedule, run), samples, run)


def test_samples_hold_the_teachers_keys_of_the_images(store: FrameStore, tmp_path: Path) -> None:
    assert read_teacher_samples(tmp_path) is None
    torch.manual_seed(2)
    same_patch = Backbone(
        create_vit("VisionTransformer", STUDENT), preprocessing=Preprocessing((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    )
    progress: list[tuple[int, int]] = []
    made = make_teacher_samples(
        store, same_patch, PLAN, tmp_path, on_progress=lambda done, count: progress.append((done, count))
    )
    assert progress[-1] == (8, 8)
    again = read_teacher_samples(tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again.images, made.images)
    keys = same_patch.project(torch.from_numpy(np.array(again.images))).keys.reshape(8, 4, 8, 24)
    np.testing.assert_allclose(again.keys, keys.numpy(), atol=2e-3)
    assert len({image.tobytes() for image in made.images}) == 8


def test_a_teacher_with_larger_patches_has_the_students_grid(samples: TeacherSamples) -> None:
    assert samples.images.shape == (8, 32, 64, 3)
    assert samples.keys.shape == (8, 4, 8, 48)


def test_thirty_steps_bring_the_loss_down(samples: TeacherSamples, tmp_path: Path) -> None:
    losses: list[float] = []
    run = TrainingRun(tmp_path, on_step=lambda _, loss: losses.append(loss))
    train(samples, Schedule(steps=30, batch=4, rate=3e-3, warm_up=5), run)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    assert len((tmp_path / "loss.csv").read_text().splitlines()) == 31


def test_a_run_stopped_by_sigterm_resumes_exactly(samples: TeacherSamples, tmp_path: Path) -> None:
    def terminate(step: int, _loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    schedule = Schedule(steps=5, batch=2, warm_up=2)
    whole = train(samples, schedule, TrainingRun(tmp_path / "whole"))
    with pytest.raises(TrainingStopped, match="step 3"):
        train(samples, schedule, TrainingRun(tmp_path / "parts", on_step=terminate))
    resumed: list[int] = []
    parts = train(samples, schedule, TrainingRun(tmp_path / "parts", on_step=lambda step, _: resumed.append(step)))
    assert resumed == [4, 5]
    expected, found = read_weights(whole).vit, read_weights(parts).vit
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_basis_finds_the_students_own_rotation_of_the_teachers_components() -> None:
    generator = torch.Generator().manual_seed(5)
    keys = torch.randn(500, 12, generator=generator) * torch.arange(1, 13) + 3
    student = keys[:, 6:] @ torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    targets = KeyBasis.fit(keys, student).project(keys)
    cosine = torch.nn.functional.cosine_similarity(targets, student - student.mean(0), dim=-1)
    assert float(cosine.min()) > 0.9
    with pytest.raises(ValueError, match="12 channels, the student 16"):
        KeyBasis.fit(keys, torch.zeros(500, 16))


def test_the_losses_equal_their_formulas() -> None:
    generator = torch.Generator().manual_seed(6)
    student, teacher = torch.randn(2, 2, 9, 5, generator=generator)
    rows = torch.tensor([2, 7])
    regression, divergence = [], []
    for own, target in zip(student.double().numpy(), teacher.double().numpy(), strict=True):
        cosines = []
        for keys in (own, target):
            centred = keys - keys.mean(0)
            unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
            cosines.append(unit @ unit.T)
        for i in range(9):
            a, b = own[i] - own.mean(0), target[i] - target.mean(0)
            plain = own[i] @ target[i] / np.linalg.norm(own[i]) / np.linalg.norm(target[i])
            regression.append(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) + 0.3 * (1 - plain))
        for i in rows.tolist():
            p, q = (np.exp(12 * cosine[i]) / np.exp(12 * cosine[i]).sum() for cosine in reversed(cosines))
            divergence.append(sum(p[j] * math.log(p[j] / q[j]) for j in range(9)))
    np.testing.assert_allclose(key_regression(student, teacher).item(), np.mean(regression), rtol=1e-5)
    np.testing.assert_allclose(relation_divergence(student, teacher, rows).item(), np.mean(divergence), rtol=1e-5)
