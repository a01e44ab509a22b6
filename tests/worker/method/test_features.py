"""Features of every affinity equal a direct computation on all frames, also where frames were projected ahead."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.videos import Shape, make_scene
from tests.worker.jobs.stub import ColorBackbone, stub_model
from uvos.contract import Affinity, JobParams, Motion
from worker.method.affinity import SpectralEmbedding
from worker.method.features import FeatureProjector, Features
from worker.method.motion import join_motion, motion_energy, movers
from worker.stopwatch import Stopwatch
from worker.video.decode import FrameSize

FRAMES = make_scene([Shape("square", 32, (48, 40), (0, 4))], frames=8, texture=4).frames
SIZE = (FRAMES.shape[1], FRAMES.shape[2])
KEY_FRAMES = [0, 2, 5]


@dataclass
class Decoded:
    """The first frames of the clip, as the decoder hands them over."""

    count: int
    video_size: tuple[int, int] = SIZE

    def read(self, start: int, stop: int) -> np.ndarray:
        return FRAMES[start:stop]


@contextmanager
def project(folder: Path, affinity: Affinity, motion: Motion, ahead: tuple[int, ...] = ()) -> Iterator[Features]:
    folder.mkdir()
    params = JobParams(tau=[1.0], model="stub", motion=motion, affinity=affinity)
    frame_size = FrameSize(short_side=min(SIZE), patch=8, resolution=f"{SIZE[0]}x{SIZE[1]}")
    projector = FeatureProjector(
        stub_model(), params, frame_size, work=folder, stopwatch=Stopwatch(), on_progress=lambda *_: None
    )
    with projector:
        partial = Decoded(0)
        for count in ahead:
            partial.count = count
            projector.project_ahead(partial)  # type: ignore[arg-type]
        yield projector.project(FRAMES, SIZE, KEY_FRAMES)


@pytest.mark.parametrize("motion", Motion)
@pytest.mark.parametrize("affinity", Affinity)
def test_features_equal_the_direct_computation(tmp_path: Path, affinity: Affinity, motion: Motion) -> None:
    backbone = ColorBackbone()
    plain = backbone.project(torch.from_numpy(FRAMES))
    queries, keys = plain.queries, plain.keys
    if affinity is Affinity.keys:
        rows = keys.flatten(2)
        unit = F.normalize(rows - rows[KEY_FRAMES].reshape(-1, rows.shape[-1]).mean(0), dim=-1)
        queries, keys = 10 * rows.shape[-1] ** 0.5 * unit[:, :, None], unit[:, :, None]
    elif affinity is Affinity.spectral:
        queries, keys = SpectralEmbedding.fit(keys[KEY_FRAMES].flatten(0, 1)).project(keys)
    if motion is Motion.on:
        energy = motion_energy(FRAMES, backbone.grid(SIZE))
        both = (torch.from_numpy(values).flatten(1) for values in (energy, movers(energy)))
        queries, keys = join_motion(queries, keys, *both)
    for ahead in ((), (1, 3, 4, 7)):
        with project(tmp_path / f"{len(ahead)}", affinity, motion, ahead) as features:
            found = torch.from_numpy(np.array(features.queries.read(0, len(FRAMES))))
            torch.testing.assert_close(found, queries, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(features.keys, keys[KEY_FRAMES].flatten(0, 1), atol=1e-5, rtol=1e-5)
            assert (features.motion is None) == (motion is Motion.off)
