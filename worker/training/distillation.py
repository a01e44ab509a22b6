"""Distil `tiny` from a larger ViT: its keys, and which of its tokens are similar.

The affinities `keys` and `spectral` compare the keys of the last layer, so these are what the student reproduces.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from worker.training.run import SaveClock, TrainingRun
from worker.training.teacher import KeyBasis, TeacherSamples
from worker.training.vit import Loss, VitTraining, project

COSINE_SCALE = 12.0  # of the relations; a little above that of the affinities, so that near tokens count more
PLAIN_SHARE = 0.3  # weight of the cosine of keys that are not centred
ROWS = 192  # tokens of an image whose relations to all its tokens are compared in a step
BASIS_IMAGES = 128  # from which the basis of the targets is computed


def key_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Token distillation: 1 - cosine of the keys minus their image's mean, plus 0.3 times that of the keys themselves.

    Args:
        student: Keys, shape (B, N, d).
        teacher: Targets, same shape.

    Returns:
        A scalar, the mean over tokens.
    """
    centred = 1 - F.cosine_similarity(_centred(student), _centred(teacher), dim=-1)
    plain = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return centred.mean() + PLAIN_SHARE * plain.mean()


def relation_divergence(student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
    """Affinity distillation: KL divergence of each token's similarities to the tokens of its image.

    With c the cosine of centred keys, the similarities of token i are softmax_j(12 c_ij).

    Args:
        student: Keys, shape (B, N, d).
        teacher: Targets, same shape.
        rows: Tokens i to compare, shape (R,).

    Returns:
        KL(teacher, student) in nats, a scalar, the mean over tokens.
    """
    logs = []
    for keys in (student, teacher):
        unit = F.normalize(_centred(keys), dim=-1)
        logs.append((COSINE_SCALE * unit[:, rows] @ unit.transpose(1, 2)).log_softmax(-1))
    return F.kl_div(logs[0], logs[1], log_target=True, reduction="sum") / logs[0].shape[:2].numel()


def distil(training: VitTraining, samples: TeacherSamples, run: TrainingRun) -> Path:
    """Train to the end of the schedule.

    Args:
        training: A new or resumed run.
        samples: Images and the teacher's keys, on the student's grid.
        run: Where and when to save; the folder also receives `basis.pt`.

    Returns:
        The weights' file: the running mean, float16.

    Raises:
        ValueError: The teacher has fewer channels than the student.
        TrainingStopped: SIGTERM ended the run; the state was saved.
    """
    clock = SaveClock(run, training.schedule.steps)
    return training.finish(_losses(training, samples, _basis(training, samples, run.folder)), run, clock)


def _basis(training: VitTraining, samples: TeacherSamples, folder: Path) -> KeyBasis:
    """The basis of a run: fitted to the initial student, read again when the run resumes."""
    path = folder / "basis.pt"
    if training.step == 0:
        numbers = np.unique(np.linspace(0, len(samples.images) - 1, BASIS_IMAGES).astype(int))
        student, teacher = [], []
        with torch.no_grad():
            for number in numbers:
                frames = torch.from_numpy(np.array(samples.images[number : number + 1])).to(training.device)
                student.append(project(training.vit, frames)[1].flatten(2)[0].float().cpu())
                teacher.append(torch.from_numpy(samples.keys[number].astype(np.float32)).flatten(0, 1))
        basis = KeyBasis.fit(torch.cat(teacher), torch.cat(student))
        torch.save({"mean": basis.mean, "directions": basis.directions}, path)
    state = torch.load(path, weights_only=True)
    return KeyBasis(state["mean"], state["directions"])


def _losses(training: VitTraining, samples: TeacherSamples, basis: KeyBasis) -> Iterator[Loss]:
    schedule = training.schedule
    while training.step < schedule.steps:
        # All random numbers of a step derive from its number, so that resuming is exact.
        rng = np.random.default_rng((schedule.seed, training.step))
        numbers = rng.integers(len(samples.images), size=schedule.batch)
        images = np.stack([_jittered(samples.images[number], rng) for number in numbers])
        keys = samples.keys[numbers].astype(np.float32)
        if rng.random() < 0.5:
            images, keys = images[:, :, ::-1], keys[:, :, ::-1]
        targets = basis.project(torch.from_numpy(np.ascontiguousarray(keys)).flatten(1, 2))
        yield partial(
            _loss,
            images=torch.from_numpy(np.ascontiguousarray(images)).to(training.device),
            targets=targets.to(training.device),
            rows=torch.from_numpy(rng.permutation(targets.shape[1])[:ROWS]).to(training.device),
        )


def _loss(vit: Any, *, images: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    keys = project(vit, images)[1].flatten(2).float()
    with torch.autocast(keys.device.type, enabled=False):
        return key_regression(keys, targets) + relation_divergence(keys, targets, rows)


def _centred(keys: Tensor) -> Tensor:
    return keys - keys.mean(1, keepdim=True)


def _jittered(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random brightness, colour and gamma; sometimes grey, sometimes blurred; shape (H, W, 3)."""
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, 3)
    pixels = np.clip(image.astype(np.float32) / 255 * gain, 0, 1) ** rng.uniform(0.7, 1.4)
    if rng.random() < 0.2:
        pixels = np.broadcast_to(pixels.mean(-1, keepdims=True), pixels.shape)
    if rng.random() < 0.2:
        pixels = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), rng.uniform(0.4, 1.2))
    return (255 * pixels).astype(np.uint8)
