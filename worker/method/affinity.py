"""Affinities without a trained block that are computed from keys alone.

These are additions: the paper compares the queries and keys of a trained block, or of the last layer. An affinity is
fitted to the keys of the key frames of a video, then maps the keys of any frame to the queries and keys of attention.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch.nn.functional as F
from torch import Tensor

from uvos.contract import Affinity

COSINE_SCALE = 10.0
"""Logit of two tokens with equal centred keys."""


class KeyAffinity(Protocol):
    """An affinity computed from keys."""

    @classmethod
    def fit(cls, keys: Tensor) -> Self:
        """Adapt to a video.

        Args:
            keys: Keys of all key frames, shape (M, heads, d).
        """

    def project(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of attention, whose logits are q·k/sqrt(d').

        Args:
            keys: Keys of some frames, shape (B, N, heads, d).

        Returns:
            Queries and keys, shape (B, N, heads', d') each.
        """


@dataclass(frozen=True)
class CentredCosine:
    """Cosine of keys after subtracting their mean, times `COSINE_SCALE`; one head over all channels.

    Keys of DINOv2 share a large common component; without it, tokens of one object are closer to each other.

    Attributes:
        mean: Mean key of the video, shape (heads * d,).
    """

    mean: Tensor

    @classmethod
    def fit(cls, keys: Tensor) -> Self:
        return cls(keys.flatten(1).mean(0))

    def project(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        centred = F.normalize(keys.flatten(2) - self.mean, dim=-1)[:, :, None]
        return centred * (COSINE_SCALE * centred.shape[-1] ** 0.5), centred


KEY_AFFINITIES: dict[Affinity | None, type[KeyAffinity]] = {Affinity.keys: CentredCosine}
"""Affinities that are computed from keys; all others compare the model's own queries and keys."""
