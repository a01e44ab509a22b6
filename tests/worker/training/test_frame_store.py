"""Frames come back from the file as they went in, clip by clip."""

from pathlib import Path

import numpy as np
import pytest

from tests.videos import write_video
from worker.training.frame_store import Pack, pack_videos, read_pack, write_pack


def test_frames_and_clips_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 256, (count, 16, 24, 3)).astype(np.uint8) for count in (3, 1, 4)]
    write_pack(tmp_path / "frames.pack", clips)
    pack = read_pack(tmp_path / "frames.pack")
    assert [list(clip) for clip in pack.clips] == [[0, 1, 2], [3], [4, 5, 6, 7]]
    np.testing.assert_array_equal(pack.frames, np.concatenate(clips))
    assert isinstance(pack.frames, np.memmap)


def test_another_file_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"no pack at all")
    with pytest.raises(ValueError, match="magic"):
        read_pack(tmp_path / "text")


def test_clips_start_inside_the_frames() -> None:
    with pytest.raises(ValueError, match="clips start"):
        Pack(np.array([0, 5]), np.zeros((4, 8, 8, 3), np.uint8))


def test_videos_are_thinned_and_cropped_to_the_middle(tmp_path: Path) -> None:
    frames = np.zeros((10, 64, 96, 3), np.uint8)
    frames[:, :, 32:64] = 200  # the middle third
    write_video(tmp_path / "clip.mp4", frames, fps=25)
    told: list[int] = []
    pack_videos(
        [tmp_path / "clip.mp4"],
        tmp_path / "frames.pack",
        size=(64, 32),
        fps=12.5,
        most_frames=100,
        on_video=lambda _, count: told.append(count),
    )
    pack = read_pack(tmp_path / "frames.pack")
    assert told == [5]
    assert pack.frames.shape == (5, 64, 32, 3)
    assert pack.frames[:, :, 4:-4].min() > 150
