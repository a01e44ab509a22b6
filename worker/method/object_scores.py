"""Object score of every token: saliency and motion, generalised over the features of the video.

An addition: the paper (Ding et al., arXiv:2311.17893) ends with clusters and does not separate background. Two cues say
where objects are, both noisy and incomplete: the attention of the class token to the patches, and motion energy. A
ridge regression of a cue on the features of all tokens of the video, fitted to that video alone, extends the cue to
tokens with the same features and removes what features do not support. Choices and ablation: docs/method.md.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.ndimage import convolve1d

from worker.method.motion import otsu_threshold

RIDGE = 0.1  # times the mean variance of a feature
MIN_CONTRAST = 4.0  # of the saliency; 2.6 for a video of an empty road, at least 5.3 for the videos with objects
MOVING_ENERGY = 0.5  # a video in which no token exceeds it has no mover


class FrameRows(Protocol):
    """Features of frames: `read(start, stop)` has shape (stop - start, N, D)."""

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int, /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class ObjectScores:
    """Scores of every token; a token is an object token where its score exceeds 1.

    Attributes:
        foreground: Salient objects, or movers that are salient; float32, shape (T, h, w).
        main: The movers among the salient objects; without motion, the same as `foreground`.
    """

    foreground: NDArray[np.float32]
    main: NDArray[np.float32]


def object_scores(
    keys: FrameRows, saliency: NDArray[np.floating], motion: NDArray[np.floating] | None = None
) -> ObjectScores:
    """Object scores of all tokens of a video.

    1. Foreground: the saliency of the heads (`combined_saliency`) is regressed on the features; tokens above Otsu's
       threshold are the targets of a second regression, whose Otsu threshold is the score 1. If their mean saliency is
       not `MIN_CONTRAST` times that of the other tokens, no token is salient.
    2. Main object: motion energy times s / (s + 1), with s the score of step 1, is regressed likewise. If no token
       moves, it is the foreground.
    3. Scores are limited to [0, 2] and averaged over three frames with weights 1, 2, 1.

    Args:
        keys: Keys of the last layer of all frames.
        saliency: Attention of the class token to the patches in each head, shape (T, h, w, heads).
        motion: Motion energy, in 0..1, shape (T, h, w); None without motion.

    Raises:
        ValueError: the shapes do not agree.
    """
    grid = saliency.shape[:3]
    if len(keys) != len(saliency) or (motion is not None and motion.shape != grid):
        raise ValueError(
            f"expected saliency (T, h, w, heads) and motion (T, h, w), got {saliency.shape} and "
            f"{None if motion is None else motion.shape} for {len(keys)} frames"
        )
    probe = FeatureRegression(keys)
    fitted = probe(combined_saliency(saliency))
    upper = fitted > otsu_threshold(fitted)
    is_salient = bool(upper.any() and fitted[upper].mean() >= MIN_CONTRAST * fitted[~upper].mean())
    foreground = _normalised(probe(upper)) if is_salient else np.zeros(grid, np.float32)
    if motion is None or motion.max() <= MOVING_ENERGY:
        foreground = smooth_over_time(foreground)
        return ObjectScores(foreground, foreground)
    gain = np.maximum(foreground, 0) / (np.maximum(foreground, 0) + 1) if is_salient else 1.0
    main = _normalised(probe(motion * gain))
    return ObjectScores(smooth_over_time(np.maximum(foreground, main)), smooth_over_time(main))


def combined_saliency(saliency: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean over the heads, each divided by its mean and weighted by how little of it lies on the frame border.

    The weight is 1 - (mean on the border) / (mean over the frame), at least 0: some heads attend to the background.
    If all heads do, they are weighted equally.

    Args:
        saliency: Shape (T, h, w, heads).

    Returns:
        Shape (T, h, w).
    """
    means = saliency.mean((0, 1, 2), dtype=np.float64)
    border = np.ones(saliency.shape[1:3], bool)
    border[1:-1, 1:-1] = False
    weights = np.maximum(0, 1 - saliency[:, border].mean((0, 1), dtype=np.float64) / means)
    if not weights.any():
        weights = np.ones_like(means)
    combined: NDArray[np.float64] = saliency @ (weights / means / weights.sum())
    return combined


def smooth_over_time(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores limited to [0, 2] and averaged over three frames with weights 1, 2, 1; shape (T, h, w) as given."""
    weights = np.array([0.25, 0.5, 0.25], np.float32)
    smoothed: NDArray[np.float32] = convolve1d(scores.clip(0, 2), weights, axis=0, mode="nearest")
    return smoothed


class FeatureRegression:
    """Ridge regression of a value per token on the token's features, over all tokens of a video.

    Features are keys minus the mean key of the video, of unit length, and an intercept that is not penalised. Memory
    is one frame and (D + 1)² values, whatever the length of the video.

    Args:
        keys: Keys of all frames.
    """

    def __init__(self, keys: FrameRows) -> None:
        self._keys = keys
        self._mean = np.mean([keys.read(t, t + 1)[0].mean(0, dtype=np.float64) for t in range(len(keys))], axis=0)
        gram = np.zeros((len(self._mean) + 1,) * 2)
        count = 0
        for t in range(len(keys)):
            features = self._features(t)
            gram += features.T @ features
            count += len(features)
        penalty = np.full(len(gram), RIDGE * np.trace(gram[:-1, :-1]) / len(self._mean))
        penalty[-1] = 1e-9 * count  # the intercept; keeps the matrix positive definite
        self._factor = linalg.cho_factor(gram + np.diag(penalty + 1e-9 * count))

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """The fitted values, float32; `values` and the result have shape (T, h, w)."""
        moments = sum(self._features(t).T @ values[t].ravel().astype(np.float32) for t in range(len(values)))
        weights = linalg.cho_solve(self._factor, np.asarray(moments, np.float64)).astype(np.float32)
        fitted = [(self._features(t) @ weights).reshape(values.shape[1:]) for t in range(len(values))]
        return np.stack(fitted)

    def _features(self, frame_index: int) -> NDArray[np.float32]:
        """Shape (N, D + 1)."""
        centred = self._keys.read(frame_index, frame_index + 1)[0].astype(np.float32) - self._mean.astype(np.float32)
        centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
        return np.pad(centred, ((0, 0), (0, 1)), constant_values=1)


def _normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values divided by Otsu's threshold; without a positive threshold, zeros."""
    threshold = otsu_threshold(values)
    return values / np.float32(threshold) if threshold > 0 else np.zeros_like(values)
