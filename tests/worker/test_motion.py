"""What moves otherwise than the camera is found; what joins the tokens is the formula, exactly."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from worker.clip import PatchGrid
from worker.motion import _Camera, join_motion, motion_energy

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


def test_only_what_moves_otherwise_than_the_camera_has_energy() -> None:
    clip, masks = scene(9, camera=3, speed=4)
    energy = motion_energy(clip, GRID)
    inside = masks.reshape(9, 12, 8, 24, 8).mean((2, 4))
    assert energy.shape == (9, 12, 24)
    assert np.quantile(energy[inside > 0.9], 0.1) > 0.7
    assert np.quantile(energy[inside == 0], 0.95) < 0.3


def test_a_scene_at_rest_and_a_single_frame_have_none() -> None:
    clip, _ = scene(4, camera=0, speed=0)
    assert motion_energy(clip, GRID).max() < 0.1
    assert motion_energy(clip[:1], GRID).max() == 0


def test_motion_of_everything_counts_for_nothing() -> None:
    clip = np.stack([noise(seed, SIZE) for seed in range(6)])
    assert motion_energy(clip, GRID).mean() < 0.05


def test_the_size_of_the_frames_may_be_any() -> None:
    clip, _ = scene(5, camera=0, speed=4)
    large = clip.repeat(2, 1).repeat(2, 2)[:, 4:-4]
    energy = motion_energy(large, GRID)
    assert energy.shape == (5, 12, 24)
    assert energy[2, 4:7].max() > 0.7


def test_progress_counts_every_frame() -> None:
    clip, _ = scene(4, camera=0, speed=4)
    told: list[tuple[int, int]] = []
    motion_energy(clip, GRID, on_progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_camera_explains_planar_motion_of_second_order() -> None:
    rows, columns = np.mgrid[:12, :24].astype(np.float64)
    x, y = (columns - 11.5) / 12, (rows - 5.5) / 12
    flow = np.stack([1 + 2 * x - y + 0.5 * x * x + 0.2 * x * y, -2 + x + 3 * y + 0.5 * x * y + 0.2 * y * y], -1)
    flow[4:7, 8:12] += 5
    left = _Camera(GRID).residual(flow.astype(np.float32))
    assert left[4:7, 8:12].min() > 5
    left[4:7, 8:12] = 0
    assert left.max() < 0.2


def test_joined_logits_are_the_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    queries, keys = torch.randn(2, 2, 5, 3, 6, generator=generator, dtype=torch.float64).unbind(0)
    motion = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    asks, is_asked = join_motion(queries, keys, motion, strength=7.0, yielding=0.6)
    logits = torch.einsum("bihd,bjhd->bhij", asks, is_asked) / asks.shape[-1] ** 0.5
    looks = torch.einsum("bihd,bjhd->bhij", queries, keys) / 6**0.5
    m = motion[:, None]
    wanted = (1 - 0.6 * m[..., None]) * looks - 7.0 * (m[..., None] - m[..., None, :]) ** 2
    torch.testing.assert_close(torch.softmax(logits, -1), torch.softmax(wanted, -1))


def test_without_motion_nothing_changes() -> None:
    queries, keys = torch.randn(2, 1, 5, 3, 6, generator=torch.Generator().manual_seed(4)).unbind(0)
    asks, is_asked = join_motion(queries, keys, torch.zeros(1, 5))
    logits = torch.einsum("bihd,bjhd->bhij", asks, is_asked) / asks.shape[-1] ** 0.5
    torch.testing.assert_close(logits, torch.einsum("bihd,bjhd->bhij", queries, keys) / 6**0.5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        join_motion(torch.zeros(1, 5, 3, 6), torch.zeros(1, 5, 3, 6), torch.zeros(1, 4))
