"""Camera-compensated motion of every patch, and its addition to queries and keys.

A departure from the paper, whose tokens are frame-wise (Section 3 of Ding et al., "Betrayed by Attention",
arXiv:2311.17893): the features of a small model separate objects poorly, and common motion is a second cue.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import one_hot

from worker.threads import usable_cores
from worker.video.clip import PatchGrid

OFFSETS = (-2, -1, 1, 2)  # frames to which flow is computed from each frame
AGREEING = 1  # index of the residual used, ascending: uncovered ground moves to one side only, an object to both
RUN = 8  # consecutive frames per task of a thread: at most about a second between two progress reports
MAX_THREADS = 16
PATCH_PX = 8  # pixels a side of one patch in the frames that flow is computed on; other sizes were not tried
CAMERA_ITERATIONS = 12  # of reweighting
BORDER = 0.6  # share of the distance to the border beyond which the camera fit starts with full weights
NOISE_PX = 0.15  # flow caused by compression noise, in a frame 48 patches wide
SCATTERED, CONCENTRATED = 0.4, 0.65  # concentration of motion at which its weight is 0 and 1: set between the 0.24 of
# the one sequence of davis16-dev on water and the 0.70 and more of the others
CONFIDENCE_WINDOW = 12  # frames on either side over which the confidence is averaged

MOVING = 0.5  # energy above which patches belong to a mover
MOVERS = 3  # separate movers at any time; with the kernel's own channel four, so rows stay aligned to 8 bytes

STRENGTH = 8.0  # logits between a moving and a static patch; twice that between two movers
YIELD = 0.7  # share of its appearance logits that a moving patch gives up; 0.9 merges objects that move together


def motion_energy(
    frames: NDArray[np.uint8], grid: PatchGrid, *, on_progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """Motion energy: confidence in 0..1 that a patch moves relative to the motion of the camera.

    Dense flow (DIS) is computed to the frames before and after. The flow of a planar scene under a moving camera is
    fitted robustly and subtracted. The residuals, in pixels, are combined over the offsets and scaled to 0..1 by
    Otsu's threshold of the frame. Motion spread over the whole frame (water, leaves, a cut) gets no energy.

    Args:
        frames: RGB, shape (T, H, W, 3), in memory or mapped; each thread holds five frames at a time.
        grid: Patches of a frame.
        on_progress: Called with the frames done and all frames; an exception it raises cancels the computation.

    Returns:
        Shape (T, h, w), in 0..1; zeros for a single frame.
    """
    count = len(frames)
    energy = np.zeros((count, grid.height, grid.width), np.float32)
    confidence = np.zeros(count, np.float32)
    if count == 1 or min(grid.height, grid.width) < 4:  # too few patches to fit the camera
        return energy
    camera = CameraModel(grid)

    def measure(first: int) -> int:
        """Compute `RUN` frames starting at `first`; returns the index of the first frame after them."""
        last = min(first + RUN, count)
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        flow.setFinestScale(0)  # the preset's half size lowers J by 15 points (docs/models/tiny.md)
        grey: dict[int, NDArray[np.uint8]] = {}
        for index in range(first, last):
            neighbours = [index + offset for offset in OFFSETS if 0 <= index + offset < count]
            for frame_index in (index, *neighbours):
                if frame_index not in grey:
                    grey[frame_index] = grey_frame(frames[frame_index], grid)
            grey.pop(index + OFFSETS[0] - 1, None)
            flows = (_patch_means(flow.calc(grey[index], grey[other], None), grid) for other in neighbours)
            energy[index], confidence[index] = _combined(np.stack([camera.residual(each) for each in flows]))
        return last

    pool = ThreadPoolExecutor(min(usable_cores(), MAX_THREADS), "motion")
    try:
        for done in pool.map(measure, range(0, count, RUN)):
            if on_progress is not None:
                on_progress(done, count)
    finally:
        pool.shutdown(cancel_futures=True)
    return energy * _running_mean(confidence)[:, None, None]


def movers(energy: NDArray[np.float32]) -> NDArray[np.int8]:
    """Separate movers by connectivity.

    Components are connected moving patches in space and time (diagonals included, within a frame and between
    consecutive frames). Two components are simultaneous if they share more than half of the shorter one's frames.
    In descending order of total energy, each component takes the index whose simultaneous components have the least
    energy, at best none: two objects visible at the same time get two indices, and an object that was hidden for a
    while gets its index again. The other patches take the index of the nearest component of their frame. Objects that
    touch in any frame are one component.

    Args:
        energy: Shape (T, h, w), in 0..1, from `motion_energy`.

    Returns:
        Index of the mover of each patch in [0, `MOVERS`), shape (T, h, w); all 0 in a frame where nothing moves.
    """
    components, count = ndimage.label(energy > MOVING, np.ones((3, 3, 3)))
    mover_of = np.concatenate([[0], _mover_indices(components, count, energy)])
    indices = np.zeros(energy.shape, np.int8)
    for frame_index, component in enumerate(components):
        if component.any():
            nearest = ndimage.distance_transform_edt(component == 0, return_distances=False, return_indices=True)
            indices[frame_index] = mover_of[component[tuple(nearest)]]
    return indices


def _mover_indices(components: NDArray[np.int32], count: int, energy: NDArray[np.float32]) -> NDArray[np.int64]:
    """The mover index of each component, (count,); components are numbered from 1, (T, h, w)."""
    weight = ndimage.sum_labels(energy, components, np.arange(1, count + 1))
    spans = [box[0] for box in ndimage.find_objects(components)]  # connected: present in every frame of its span
    start, stop = np.array([span.start for span in spans]), np.array([span.stop for span in spans])
    chosen = np.full(count, -1)
    for component in np.argsort(-weight, kind="stable"):
        shared = np.minimum(stop, stop[component]) - np.maximum(start, start[component])
        shorter = np.minimum(stop - start, stop[component] - start[component])
        simultaneous = (chosen >= 0) & (2 * shared > shorter)
        chosen[component] = np.bincount(chosen[simultaneous], weight[simultaneous], MOVERS).argmin()
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
    """Add motion to queries and keys as `MOVERS` + 1 further channels.

    With q, k, m (energy) of a patch, M = `strength` and x = m e, where e is the unit vector of the patch's mover, the
    logit of patch i for patch j becomes

        (1 - yielding * m_i) * q_i·k_j / sqrt(d)  -  M |x_i - x_j|**2   (+ a constant of i, which softmax ignores)

    exactly: the exponent of a Gaussian kernel on x is a product of further channels, [2 M x_i, 1] of the query and
    [x_j, -M m_j**2] of the key. The appearance logits of a moving patch are reduced, so that common motion groups
    patches of different colours; two movers stay separate even with equal energy and appearance. Within one mover
    |x_i - x_j| is |m_i - m_j|. A departure from the paper, whose tokens are frame-wise.

    Args:
        queries: Shape (..., N, heads, d), not yet scaled by 1/sqrt(d).
        keys: Likewise.
        motion: Shape (..., N), in 0..1, from `motion_energy`.
        mover: Shape (..., N), integers below `MOVERS`, from `movers`.
        strength: Logits between a static and a moving patch, in nats; twice that between movers.
        yielding: In 0..1.

    Returns:
        Queries and keys of shape (..., N, heads, d + MOVERS + 1), still to be scaled by 1/sqrt(d + MOVERS + 1).

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
    appearance = queries * (1 - yielding * moves) / depth**0.5
    joined_queries = torch.cat([appearance, 2 * strength * x, torch.ones_like(moves)], -1)
    joined_keys = torch.cat([keys, x, -strength * moves**2], -1)
    return joined_queries * joined_queries.shape[-1] ** 0.5, joined_keys


class CameraModel:
    """The flow of a planar scene under a moving camera, to second order: eight parameters."""

    def __init__(self, grid: PatchGrid) -> None:
        rows, columns = np.mgrid[: grid.height, : grid.width].astype(np.float64)
        x = ((columns - (grid.width - 1) / 2) / (grid.width / 2)).ravel()
        y = ((rows - (grid.height - 1) / 2) / (grid.width / 2)).ravel()
        one, zero = np.ones_like(x), np.zeros_like(x)
        self.across = np.stack([one, x, y, zero, zero, zero, x * x, x * y], 1)
        self.down = np.stack([zero, zero, zero, one, x, y, x * y, y * y], 1)
        at_border = np.maximum(np.abs(x), np.abs(y) * grid.width / grid.height) > BORDER
        self.start = np.where(at_border, 1.0, 0.3)

    def residual(self, flow: NDArray[np.float32]) -> NDArray[np.float64]:
        """Magnitude of a flow (h, w, 2) minus the fitted flow of the camera, in the same unit: (h, w).

        Iteratively reweighted least squares with Geman-McClure weights at the scale of the median residual.
        """
        u, v = flow[..., 0].ravel().astype(np.float64), flow[..., 1].ravel().astype(np.float64)
        weight = self.start
        for _ in range(CAMERA_ITERATIONS):
            normal = self.across.T @ (weight[:, None] * self.across) + self.down.T @ (weight[:, None] * self.down)
            moments = self.across.T @ (weight * u) + self.down.T @ (weight * v)
            fitted = np.linalg.solve(normal + 1e-6 * np.eye(8), moments)
            residual: NDArray[np.float64] = np.hypot(u - self.across @ fitted, v - self.down @ fitted)
            scale = max(1.4826 * float(np.median(residual)), 0.05)
            weight = (1 + (residual / (1.5 * scale)) ** 2) ** -2.0
        return residual.reshape(flow.shape[:2])


def grey_frame(frame: NDArray[np.uint8], grid: PatchGrid) -> NDArray[np.uint8]:
    """A frame in grey at `PATCH_PX` pixels a side of a patch."""
    size = (PATCH_PX * grid.width, PATCH_PX * grid.height)
    if (frame.shape[1], frame.shape[0]) != size:
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    grey: NDArray[np.uint8] = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return grey


def _patch_means(flow: NDArray[np.float32], grid: PatchGrid) -> NDArray[np.float32]:
    means: NDArray[np.float32] = flow.reshape(grid.height, PATCH_PX, grid.width, PATCH_PX, 2).mean((1, 3))
    return means


def _combined(residuals: NDArray[np.float64]) -> tuple[NDArray[np.float32], float]:
    """Residuals to several frames (n, h, w), in pixels -> energy (h, w) in 0..1 and confidence in it, 0..1."""
    noise = NOISE_PX * residuals.shape[2] / 48
    # Each scaled by its own mean: over two frames an object moves farther than over one.
    level = np.maximum(residuals.mean((1, 2), keepdims=True), 1e-6)
    combined = np.sort(residuals / level, 0)[min(AGREEING, len(residuals) - 1)]
    half = np.hypot(0.7 * otsu_threshold(combined), noise / np.median(level))
    spread = combined.sum() ** 2 / max(float((combined**2).sum()), 1e-12) / combined.size  # share of moving patches
    confidence = np.clip((1 - spread - SCATTERED) / (CONCENTRATED - SCATTERED), 0, 1)
    return (combined**2 / (combined**2 + half**2)).astype(np.float32), float(confidence)


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """The threshold that maximises the variance between two classes of two or more values (Otsu 1979)."""
    ordered = np.sort(values, axis=None).astype(np.float64)
    below = np.arange(1, ordered.size)
    sums = np.cumsum(ordered)
    difference = sums[:-1] / below - (sums[-1] - sums[:-1]) / (ordered.size - below)
    best = int(np.argmax(below * (ordered.size - below) * difference**2))
    return float(ordered[best] + ordered[best + 1]) / 2


def _running_mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    windows = (values[max(0, i - CONFIDENCE_WINDOW) : i + CONFIDENCE_WINDOW + 1] for i in range(len(values)))
    return np.array([window.mean() for window in windows], np.float32)
