"""Statistics of clusters over a video: where each cluster occurs, on the patch grid."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BORDER_RING = 1  # patches: depth of the frame border in which border tokens are counted
CENTRE_SIGMA = 0.25  # of the frame's sides: distance from the centre at which a token's weight is exp(-1/2)


@dataclass(frozen=True)
class ClusterCounts:
    """Token counts of C clusters in each frame: the only view of an assignment that the object rules need.

    Attributes:
        tokens: Tokens of the cluster in the frame, shape (T, C).
        border: Of these, tokens on the border of the frame, shape (T, C).
        centrality: Sum of the tokens' centre weights, each in (0, 1], shape (T, C).
        motion: Sum of the tokens' motion energy, each in 0..1, shape (T, C).
        energy: Motion energy of each token, shape (T, h, w).
    """

    tokens: NDArray[np.intp]
    border: NDArray[np.intp]
    centrality: NDArray[np.float64]
    motion: NDArray[np.float64]
    energy: NDArray[np.floating]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.energy.shape[1], self.energy.shape[2]

    @staticmethod
    def of(
        assignment: NDArray[np.integer], clusters: int, energy: NDArray[np.floating] | None = None
    ) -> "ClusterCounts":
        """The counts of an assignment, shape (T, h, w); without `energy` nothing moves."""
        length, height, width = assignment.shape
        if energy is None:
            energy = np.broadcast_to(np.float32(0), assignment.shape)
        counts = ClusterCounts(
            tokens=np.zeros((length, clusters), np.intp),
            border=np.zeros((length, clusters), np.intp),
            centrality=np.zeros((length, clusters)),
            motion=np.zeros((length, clusters)),
            energy=energy,
        )
        all_tokens = np.ones(height * width, bool)
        for frame_index, frame in enumerate(assignment):
            counts.add(frame_index, all_tokens, frame.ravel())
        return counts

    def add(self, frame_index: int, mask: NDArray[np.bool_], clusters: NDArray[np.integer]) -> None:
        """Count the tokens of a frame under `mask`, shape (N,), for their clusters, shape (mask.sum(),)."""
        height, width = self.grid
        ring = np.ones(self.grid)
        ring[BORDER_RING : height - BORDER_RING, BORDER_RING : width - BORDER_RING] = 0
        y, x = (np.arange(height) + 0.5) / height - 0.5, (np.arange(width) + 0.5) / width - 0.5
        centre_weight = np.exp(-(y[:, None] ** 2 + x**2) / (2 * CENTRE_SIGMA**2))
        count = self.tokens.shape[1]
        self.tokens[frame_index] += np.bincount(clusters, minlength=count)
        self.border[frame_index] += np.bincount(clusters, ring.ravel()[mask], count).astype(np.intp)
        self.centrality[frame_index] += np.bincount(clusters, centre_weight.ravel()[mask], count)
        self.motion[frame_index] += np.bincount(clusters, self.energy[frame_index].ravel()[mask], count)

    def without(self, clusters: NDArray[np.bool_]) -> "ClusterCounts":
        """A copy in which the clusters under the mask, shape (C,), have no tokens."""
        rest = ~clusters
        return ClusterCounts(
            self.tokens * rest, self.border * rest, self.centrality * rest, self.motion * rest, self.energy
        )

    def grouped(self, groups: NDArray[np.intp]) -> "ClusterCounts":
        """The counts of groups of clusters; `groups` holds the group of each cluster from 0, shape (C,)."""
        members = (groups[:, None] == np.arange(groups.max() + 1)).astype(np.intp)  # (C, groups)
        return ClusterCounts(
            self.tokens @ members,
            self.border @ members,
            self.centrality @ members,
            self.motion @ members,
            self.energy,
        )


@dataclass(frozen=True)
class ClusterStats:
    """Statistics of C clusters over a video, all of shape (C,); 0 for a cluster without tokens."""

    is_present: NDArray[np.bool_]
    """Whether the cluster has tokens."""
    area: NDArray[np.float64]
    """Mean share of the frame over the frames in which it appears."""
    first_frame: NDArray[np.intp]
    last_frame: NDArray[np.intp]
    frames: NDArray[np.intp]
    """Number of frames in which it appears."""
    persistence: NDArray[np.float64]
    """Share of all frames in which it appears."""
    centrality: NDArray[np.float64]
    """Mean centre weight of its tokens."""
    energy: NDArray[np.float64]
    """Mean motion energy of its tokens, in 0..1."""
    background_score: NDArray[np.float64]
    """b / (b + a), b its share of all border tokens and a its share of all tokens; 0.5 where both are equal."""

    @staticmethod
    def of(counts: ClusterCounts) -> "ClusterStats":
        total, border = counts.tokens.sum(0), counts.border.sum(0)
        appears = counts.tokens > 0
        frames = appears.sum(0)
        # In integers, so that equal shares give exactly 0.5.
        scaled_border, scaled_area = border * total.sum(), total * border.sum()
        return ClusterStats(
            is_present=total > 0,
            area=total / (np.maximum(frames, 1) * counts.grid[0] * counts.grid[1]),
            first_frame=appears.argmax(0),
            last_frame=np.where(frames > 0, len(appears) - 1 - appears[::-1].argmax(0), 0),
            frames=frames,
            persistence=frames / len(appears),
            centrality=counts.centrality.sum(0) / np.maximum(total, 1),
            energy=counts.motion.sum(0) / np.maximum(total, 1),
            background_score=scaled_border / np.maximum(scaled_border + scaled_area, 1),
        )
