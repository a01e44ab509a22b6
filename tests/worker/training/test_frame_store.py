"""Frames are read back as they were written, clip by clip."""

from pathlib import Path

import numpy as np
import pytest

from tests.videos import write_video
from worker.training.frame_store import FrameStore, read_store, store_videos, write_store


def test_frames_and_clips_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 256, (count, 16, 24, 3)).astype(np.uint8) for count in (3, 1, 4)]
    write_store(tmp_path / "frames.store", clips)
    store = read_store(tmp_path / "frames.store")
    assert [list(clip) for clip in store.clips] == [[0, 1, 2], [3], [4, 5, 6, 7]]
    np.testing.assert_array_equal(store.frames, np.concatenate(clips))
    assert isinstance(store.frames, np.memmap)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"no frame store")
    with pytest.raises(ValueError, match="magic"):
        read_store(tmp_path / "text")


def test_clips_start_inside_the_frames() -> None:
    with pytest.raises(ValueError, match="clips start"):
        FrameStore(np.array([0, 5]), np.zeros((4, 8, 8, 3), np.uint8))


def test_videos_are_thinned_and_cropped_to_the_middle(tmp_path: Path) -> None:
    frames = np.zeros((10, 64, 96, 3), np.uint8)
    frames[:, :, 32:64] = 200  # the middle third
    write_video(tmp_path / "clip.mp4", frames, fps=25)
    frame_counts: list[int] = []
    store_videos(
        [tmp_path / "clip.mp4"],
        tmp_path / "frames.store",
        size=(64, 32),
        fps=12.5,
        most_frames=100,
        on_video=lambda _, count: frame_counts.append(count),
    )
    store = read_store(tmp_path / "frames.store")
    assert frame_counts == [5]
    assert store.frames.shape == (5, 64, 32, 3)
    assert store.frames[:, :, 4:-4].min() > 150
