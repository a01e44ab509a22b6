"""Motion relative to the camera is measured; joined logits equal the documented formula."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.method import motion
from worker.method.motion import MOVERS, CameraModel, join_motion, motion_energy, movers
from worker.video.clip import PatchGrid

GRID = PatchGrid(12, 24)
SIZE = (96, 192)


def noise(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Texture with structure at several scales, so that flow is defined everywhere."""
    rng = np.random.default_rng(seed)
    texture = np.zeros((*size, 3))
    for cell in (4, 8, 16):
        coarse = rng.normal(size=(size[0] // cell + 1, size[1] // cell + 1, 3))
        texture += np.kron(coarse, np.ones((cell, cell, 1)))[: size[0], : size[1]]
    return np.clip(128 + 30 * texture, 0, 255).astype(np.uint8)


def scene(frames: int, camera: float, speed: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A square of 24 pixels that moves by `speed` pixels a frame over ground that moves by `camera`."""
    ground, square = noise(1, (96, 320)), noise(2, (24, 24))
    clip, masks = np.zeros((frames, *SIZE, 3), np.uint8), np.zeros((frames, *SIZE), bool)
    for index in range(frames):
        left = round(60 + camera * index)
        clip[index] = ground[:, left : left + SIZE[1]]
        at = round(40 + speed * index)
        clip[index, 36:60, at : at + 24] = square
        masks[index, 36:60, at : at + 24] = True
    return clip, masks


def test_only_motion_relative_to_the_camera_has_energy() -> None:
    clip, masks = scene(9, camera=3, speed=4)
    energy = motion_energy(clip, GRID)
    inside = masks.reshape(9, 12, 8, 24, 8).mean((2, 4))
    assert energy.shape == (9, 12, 24)
    assert np.quantile(energy[inside > 0.9], 0.1) > 0.7
    assert np.quantile(energy[inside == 0], 0.95) < 0.3


def test_a_static_scene_and_a_single_frame_have_no_energy() -> None:
    clip, _ = scene(4, camera=0, speed=0)
    assert motion_energy(clip, GRID).max() < 0.1
    assert motion_energy(clip[:1], GRID).max() == 0


def test_motion_of_the_whole_frame_has_no_energy() -> None:
    clip = np.stack([noise(seed, SIZE) for seed in range(6)])
    assert motion_energy(clip, GRID).mean() < 0.05


def test_frames_of_any_size_are_supported() -> None:
    clip, _ = scene(5, camera=0, speed=4)
    large = clip.repeat(2, 1).repeat(2, 2)[:, 4:-4]
    energy = motion_energy(large, GRID)
    assert energy.shape == (5, 12, 24)
    assert energy[2, 4:7].max() > 0.7


def test_progress_is_reported_after_every_run_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "RUN", 2)
    clip, _ = scene(5, camera=0, speed=4)
    reports: list[tuple[int, int]] = []
    motion_energy(clip, GRID, on_progress=lambda done, total: reports.append((done, total)))
    assert reports == [(2, 5), (4, 5), (5, 5)]


def test_the_length_of_runs_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, _ = scene(7, camera=1, speed=4)
    energies = []
    for length in (1, 3, 100):
        monkeypatch.setattr(motion, "RUN", length)
        energies.append(motion_energy(clip, GRID))
    np.testing.assert_array_equal(energies[0], energies[2])
    np.testing.assert_array_equal(energies[1], energies[2])


class SlowFrames(Sequence[NDArray[np.uint8]]):
    """Frames that take 10 ms each to read; counts the reads."""

    def __init__(self, frames: NDArray[np.uint8]) -> None:
        self.frames, self.reads = frames, 0

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        time.sleep(0.01)
        return self.frames[index]


def test_an_exception_of_the_progress_callback_cancels_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: int) -> None:
        raise InterruptedError

    monkeypatch.setattr(motion, "RUN", 1)
    monkeypatch.setattr(motion, "MAX_THREADS", 2)
    frames = SlowFrames(scene(60, camera=0, speed=0)[0])
    with pytest.raises(InterruptedError):
        motion_energy(frames, GRID, on_progress=stop)  # type: ignore[arg-type]
    assert frames.reads < 60


def test_the_camera_model_fits_planar_motion_of_second_order() -> None:
    rows, columns = np.mgrid[:12, :24].astype(np.float64)
    x, y = (columns - 11.5) / 12, (rows - 5.5) / 12
    flow = np.stack([1 + 2 * x - y + 0.5 * x * x + 0.2 * x * y, -2 + x + 3 * y + 0.5 * x * y + 0.2 * y * y], -1)
    flow[4:7, 8:12] += 5
    residual = CameraModel(GRID).residual(flow.astype(np.float32))
    assert residual[4:7, 8:12].min() > 5
    residual[4:7, 8:12] = 0
    assert residual.max() < 0.2


def moving(frames: int, *boxes: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Energy of 1 in squares of 3x3 patches, 0.3 around them; a box is (first frame, last frame, row, column)."""
    energy = np.zeros((frames, 12, 24), np.float32)
    for first, last, row, column in boxes:
        rim = energy[first : last + 1, row - 1 : row + 4, column - 1 : column + 4]
        np.maximum(rim, 0.3, out=rim)
        energy[first : last + 1, row : row + 3, column : column + 3] = 1
    return energy


def test_two_simultaneous_objects_are_two_movers_with_their_surroundings() -> None:
    indices = movers(moving(6, (0, 5, 2, 3), (0, 5, 7, 15)))
    assert set(indices[:, 1:6, 2:7].ravel()) == {0}
    assert set(indices[:, 6:11, 14:19].ravel()) == {1}


def test_an_object_that_was_hidden_for_a_while_is_one_mover() -> None:
    assert movers(moving(12, (0, 3, 2, 3), (7, 11, 2, 15))).max() == 0
    assert movers(moving(12, (0, 6, 2, 3), (5, 11, 2, 15))).max() == 0  # visible on both sides of a tree


def test_objects_that_touch_in_any_frame_are_one_mover() -> None:
    energy = moving(6, (0, 5, 2, 3), (0, 5, 2, 9))
    assert movers(energy).max() == 1
    energy[3, 3, 5:10] = 1
    assert movers(energy).max() == 0


def test_beyond_the_maximum_the_lightest_movers_share_an_index() -> None:
    indices = movers(moving(6, (0, 5, 1, 3), (0, 5, 6, 9), (0, 5, 1, 15), (0, 4, 6, 20)))
    assert MOVERS == 3
    assert len({int(indices[0, row, column]) for row, column in ((1, 3), (6, 9), (1, 15))}) == 3


def test_without_moving_patches_there_is_a_single_mover() -> None:
    assert movers(np.full((3, 12, 24), 0.4, np.float32)).max() == 0


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strength=st.floats(0, 20), yielding=st.floats(0, 1))
def test_joined_logits_equal_the_formula(seed: int, strength: float, yielding: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, keys = torch.randn(2, 2, 5, 3, 6, generator=generator, dtype=torch.float64).unbind(0)
    motion = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    mover = torch.randint(MOVERS, (2, 5), generator=generator)
    joined_queries, joined_keys = join_motion(queries, keys, motion, mover, strength=strength, yielding=yielding)
    logits = torch.einsum("bihd,bjhd->bhij", joined_queries, joined_keys) / joined_queries.shape[-1] ** 0.5
    appearance = torch.einsum("bihd,bjhd->bhij", queries, keys) / 6**0.5
    m, same = motion[:, None], (mover[:, None, :, None] == mover[:, None, None, :])
    between = torch.where(same, (m[..., None] - m[..., None, :]) ** 2, m[..., None] ** 2 + m[..., None, :] ** 2)
    expected = (1 - yielding * m[..., None]) * appearance - strength * between
    torch.testing.assert_close(torch.softmax(logits, -1), torch.softmax(expected, -1))


def test_two_movers_of_equal_appearance_stay_separate_and_parts_of_one_do_not() -> None:
    alike = torch.ones(1, 4, 1, 6)
    joined_queries, joined_keys = join_motion(
        alike, alike, torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[0, 0, 1, 0]])
    )
    attention = torch.softmax(
        torch.einsum("bihd,bjhd->bhij", joined_queries, joined_keys) / joined_queries.shape[-1] ** 0.5, -1
    )[0, 0]
    torch.testing.assert_close(attention[0, :2], torch.full((2,), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(attention[2], torch.tensor([0.0, 0, 1, 0]), atol=1e-3, rtol=0)


def test_without_motion_nothing_changes() -> None:
    queries, keys = torch.randn(2, 1, 5, 3, 6, generator=torch.Generator().manual_seed(4)).unbind(0)
    joined_queries, joined_keys = join_motion(queries, keys, torch.zeros(1, 5), torch.arange(5)[None] % MOVERS)
    logits = torch.einsum("bihd,bjhd->bhij", joined_queries, joined_keys) / joined_queries.shape[-1] ** 0.5
    torch.testing.assert_close(logits, torch.einsum("bihd,bjhd->bhij", queries, keys) / 6**0.5)


def test_mismatched_shapes_are_rejected() -> None:
    tokens = torch.zeros(1, 5, 3, 6)
    with pytest.raises(ValueError, match="expected"):
        join_motion(tokens, tokens, torch.zeros(1, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="expected"):
        join_motion(tokens, tokens, torch.zeros(1, 5), torch.zeros(1, 4))
