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

from uvos.contract import JobParams, Motion, Stage
from worker.method.affinity import KEY_AFFINITIES, KeyAffinity
from worker.method.motion import join_motion, motion_energy, movers
from worker.method.object_scores import ObjectScores, object_scores
from worker.models.backbone import ObjectCues, Projections
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
    """Input of the attention maps and of the object scores.

    Attributes:
        queries: Queries of all frames on disk, one row per frame, (N, heads, d).
        keys: Keys of the key frames in memory, (K*N, heads, d).
        motion: Motion energy of each token, (T, h, w); None without motion.
        scores: Object scores of each token; None for models without object cues.
    """

    queries: Spool
    keys: Tensor
    motion: NDArray[np.float32] | None
    scores: ObjectScores | None


class FeatureProjector(AbstractContextManager["FeatureProjector"]):
    """Projects frames to queries and keys in batches, starting while later frames are being decoded.

    The key frames are known only when all frames are decoded; keys of frames that were projected before are kept on
    disk until then.

    Source: Section 3 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893). Motion is an addition (`motion.py`).

    Args:
        model: The loaded model.
        params: Motion and affinity.
        frame_size: Rule for the model input resolution.
        work: An existing folder for queries and keys.
        stopwatch: Time of projection is counted to the features stage.
        on_progress: Called with the stage (motion or features), its frames done and all frames; an exception it raises
            cancels the projection.
    """

    def __init__(
        self,
        model: LoadedModel,
        params: JobParams,
        frame_size: FrameSize,
        *,
        work: Path,
        stopwatch: Stopwatch,
        on_progress: Callable[[Stage, int, int | None], None],
    ) -> None:
        self._model, self._frame_size, self._work = model, frame_size, work
        self._with_motion = params.motion is Motion.on
        self._key_affinity = KEY_AFFINITIES.get(model.affinity(params.affinity))
        self._stopwatch, self._on_progress = stopwatch, on_progress
        self._as_bfloat16 = model.dtype == "bfloat16"
        self._partial: PartialClip | None = None
        self._queries: Spool | None = None
        self._keys: Spool | None = None
        self._cue_keys: Spool | None = None
        self._saliency: list[NDArray[np.float32]] = []

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for spool in (self._queries, self._keys, self._cue_keys):
            if spool is not None:
                spool.close()
        self._queries = self._keys = self._cue_keys = None
        self._saliency = []

    def project_ahead(self, partial: PartialClip) -> None:
        """Project a batch of the frames decoded so far, if there is a full batch."""
        if self._with_motion and self._key_affinity is None:  # motion energy needs later frames
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
                self._write_keys(projections.keys)
                if self._key_affinity is None:
                    self._write_queries(projections.queries)

    def project(self, frames: NDArray[np.uint8], size: tuple[int, int], key_frame_indices: list[int]) -> Features:
        """Project the remaining frames; returns the features of all frames.

        Args:
            frames: All frames of the clip, (T, H, W, 3).
            size: Model input resolution (H, W).
            key_frame_indices: Ascending.
        """
        total = len(frames)
        energy: NDArray[np.float32] | None = None
        motion: list[NDArray[Any]] = []
        if self._with_motion:
            grid = self._model.backbone.grid(size)
            with self._stopwatch.stage(Stage.motion):
                self._on_progress(Stage.motion, 0, total)
                energy = motion_energy(
                    frames, grid, on_progress=lambda done, total: self._on_progress(Stage.motion, done, total)
                )
            motion = [energy, movers(energy)]
        if self._key_affinity is None:
            keys = self._compare_queries_with_keys(frames, size, key_frame_indices, motion)
        else:
            keys = self._compare_keys(self._key_affinity, frames, size, key_frame_indices, motion)
        self._on_progress(Stage.features, total, total)
        scores = self._object_scores(size, energy)
        for spool in (self._keys, self._cue_keys):
            if spool is not None:
                spool.close()
        assert self._queries is not None
        return Features(self._queries, torch.cat(keys), energy, scores)

    def _compare_queries_with_keys(
        self, frames: NDArray[np.uint8], size: tuple[int, int], key_frame_indices: list[int], motion: list[NDArray[Any]]
    ) -> list[Tensor]:
        """Write the queries of the remaining frames; the keys of the key frames."""
        early, total, batch = self._projected, len(frames), self._model.backbone.batch_size(size)
        keys = [self._read_keys(index, index + 1)[0] for index in key_frame_indices if index < early]
        for start in range(early, total, batch):
            self._on_progress(Stage.features, start, total)
            stop = min(start + batch, total)
            projections = self._project(frames[start:stop], size)
            projections = self._join_motion(projections, [values[start:stop] for values in motion])
            self._write_queries(projections.queries)
            keys += [projections.keys[index - start] for index in key_frame_indices if start <= index < stop]
        return keys

    def _compare_keys(
        self,
        key_affinity: type[KeyAffinity],
        frames: NDArray[np.uint8],
        size: tuple[int, int],
        key_frame_indices: list[int],
        motion: list[NDArray[Any]],
    ) -> list[Tensor]:
        """Write the queries that the affinity makes of the keys of all frames; its keys of the key frames.

        It is fitted when all key frames are projected, so the keys of all frames are written first.
        """
        early, total, batch = self._projected, len(frames), self._model.backbone.batch_size(size)
        for start in range(early, total, batch):
            self._on_progress(Stage.features, start, total)
            self._write_keys(self._project(frames[start : start + batch], size).keys)
        affinity = key_affinity.fit(torch.cat([self._read_keys(index, index + 1)[0] for index in key_frame_indices]))
        keys: list[Tensor] = []
        for start in range(0, total, batch):
            self._on_progress(Stage.features, total, total)
            stop = min(start + batch, total)
            projections = Projections(*affinity.project(self._read_keys(start, stop)))
            projections = self._join_motion(projections, [values[start:stop] for values in motion])
            self._write_queries(projections.queries)
            keys += [projections.keys[index - start] for index in key_frame_indices if start <= index < stop]
        return keys

    @property
    def _projected(self) -> int:
        """Number of frames projected so far."""
        spool = self._queries if self._key_affinity is None else self._keys
        return 0 if spool is None else len(spool)

    def _project(self, frames: NDArray[np.uint8], size: tuple[int, int]) -> Projections:
        """Queries and keys of a batch; its object cues are kept for `_object_scores`."""
        backbone = self._model.backbone
        projections = backbone.project(_to_device(frames, backbone.device), size=size)
        if projections.cues is not None:
            self._write_cues(projections.cues)
        return projections

    def _join_motion(self, projections: Projections, motion: Sequence[NDArray[Any]]) -> Projections:
        if not motion:
            return projections
        energy, mover = (torch.from_numpy(values).flatten(1).to(self._model.backbone.device) for values in motion)
        return Projections(*join_motion(projections.queries, projections.keys, energy, mover))

    def _write_queries(self, queries: Tensor) -> None:
        if self._queries is None:
            dtype = np.uint16 if self._as_bfloat16 else np.float32
            self._queries = Spool(self._work, row_shape=queries.shape[1:], dtype=dtype, name="queries.spool")
        self._queries.append(_to_numpy(queries, self._as_bfloat16))

    def _write_keys(self, keys: Tensor) -> None:
        if self._keys is None:
            self._keys = Spool(self._work, row_shape=keys.shape[1:], dtype=np.float32, name="keys.spool")
        self._keys.append(keys.cpu().numpy())

    def _write_cues(self, cues: ObjectCues) -> None:
        if self._cue_keys is None:
            self._cue_keys = Spool(self._work, row_shape=cues.keys.shape[1:], dtype=np.float16, name="cue-keys.spool")
        self._cue_keys.append(cues.keys.half().cpu().numpy())
        self._saliency.append(cues.saliency.cpu().numpy())

    def _object_scores(self, size: tuple[int, int], energy: NDArray[np.float32] | None) -> ObjectScores | None:
        if self._cue_keys is None:
            return None
        grid, saliency = self._model.backbone.grid(size), np.concatenate(self._saliency)
        saliency = saliency.reshape(len(saliency), grid.height, grid.width, -1)
        return object_scores(self._cue_keys, saliency, energy)

    def _read_keys(self, start: int, stop: int) -> Tensor:
        """Keys of frames that were projected before, (stop - start, N, heads, d)."""
        assert self._keys is not None
        return torch.from_numpy(self._keys.read(start, stop)).to(self._model.backbone.device)


def _to_device(frames: NDArray[np.uint8], device: torch.device) -> Tensor:
    batch = torch.from_numpy(np.array(frames))  # a copy: a memory map is read-only
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch


def _to_numpy(values: Tensor, as_bfloat16: bool) -> NDArray[np.generic]:
    """float32, or bfloat16 as uint16 bits, since NumPy has no bfloat16."""
    if as_bfloat16:
        values = values.to(torch.bfloat16).view(torch.uint16)
    array: NDArray[np.generic] = (values if as_bfloat16 else values.float()).cpu().numpy()
    return array
