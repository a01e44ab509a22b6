"""Affinity of two tokens without a trained block: mean-centred keys by cosine.

This is an addition; the paper compares the queries and keys of a trained block, or of the last layer. Keys of DINOv2
share a large common component: without it, tokens of one object are closer to each other (docs/method.md).
"""

import torch.nn.functional as F
from torch import Tensor

COSINE_SCALE = 10.0
"""Logit of two tokens with equal centred keys."""


def mean_key(keys: Tensor) -> Tensor:
    """The common component of the keys of a video.

    Args:
        keys: Keys of all key frames, shape (M, heads, d).

    Returns:
        Shape (heads * d,).
    """
    return keys.flatten(1).mean(0)


def centred_cosine(keys: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys whose scaled product q·k/sqrt(D) is the cosine of centred keys times `COSINE_SCALE`.

    Args:
        keys: Keys of some frames, shape (B, N, heads, d).
        mean: The mean key of the video from `mean_key`, shape (heads * d,).

    Returns:
        Queries and keys of one head over all channels, shape (B, N, 1, heads * d) each.
    """
    centred = F.normalize(keys.flatten(2) - mean, dim=-1)[:, :, None]
    return centred * (COSINE_SCALE * centred.shape[-1] ** 0.5), centred
