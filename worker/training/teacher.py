"""What a distilled `tiny` learns from: crops of real frames and generated scenes, with a teacher's keys.

Images and keys are computed once and stored, since a teacher takes longer than a step of the student.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.models.backbone import Backbone
from worker.training.frame_store import FrameStore
from worker.training.scenes.scene import draw_scene
from worker.video.clip import PatchGrid

CROP = (0.5, 1.0)  # least and largest height of a crop, share of the largest crop that fits
ON_PHOTOS = 0.6  # share of the scenes before a real frame; the others are drawn before textures


@dataclass(frozen=True)
class TeacherSamples:
    """Images and the teacher's keys of their patches.

    Attributes:
        images: RGB at the student's resolution, uint8, shape (n, H, W, 3).
        keys: Keys of the teacher's last attention layer, float16, shape (n, h, w, D), on the student's patch grid.
    """

    images: NDArray[np.uint8]
    keys: NDArray[np.float16]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.keys.ndim != 4 or len(self.images) != len(self.keys):
            raise ValueError(f"expected (n, H, W, 3) and (n, h, w, D), got {self.images.shape} and {self.keys.shape}")


def read_teacher_samples(folder: Path) -> TeacherSamples | None:
    """Memory-map the samples that `make_teacher_samples` wrote to a folder; None where there are none."""
    images, keys = folder / "images.npy", folder / "keys.npy"
    if not (images.exists() and keys.exists()):
        return None
    return TeacherSamples(np.load(images, mmap_mode="r"), np.load(keys, mmap_mode="r"))


@dataclass(frozen=True)
class SamplePlan:
    """Which samples to make.

    Attributes:
        crops: Number of crops of real frames.
        scenes: Number of generated scenes.
        grid: The student's patch grid.
        patch: The student's patch side in pixels.
        seed: Of all samples.
    """

    crops: int
    scenes: int
    grid: PatchGrid
    patch: int
    seed: int = 0

    def size(self, patch: int) -> tuple[int, int]:
        """(H, W) in pixels at which a model with this patch side has the grid."""
        return self.grid.height * patch, self.grid.width * patch


def make_teacher_samples(
    store: FrameStore,
    teacher: Backbone,
    plan: SamplePlan,
    folder: Path,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _count: None,
) -> TeacherSamples:
    """Draw the images, compute the teacher's keys and write both to a folder.

    Args:
        store: Real frames.
        teacher: A frozen ViT without a block.
        plan: Number, grid and seed of the samples.
        folder: Receives `images.npy` and `keys.npy`.
        on_progress: Called with the number of samples done and of all samples.
    """
    count = plan.crops + plan.scenes
    parts = {name: folder / f"{name}.part" for name in ("images", "keys")}
    images = np.lib.format.open_memmap(parts["images"], "w+", np.uint8, (count, *plan.size(plan.patch), 3))
    shape = (count, plan.grid.height, plan.grid.width, teacher.dim)
    keys = np.lib.format.open_memmap(parts["keys"], "w+", np.float16, shape)
    size = plan.size(teacher.patch)
    batch = teacher.batch_size(size)
    for first in range(0, count, batch):
        numbers = range(first, min(first + batch, count))
        drawn = np.stack([_draw(store, plan, number, size) for number in numbers])
        projected = teacher.project(torch.from_numpy(drawn)).keys
        keys[numbers.start : numbers.stop] = projected.reshape(len(drawn), *shape[1:]).half().cpu().numpy()
        for number, image in zip(numbers, drawn, strict=True):
            small = cv2.resize(image, images.shape[2:0:-1], interpolation=cv2.INTER_AREA)
            images[number] = small
        on_progress(numbers.stop, count)
    for name, array in (("images", images), ("keys", keys)):
        array.flush()
        parts[name].replace(folder / f"{name}.npy")
    return TeacherSamples(images, keys)


def _draw(store: FrameStore, plan: SamplePlan, number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Image `number` of a plan: the crops come first, then the scenes; shape (H, W, 3)."""
    rng = np.random.default_rng((plan.seed, number))
    if number < plan.crops:
        return _crop(store, rng, size)
    ground = _crop(store, rng, size) if rng.random() < ON_PHOTOS else None
    grounds = None if ground is None else (ground[None], np.zeros((1, *size), np.uint8))
    scene = draw_scene(rng, frames=1, size=size, grounds=grounds, photos=store.frames)
    return np.asarray(scene.frames[0])


def _crop(store: FrameStore, rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A part of a random frame, in the aspect of (H, W) within a fifth, resized to it."""
    frame = store.frames[int(rng.integers(len(store.frames)))]
    height, width = frame.shape[:2]
    aspect = size[1] / size[0] * rng.uniform(0.8, 1.1)
    high = int(min(height, width / aspect) * rng.uniform(*CROP))
    wide = int(high * aspect)
    top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    way = cv2.INTER_AREA if high > size[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame[top : top + high, left : left + wide], size[::-1], interpolation=way), np.uint8)


@dataclass(frozen=True)
class KeyBasis:
    """Projection of a teacher's keys to the student's number of channels.

    Attributes:
        mean: Mean key, float32, shape (D,).
        directions: Orthonormal columns, float32, shape (D, d).
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def fit(cls, teacher: Tensor, student: Tensor) -> "KeyBasis":
        """Leading principal components of the teacher's keys, rotated to fit the student's keys best.

        The losses of distillation do not change when all targets are rotated; the rotation lets a student that was
        distilled before continue where it is.

        Source: Schönemann, "A Generalized Solution of the Orthogonal Procrustes Problem" (1966).

        Args:
            teacher: Keys of some tokens, shape (n, D).
            student: The student's keys of the same tokens, shape (n, d).

        Raises:
            ValueError: The teacher has fewer channels than the student.
        """
        if teacher.shape[1] < student.shape[1]:
            raise ValueError(f"the teacher has {teacher.shape[1]} channels, the student {student.shape[1]}")
        mean = teacher.mean(0)
        centred = teacher - mean
        leading = torch.linalg.eigh(centred.T @ centred)[1][:, -student.shape[1] :]
        left, _, right = torch.linalg.svd((centred @ leading).T @ (student - student.mean(0)))
        return cls(mean, leading @ left @ right)

    def project(self, keys: Tensor) -> Tensor:
        """Targets of the student, (..., D) to (..., d)."""
        return (keys - self.mean) @ self.directions
