"""Frames -> queries of all frames and keys of the key frames."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uvos.contract import Stage
from worker.method.motion import join_motion, motion_energy, movers
from worker.models.backbone import Projections
from worker.models.loading import LoadedModel
from worker.numerics.spool import Spool
from worker.stopwatch import Stopwatch
from worker.video.decode import FrameSize, PartialClip


@dataclass(frozen=True)
class KeyFrames:
    """The frames that serve as keys, and a warning for the user if they were limited."""

    indices: list[int]
    warnings: tuple[str, ...] = ()


def limit_key_frames(indices: list[int], frame_count: int, tokens_per_frame: int, max_key_tokens: int) -> KeyFrames:
    """Key frames with at most `max_key_tokens` tokens: the given ones, or fewer at equal distances."""
    allowed = max(1, max_key_tokens // tokens_per_frame)
    if len(indices) <= allowed:
        return KeyFrames(indices)
    fewer = [i * frame_count // allowed for i in range(allowed)]
    warning = (
        f"{len(indices)} key frames of {tokens_per_frame} tokens exceed the limit of {max_key_tokens} key tokens; "
        f"{len(fewer)} were used (key_ratio {len(fewer) / frame_count:g})"
    )
    return KeyFrames(fewer, (warning,))


@dataclass(frozen=True)
class Features:
    """Input of the attention maps.

    Attributes:
        queries: Queries of all frames on disk, one row per frame, (N, heads, d).
        keys: Keys of the key frames in memory, (K*N, heads, d).
        motion: Motion energy of each token, (T, h, w); None without motion.
    """

    queries: Spool
    keys: Tensor
    motion: NDArray[np.float32] | None


class FeatureProjector(AbstractContextManager["FeatureProjector"]):
    """Projects frames to queries and keys in batches, starting while later frames are being decoded.

    The key frames are known only when all frames are decoded; keys of frames that were projected before are kept on
    disk until then.

    Source: Section 3 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893). Motion is an addition (`motion.py`).

    Args:
        model: The loaded model.
        frame_size: Rule for the model input resolution.
        with_motion: Add motion to queries and keys.
        work: An existing folder for queries and keys.
        stopwatch: Time of projection is counted to the features stage.
        on_progress: Called with frames projected and all frames; an exception it raises cancels the projection.
    """

    def __init__(
        self,
        model: LoadedModel,
        frame_size: FrameSize,
        *,
        with_motion: bool,
        work: Path,
        stopwatch: Stopwatch,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._model, self._frame_size, self._with_motion, self._work = model, frame_size, with_motion, work
        self._stopwatch, self._on_progress = stopwatch, on_progress
        self._as_bfloat16 = model.dtype != "float32"
        self._partial: PartialClip | None = None
        self._queries: Spool | None = None
        self._early_keys: Spool | None = None

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for spool in (self._queries, self._early_keys):
            if spool is not None:
                spool.close()
        self._queries = self._early_keys = None

    def project_ahead(self, partial: PartialClip) -> None:
        """Project a batch of the frames decoded so far, if there is a full batch."""
        if self._with_motion:  # motion energy needs later frames
            return
        with self._stopwatch.stage(Stage.features):
            if partial is not self._partial:  # the first frames, or those of a restarted decoder
                self._close()
                self._partial = partial
            size = self._frame_size.model_size(partial.video_size)
            start = self._projected
            stop = start + self._model.backbone.batch_size(size)
            if stop <= partial.count:
                projections = self._project(partial.read(start, stop), size)
                if self._early_keys is None:
                    row_shape = projections.keys.shape[1:]
                    self._early_keys = Spool(self._work, row_shape=row_shape, dtype=np.float32, name="keys.spool")
                self._early_keys.append(projections.keys.cpu().numpy())

    def project(self, frames: NDArray[np.uint8], size: tuple[int, int], key_frame_indices: list[int]) -> Features:
        """Project the remaining frames; returns the features of all frames.

        Args:
            frames: All frames of the clip, (T, H, W, 3).
            size: Model input resolution (H, W).
            key_frame_indices: Ascending.
        """
        early, total = self._projected, len(frames)
        batch, grid = self._model.backbone.batch_size(size), self._model.backbone.grid(size)
        self._on_progress(early, total)
        energy: NDArray[np.float32] | None = None
        motion: list[NDArray[Any]] = []
        if self._with_motion:
            energy = motion_energy(frames, grid, on_progress=lambda *_: self._on_progress(early, total))
            motion = [energy, movers(energy)]
        keys = [self._early_key(index) for index in key_frame_indices if index < early]
        for start in range(early, total, batch):
            self._on_progress(start, total)
            stop = min(start + batch, total)
            projections = self._project(frames[start:stop], size, [values[start:stop] for values in motion])
            keys += [projections.keys[index - start] for index in key_frame_indices if start <= index < stop]
        self._on_progress(total, total)
        if self._early_keys is not None:
            self._early_keys.close()
        assert self._queries is not None
        return Features(self._queries, torch.cat(keys), energy)

    @property
    def _projected(self) -> int:
        """Number of frames projected so far."""
        return 0 if self._queries is None else len(self._queries)

    def _project(
        self, frames: NDArray[np.uint8], size: tuple[int, int], motion: Sequence[NDArray[Any]] = ()
    ) -> Projections:
        """Queries and keys of a batch; the queries are also written to disk."""
        backbone = self._model.backbone
        projections = backbone.project(_to_device(frames, backbone.device), size=size)
        if motion:
            energy, mover = (torch.from_numpy(values).flatten(1).to(backbone.device) for values in motion)
            projections = Projections(*join_motion(projections.queries, projections.keys, energy, mover))
        if self._queries is None:
            dtype = np.uint16 if self._as_bfloat16 else np.float32
            row_shape = projections.queries.shape[1:]
            self._queries = Spool(self._work, row_shape=row_shape, dtype=dtype, name="queries.spool")
        self._queries.append(_to_numpy(projections.queries, self._as_bfloat16))
        return projections

    def _early_key(self, frame_index: int) -> Tensor:
        """Keys of one frame that was projected ahead, (N, heads, d)."""
        assert self._early_keys is not None
        keys = self._early_keys.read(frame_index, frame_index + 1)[0]
        return torch.from_numpy(keys).to(self._model.backbone.device)


def _to_device(frames: NDArray[np.uint8], device: torch.device) -> Tensor:
    batch = torch.from_numpy(np.array(frames))  # a copy: a memory map is read-only
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch


def _to_numpy(values: Tensor, as_bfloat16: bool) -> NDArray[np.generic]:
    """float32, or bfloat16 as uint16 bits, since NumPy has no bfloat16."""
    if as_bfloat16:
        values = values.to(torch.bfloat16).view(torch.uint16)
    array: NDArray[np.generic] = (values if as_bfloat16 else values.float()).cpu().numpy()
    return array
