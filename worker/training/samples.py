"""Training samples of the backbone: pairs of frames with group labels, derived from an index alone.

Three kinds: generated scenes; generated and cut-out objects pasted onto real pairs of frames; real pairs with
pseudo-labels from motion. Sample i of a seed is always the same, so that training resumes exactly.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from worker.training.frame_store import FrameStore
from worker.training.pseudo_labels import UNKNOWN, PseudoLabels
from worker.training.scenes.scene import Scene, draw_scene

GROUPS = 16  # labels distinguished in one sample, background included
GENERATED, PASTED = 0.2, 0.5  # shares of the samples; the rest is real
FARTHEST = 8  # most labelled frames between the two of a real pair


@dataclass(frozen=True)
class Sample:
    """A pair of frames.

    Attributes:
        frames: RGB, uint8, shape (2, H, W, 3).
        labels: 0 background, objects from 1, 255 unknown; uint8, shape (2, H, W).
        is_ground_whole: Whether the background is one region; False where it holds unlabelled objects.
    """

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    is_ground_whole: bool


class Samples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Samples by index: frames (2, H, W, 3) uint8, labels (2, H, W) uint8, whether the background is whole.

    Args:
        store: Real frames.
        pseudo_labels: Labels and cut-outs of these frames.
        size: (H, W) of a sample in pixels, at most the store's.
        seed: Of all samples.
        start: Index of the first sample.
        count: Number of samples.
    """

    def __init__(
        self,
        store: FrameStore,
        pseudo_labels: PseudoLabels,
        *,
        size: tuple[int, int],
        seed: int,
        start: int = 0,
        count: int = 1,
    ) -> None:
        # Before sample processes are forked: a fork inherits OpenCV's thread pool without its threads and deadlocks.
        cv2.setNumThreads(1)
        self.store, self.pseudo_labels = store, pseudo_labels
        self.size, self.seed, self.start, self.count = size, seed, start, count
        clip_of = np.searchsorted(store.starts, pseudo_labels.frames, side="right")
        self.clips = [np.flatnonzero(clip_of == clip) for clip in np.unique(clip_of)]
        self.objects = np.array([int(label[label < UNKNOWN].max(initial=0)) for label in pseudo_labels.labels])
        self.with_objects = np.flatnonzero(self.objects)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        sample = self.sample(self.start + index)
        return torch.from_numpy(sample.frames), torch.from_numpy(sample.labels), torch.tensor(sample.is_ground_whole)

    def sample(self, number: int) -> Sample:
        rng = np.random.default_rng((self.seed, number))
        kind = rng.random()
        cutouts, photos = self.pseudo_labels.cutouts, self.store.frames
        if kind < GENERATED:
            scene = draw_scene(rng, size=self.size, cutouts=cutouts, photos=photos)
        elif kind < GENERATED + PASTED or not len(self.with_objects):
            pair = self._real_pair(rng)
            scene = draw_scene(rng, size=self.size, grounds=pair, cutouts=cutouts, photos=photos)
        else:
            frames, labels = self._real_pair(rng, with_objects=True)
            scene = Scene(frames, labels)
        frames, labels = scene.frames, scene.labels
        if rng.random() < 0.5:
            frames, labels = frames[:, :, ::-1], labels[:, :, ::-1]
        labels = np.where((labels >= GROUPS) & (labels < UNKNOWN), UNKNOWN, labels).astype(np.uint8)
        return Sample(np.ascontiguousarray(frames), labels, kind < GENERATED)

    def _real_pair(
        self, rng: np.random.Generator, *, with_objects: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The same crop of two frames of a clip, and their labels."""
        clip = self.clips[int(rng.integers(len(self.clips)))]
        first = int(rng.choice(self.with_objects if with_objects else clip))
        near = [i for i in range(first - FARTHEST, first + FARTHEST + 1) if 0 <= i < len(self.objects)]
        near = [i for i in near if self._clip(i) == self._clip(first)]
        second = int(rng.choice(near))
        if self.objects[first] > 1 or self.objects[second] > 1:
            second = first  # labels are numbered per frame: only a single object has the same label in both
        height, width = self.store.frames.shape[1:3]
        share = rng.uniform(0.6, 1.0)
        high, wide = int(share * height), int(share * width)
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        frames, labels = [], []
        gain, gamma = rng.uniform(0.8, 1.2, 3), rng.uniform(0.75, 1.35)
        for index, jitter in ((first, 0), (second, 4)):
            down = int(np.clip(top + rng.integers(-jitter, jitter + 1), 0, height - high))
            right = int(np.clip(left + rng.integers(-jitter, jitter + 1), 0, width - wide))
            part = slice(down, down + high), slice(right, right + wide)
            frame = cv2.resize(
                self.store.frames[self.pseudo_labels.frames[index]][part], self.size[::-1], interpolation=cv2.INTER_AREA
            )
            frames.append((255 * np.clip(frame / 255 * gain, 0, 1) ** gamma).astype(np.uint8))
            label_map = self.pseudo_labels.labels[index][part]
            labels.append(cv2.resize(label_map, self.size[::-1], interpolation=cv2.INTER_NEAREST))
        return np.stack(frames), np.stack(labels).astype(np.uint8)

    def _clip(self, index: int) -> int:
        return int(np.searchsorted(self.store.starts, self.pseudo_labels.frames[index], side="right"))
