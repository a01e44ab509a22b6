"""Pseudo-labels from motion: objects that move independently of the camera, as masks and as cut-outs.

The motion energy of `worker/method/motion.py` marks moving patches; GrabCut (Rother et al. 2004), initialized with
them, finds the outline by colour. Pixels where the two disagree are marked unknown and carry no loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from worker.method.motion import motion_energy
from worker.training.frame_store import FrameStore
from worker.training.scenes.sprites import CANVAS, Cutout
from worker.video.clip import PatchGrid

PATCH = 8
MOVES, RESTS = 0.6, 0.2  # energy above which a patch counts as moving, below which as static
LEAST_SHARE, MOST_SHARE = 0.004, 0.3  # of the frame: smaller regions are noise, larger ones are background
AGREEMENT = 0.55  # intersection over union of moving patches and GrabCut's outline
UNKNOWN = 255


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of some frames of a store.

    Attributes:
        frames: Frame indices in the store, ascending, int64, shape (n,).
        labels: 0 background, moving objects from 1, 255 unknown; uint8, shape (n, H, W).
        cutouts: The moving objects, cut out.
    """

    frames: NDArray[np.int64]
    labels: NDArray[np.uint8]
    cutouts: list[Cutout]


def save_pseudo_labels(pseudo_labels: PseudoLabels, path: Path) -> None:
    """Write labels and cut-outs to one compressed file."""
    pictures, alphas = np.zeros((0, CANVAS, CANVAS, 3), np.uint8), np.zeros((0, CANVAS, CANVAS), np.uint8)
    if pseudo_labels.cutouts:
        pictures = np.stack([cutout.picture for cutout in pseudo_labels.cutouts])
        alphas = np.stack([cutout.alpha for cutout in pseudo_labels.cutouts])
    with path.open("wb") as file:
        np.savez_compressed(
            file, frames=pseudo_labels.frames, labels=pseudo_labels.labels, pictures=pictures, alphas=alphas
        )


def read_pseudo_labels(path: Path) -> PseudoLabels:
    """Read a file written by `save_pseudo_labels`."""
    with np.load(path) as file:
        cutouts = [Cutout(picture, alpha) for picture, alpha in zip(file["pictures"], file["alphas"], strict=True)]
        return PseudoLabels(file["frames"], file["labels"], cutouts)


def label_moving_objects(
    store: FrameStore, *, every: int = 4, on_progress: Callable[[int, int], None] | None = None
) -> PseudoLabels:
    """Label the moving objects in every n-th frame of each clip.

    Args:
        store: Frames whose sides are multiples of 8 pixels.
        every: Distance between two labelled frames.
        on_progress: Called with the number of clips done and of all clips.
    """
    height, width = store.frames.shape[1:3]
    grid = PatchGrid(height // PATCH, width // PATCH)
    chosen, labels, cutouts = [], [], []
    for done, clip in enumerate(store.clips):
        if len(clip) > 4:
            energy = motion_energy(store.frames[clip.start : clip.stop], grid)
            for offset in range(0, len(clip), every):
                frame = np.ascontiguousarray(store.frames[clip.start + offset])
                label = _outline(frame, energy[offset])
                chosen.append(clip.start + offset)
                labels.append(label)
                cutouts += _cut_out(frame, label)
        if on_progress is not None:
            on_progress(done + 1, len(store.clips))
    return PseudoLabels(np.array(chosen, np.int64), np.stack(labels), cutouts)


def _outline(frame: NDArray[np.uint8], energy: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One label for each connected moving region, refined by GrabCut on the frame."""
    smooth = cv2.resize(energy, frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    label = np.where(smooth > RESTS, UNKNOWN, 0).astype(np.uint8)
    moving = smooth > MOVES
    if moving.mean() < LEAST_SHARE:
        return label
    seeds = np.where(smooth > RESTS, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
    seeds[smooth > 0.4] = cv2.GC_PR_FGD
    seeds[cv2.erode((smooth > 0.8).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0] = cv2.GC_FGD
    if not (seeds == cv2.GC_FGD).any():
        return label
    cv2.setRNGSeed(0)
    cv2.grabCut(frame, seeds, None, np.zeros((1, 65)), np.zeros((1, 65)), 2, cv2.GC_INIT_WITH_MASK)
    outline = ((seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)).astype(np.uint8)
    count, parts = cv2.connectedComponents(outline)
    count_kept = 0
    for part in range(1, count):
        inside = parts == part
        around = cv2.dilate(inside.astype(np.uint8), np.ones((17, 17), np.uint8)) > 0
        near = around & (smooth > 0.5)
        overlap = (inside & near).sum() / max(1, (inside | near).sum())
        if overlap > AGREEMENT and LEAST_SHARE < inside.mean() < MOST_SHARE:
            count_kept += 1
            label[inside] = count_kept
    return label


def _cut_out(frame: NDArray[np.uint8], label: NDArray[np.uint8]) -> list[Cutout]:
    cutouts = []
    for number in range(1, int(label[label < UNKNOWN].max(initial=0)) + 1):
        inside = (label == number).astype(np.uint8)
        left, top, width, height = cv2.boundingRect(inside)
        side = max(width, height)
        whole = min(left, top, frame.shape[1] - left - width, frame.shape[0] - top - height) > 1
        if side < 24 or not whole:
            continue  # too small, or cut off by the frame
        scale = (CANVAS - 4) / side
        move = np.array(
            [[scale, 0, CANVAS / 2 - scale * (left + width / 2)], [0, scale, CANVAS / 2 - scale * (top + height / 2)]]
        )
        picture = cv2.warpAffine(frame, move, (CANVAS, CANVAS), borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(cv2.erode(255 * inside, np.ones((3, 3), np.uint8)), move, (CANVAS, CANVAS))
        cutouts.append(Cutout(picture.astype(np.uint8), alpha.astype(np.uint8)))
    return cutouts
