"""Camera-compensated motion of every patch, and how it joins the tokens.

A departure from the paper, whose tokens are frame-wise (section 3 of Ding et al., "Betrayed by Attention",
arXiv:2311.17893): a small model knows little of what belongs together, and what moves together helps it.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import one_hot

from worker.video.clip import PatchGrid

OFFSETS = (-2, -1, 1, 2)  # frames looked at from each frame
AGREEING = 1  # the second smallest of the four: uncovered ground seems to move one way, an object both
RUN = 8  # frames that one thread looks at in a row: a second at most between two reports
MOST_THREADS = 16
CELL = 8  # pixels a side that one patch has while flow is computed; others were not tried
CAMERA_ROUNDS = 12  # of reweighting
BORDER = 0.6  # beyond this share of the way to the border, ground is likelier than object: where the fit starts
QUIET_PX = 0.15  # of a frame 48 patches wide: what flow reports of compression noise
SCATTERED, CONCENTRATED = 0.4, 0.65  # where motion begins to count, and counts in full: set between the 0.24 of the
# one sequence of davis16-dev on water and the 0.70 and more of the others
TRUST_WINDOW = 12  # frames either side over which concentration is averaged

SURELY = 0.5  # energy above which patches are pieces of a mover
MOVERS = 3  # told apart at once; with the kernel's own channel they fill four, and products stay aligned to 8 bytes

STRENGTH = 8.0  # logits between a patch that moves and one that stands; between two movers it is twice that
YIELD = 0.7  # share of its looks that a moving patch asks less for; at 0.9 things that move together cannot be parted


def motion_energy(
    frames: NDArray[np.uint8], grid: PatchGrid, *, on_progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """How surely each patch moves otherwise than the camera does.

    Dense flow (DIS) to the frames before and after; a planar scene's motion under a moving camera is fitted
    robustly and removed; what is left, in pixels, is agreed over the offsets and brought to 0..1 by Otsu's
    threshold of its frame. Where it is spread over the frame (water, leaves, a cut) nothing is left of it.

    Args:
        frames: RGB, shape (T, H, W, 3), in memory or mapped; each thread holds five frames at a time.
        grid: Patches a frame.
        on_progress: Told the frames done and their number; what it raises ends the work and passes through.

    Returns:
        Shape (T, h, w), in 0..1; zeros for a single frame.
    """
    count = len(frames)
    energy = np.zeros((count, grid.height, grid.width), np.float32)
    trust = np.zeros(count, np.float32)
    if count == 1 or min(grid.height, grid.width) < 4:  # too few patches to tell camera from object
        return energy
    camera = _Camera(grid)

    def measure(first: int) -> int:
        """Fill in `RUN` frames from `first` on; the first frame after them."""
        last = min(first + RUN, count)
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        flow.setFinestScale(0)  # half the size, the preset's choice, took 15 points of J (docs/models/tiny.md)
        grey: dict[int, NDArray[np.uint8]] = {}
        for index in range(first, last):
            near = [index + offset for offset in OFFSETS if 0 <= index + offset < count]
            for wanted in (index, *near):
                if wanted not in grey:
                    grey[wanted] = _grey(frames[wanted], grid)
            grey.pop(index + OFFSETS[0] - 1, None)
            left = [camera.residual(_per_patch(flow.calc(grey[index], grey[other], None), grid)) for other in near]
            energy[index], trust[index] = _agreed(np.stack(left))
        return last

    pool = ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MOST_THREADS), "motion")
    try:
        for done in pool.map(measure, range(0, count, RUN)):
            if on_progress is not None:
                on_progress(done, count)
    finally:
        pool.shutdown(cancel_futures=True)
    return energy * _running_mean(trust)[:, None, None]


def movers(energy: NDArray[np.float32]) -> NDArray[np.int8]:
    """Which of several movers each patch belongs to, as far as connection tells.

    Pieces of a mover are connected patches that surely move, in space and over time: neighbours, diagonal ones too,
    in a frame or from one to the next. Heavy pieces first, each takes the number whose pieces seen at once with it
    weigh least, at best none: two things that are there at once are two, but a thing that was hidden for a while
    comes back as itself. Two pieces are seen at once if they share more than half of the shorter one's frames. Other
    patches take the number of the nearest piece of their frame. A single mover has a single number, and things that
    touch in any frame are one piece.

    Args:
        energy: Shape (T, h, w), in 0..1, as `motion_energy` gives it.

    Returns:
        Shape (T, h, w), from 0 to below `MOVERS`; 0 all over a frame where nothing surely moves.
    """
    pieces, count = ndimage.label(energy > SURELY, np.ones((3, 3, 3)))
    number_of = np.concatenate([[0], _numbers(pieces, count, energy)])
    numbers = np.zeros(energy.shape, np.int8)
    for frame, piece in enumerate(pieces):
        if piece.any():
            nearest = ndimage.distance_transform_edt(piece == 0, return_distances=False, return_indices=True)
            numbers[frame] = number_of[piece[tuple(nearest)]]
    return numbers


def _numbers(pieces: NDArray[np.int32], count: int, energy: NDArray[np.float32]) -> NDArray[np.int64]:
    """The mover's number of each piece, (count,); pieces count from 1, (T, h, w)."""
    weight = ndimage.sum_labels(energy, pieces, np.arange(1, count + 1))
    spans = [box[0] for box in ndimage.find_objects(pieces)]  # connected, so seen in every frame between
    start, stop = np.array([span.start for span in spans]), np.array([span.stop for span in spans])
    chosen = np.full(count, -1)
    for piece in np.argsort(-weight, kind="stable"):
        shared = np.minimum(stop, stop[piece]) - np.maximum(start, start[piece])
        shorter = np.minimum(stop - start, stop[piece] - start[piece])
        at_once = (chosen >= 0) & (2 * shared > shorter)
        chosen[piece] = np.bincount(chosen[at_once], weight[at_once], MOVERS).argmin()
    return chosen


def join_motion(
    queries: Tensor,
    keys: Tensor,
    motion: Tensor,
    mover: Tensor,
    *,
    strength: float = STRENGTH,
    yielding: float = YIELD,
) -> tuple[Tensor, Tensor]:
    """Queries and keys whose products also compare motion; `MOVERS` + 1 channels longer.

    With q, k, m of a patch, M = `strength` and x = m e, where e is the unit vector of the patch's mover, the logit of
    patch i for patch j becomes

        (1 - yielding * m_i) * q_i·k_j / sqrt(d)  -  M |x_i - x_j|**2   (+ a constant of i, which softmax ignores)

    exactly: the Gaussian kernel on x is more channels, [2 M x_i, 1] of the query and [x_j, -M m_j**2] of the key. A
    patch that surely moves asks less by its looks, so that what moves together is one group whatever its colours;
    two movers stay apart, though both move as surely and look alike. Of one mover, |x_i - x_j| is |m_i - m_j|. A
    departure from the paper, whose tokens are frame-wise.

    Args:
        queries: Shape (..., N, heads, d), not yet scaled by 1/sqrt(d).
        keys: Likewise.
        motion: Shape (..., N), in 0..1, as `motion_energy` gives it.
        mover: Shape (..., N), whole numbers below `MOVERS`, as `movers` gives them.
        strength: Logits between a patch that stands and one that surely moves, in nats; twice that between movers.
        yielding: In 0..1.

    Returns:
        Queries and keys of shape (..., N, heads, d + MOVERS + 1), to be scaled by 1/sqrt(d + MOVERS + 1) as ever.

    Raises:
        ValueError: the shapes do not fit.
    """
    if queries.shape != keys.shape or not queries.shape[:-2] == motion.shape == mover.shape:
        raise ValueError(
            "expected (..., N, heads, d), and (..., N) twice, "
            f"got {queries.shape = }, {motion.shape = } and {mover.shape = }"
        )
    depth = queries.shape[-1]
    moves = motion.to(queries)[..., None, None].expand(*queries.shape[:-1], 1)  # (..., N, heads, 1)
    x = moves * one_hot(mover.long(), MOVERS).to(queries)[..., None, :]  # (..., N, heads, MOVERS)
    asks = torch.cat([queries * (1 - yielding * moves) / depth**0.5, 2 * strength * x, torch.ones_like(moves)], -1)
    is_asked = torch.cat([keys, x, -strength * moves**2], -1)
    return asks * asks.shape[-1] ** 0.5, is_asked


class _Camera:
    """The flow that a moving camera gives a planar scene, to second order: eight numbers."""

    def __init__(self, grid: PatchGrid) -> None:
        rows, columns = np.mgrid[: grid.height, : grid.width].astype(np.float64)
        x = ((columns - (grid.width - 1) / 2) / (grid.width / 2)).ravel()
        y = ((rows - (grid.height - 1) / 2) / (grid.width / 2)).ravel()
        one, none = np.ones_like(x), np.zeros_like(x)
        self.across = np.stack([one, x, y, none, none, none, x * x, x * y], 1)
        self.down = np.stack([none, none, none, one, x, y, x * y, y * y], 1)
        at_border = np.maximum(np.abs(x), np.abs(y) * grid.width / grid.height) > BORDER
        self.start = np.where(at_border, 1.0, 0.3)

    def residual(self, flow: NDArray[np.float32]) -> NDArray[np.float64]:
        """What the camera does not explain of a flow (h, w, 2), in its unit: (h, w).

        Iteratively reweighted least squares with Geman and McClure's weights at the median residual's scale.
        """
        u, v = flow[..., 0].ravel().astype(np.float64), flow[..., 1].ravel().astype(np.float64)
        weight = self.start
        for _ in range(CAMERA_ROUNDS):
            normal = self.across.T @ (weight[:, None] * self.across) + self.down.T @ (weight[:, None] * self.down)
            right = self.across.T @ (weight * u) + self.down.T @ (weight * v)
            fitted = np.linalg.solve(normal + 1e-6 * np.eye(8), right)
            left = np.hypot(u - self.across @ fitted, v - self.down @ fitted)
            scale = max(1.4826 * float(np.median(left)), 0.05)
            weight = (1 + (left / (1.5 * scale)) ** 2) ** -2.0
        residual: NDArray[np.float64] = left.reshape(flow.shape[:2])
        return residual


def _grey(frame: NDArray[np.uint8], grid: PatchGrid) -> NDArray[np.uint8]:
    size = (CELL * grid.width, CELL * grid.height)
    if (frame.shape[1], frame.shape[0]) != size:
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    grey: NDArray[np.uint8] = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return grey


def _per_patch(flow: NDArray[np.float32], grid: PatchGrid) -> NDArray[np.float32]:
    means: NDArray[np.float32] = flow.reshape(grid.height, CELL, grid.width, CELL, 2).mean((1, 3))
    return means


def _agreed(left: NDArray[np.float64]) -> tuple[NDArray[np.float32], float]:
    """Residuals to several frames (n, h, w), in pixels -> energy (h, w) in 0..1 and how far to trust it, 0..1."""
    quiet = QUIET_PX * left.shape[2] / 48
    # Each by its own mean: the same object is farther away after two frames than after one.
    level = np.maximum(left.mean((1, 2), keepdims=True), 1e-6)
    agreed = np.sort(left / level, 0)[min(AGREEING, len(left) - 1)]
    half = np.hypot(0.7 * _otsu(agreed), quiet / np.median(level))
    spread = agreed.sum() ** 2 / max(float((agreed**2).sum()), 1e-12) / agreed.size  # share of patches that take part
    trust = np.clip((1 - spread - SCATTERED) / (CONCENTRATED - SCATTERED), 0, 1)
    return (agreed**2 / (agreed**2 + half**2)).astype(np.float32), float(trust)


def _otsu(values: NDArray[np.float64]) -> float:
    """The threshold that parts values into two classes as far apart as can be (Otsu 1979)."""
    ordered = np.sort(values, axis=None)
    below = np.arange(1, ordered.size)
    sums = np.cumsum(ordered)
    apart = sums[:-1] / below - (sums[-1] - sums[:-1]) / (ordered.size - below)
    best = int(np.argmax(below * (ordered.size - below) * apart**2))
    return float(ordered[best] + ordered[best + 1]) / 2


def _running_mean(trust: NDArray[np.float32]) -> NDArray[np.float32]:
    means = [trust[max(0, i - TRUST_WINDOW) : i + TRUST_WINDOW + 1].mean() for i in range(len(trust))]
    return np.array(means, np.float32)
