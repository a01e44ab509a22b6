"""Affinities without a trained block that are computed from keys alone: centred cosine and spectral embedding.

These are additions: the paper compares the queries and keys of a trained block, or of the last layer. An affinity is
fitted to the keys of the key frames of a video, then maps the keys of any frame to the queries and keys of attention.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh
from torch import Tensor

from uvos.contract import Affinity

COSINE_SCALE = 10.0
"""Logit of two tokens with equal centred keys or embeddings, and exponent of the spectral affinity."""
SPECTRAL_CHANNELS = 16
"""Channels of the embedding: 15 to 39 give the same J on davis16-dev within 2 points, 12 and fewer give less."""
MAX_LANDMARKS = 2048
"""Key tokens that the embedding is computed from: all 3772 give the same J on davis16-dev within 2 points."""


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
        return _one_head(self.directions(keys))

    def directions(self, keys: Tensor) -> Tensor:
        """Centred keys of unit length, (..., heads, d) to (..., heads * d)."""
        return F.normalize(keys.flatten(-2) - self.mean, dim=-1)


@dataclass(frozen=True)
class SpectralEmbedding:
    """Spectral embedding of the affinity exp(s (cos - 1)) of centred keys, s = `COSINE_SCALE`; one head.

    Leading eigenvectors of a normalised affinity are almost constant over an object and change at its outline.
    Landmarks are key tokens at equal distances. With W their affinities and D the row sums of W, u_c are the leading
    eigenvectors of D^-1/2 W D^-1/2 without the first, which belongs to the whole video. A token whose affinities to
    the landmarks are w has the embedding z_c = sum_j w_j D_j^-1/2 u_cj / sum_j w_j, scaled to unit length. The logit
    of two tokens is `COSINE_SCALE` z_i·z_j.

    Source: Ng, Jordan and Weiss, "On Spectral Clustering" (2001); the extension to other tokens is that of Fowlkes et
    al., "Spectral Grouping Using the Nyström Method" (2004), times the eigenvalue.

    Attributes:
        cosine: Centring of the keys.
        landmarks: Centred keys of unit length, shape (L, heads * d).
        basis: D^-1/2 u, shape (L, `SPECTRAL_CHANNELS`); zero in channels beyond the number of landmarks.
    """

    cosine: CentredCosine
    landmarks: Tensor
    basis: Tensor

    @classmethod
    def fit(cls, keys: Tensor) -> Self:
        cosine = CentredCosine.fit(keys)
        count = min(len(keys), MAX_LANDMARKS)
        landmarks = cosine.directions(keys[torch.arange(count, device=keys.device) * len(keys) // count])
        affinity = _affinity(landmarks, landmarks)
        scale = affinity.sum(1).rsqrt()
        normalised = (scale[:, None] * affinity * scale).cpu().numpy()
        vectors = torch.from_numpy(_leading_eigenvectors(normalised, SPECTRAL_CHANNELS + 1)[:, 1:]).to(keys)
        return cls(cosine, landmarks, F.pad(vectors * scale[:, None], (0, SPECTRAL_CHANNELS - vectors.shape[1])))

    def project(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        # Frame by frame, since the affinities of a batch to all landmarks would need much memory.
        affinities = (_affinity(directions, self.landmarks) for directions in self.cosine.directions(keys))
        embeddings = torch.stack([w @ self.basis / w.sum(1, keepdim=True) for w in affinities])
        return _one_head(F.normalize(embeddings, dim=-1))


def _affinity(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a, b.T).sub_(1).mul_(COSINE_SCALE).exp_()


def _leading_eigenvectors(matrix: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Eigenvectors of the largest eigenvalues of a symmetric matrix, in descending order, (n, min(count, n))."""
    if len(matrix) <= 4 * count:  # Lanczos iteration needs many more rows than eigenvectors
        values, vectors = np.linalg.eigh(matrix)
    else:
        values, vectors = eigsh(matrix, k=count, which="LA", v0=np.ones(len(matrix), matrix.dtype), tol=1e-4)
    descending: NDArray[np.float32] = vectors[:, np.argsort(-values)[:count]]
    return descending


def _one_head(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of one head whose logits q·k/sqrt(d) are the products of unit vectors times `COSINE_SCALE`."""
    keys = directions[:, :, None]
    return keys * (COSINE_SCALE * keys.shape[-1] ** 0.5), keys


KEY_AFFINITIES: dict[Affinity | None, type[KeyAffinity]] = {
    Affinity.keys: CentredCosine,
    Affinity.spectral: SpectralEmbedding,
}
"""Affinities that are computed from keys; all others compare the model's own queries and keys."""
