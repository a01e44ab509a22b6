"""Decode videos into one file of frames with random access by NumPy alone.

The file holds two NumPy arrays in sequence: `starts` (index of each clip's first frame) and `frames`
(n, H, W, 3) uint8. The frames are memory-mapped.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FrameStore:
    """Clips of frames of one size.

    Attributes:
        starts: Index of each clip's first frame, ascending, int64, shape (clips,).
        frames: RGB, uint8, shape (n, H, W, 3).
    """

    starts: NDArray[np.int64]
    frames: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3:
            raise ValueError(f"expected frames of shape (n, H, W, 3), got {self.frames.shape}")
        if len(self.starts) < 1 or self.starts[0] != 0 or self.starts[-1] >= len(self.frames):
            raise ValueError(f"clips start outside of {len(self.frames)} frames: {self.starts}")

    @property
    def clips(self) -> list[range]:
        """The frames of each clip."""
        stops = [*self.starts[1:], len(self.frames)]
        return [range(int(start), int(stop)) for start, stop in zip(self.starts, stops, strict=True)]


def read_store(path: Path) -> FrameStore:
    """Memory-map a file of frames.

    Raises:
        ValueError: The file is not a frame store.
    """
    with path.open("rb") as file:
        starts = np.lib.format.read_array(file)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{path} is not a frame store; make one with `uvos-worker train frames`")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        offset = file.seek(0, os.SEEK_CUR)
    return FrameStore(starts, np.memmap(path, dtype, "r", offset, shape))


def write_store(path: Path, clips: list[NDArray[np.uint8]]) -> None:
    """Write clips, each (n, H, W, 3) of the same (H, W), to one file."""
    starts = np.cumsum([0, *(len(clip) for clip in clips[:-1])]).astype(np.int64)
    with path.open("wb") as file:
        np.lib.format.write_array(file, starts, version=(1, 0))
        shape = (sum(len(clip) for clip in clips), *clips[0].shape[1:])
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for clip in clips:
            file.write(np.ascontiguousarray(clip).tobytes())


def store_videos(
    videos: list[Path],
    path: Path,
    *,
    size: tuple[int, int],
    fps: float,
    most_frames: int,
    on_video: Callable[[Path, int], None] | None = None,
) -> None:
    """Decode videos, scale and crop each frame to (H, W) around its centre, and write them to one file.

    Args:
        videos: Files in formats that PyAV decodes.
        path: The file to write.
        size: (H, W) in pixels.
        fps: Frames kept per second, at most.
        most_frames: Frames kept per video, from its beginning, at most.
        on_video: Called with each video and the number of its frames.
    """
    clips = []
    for video in videos:
        frames = list(_frames(video, size, fps, most_frames))
        if on_video is not None:
            on_video(video, len(frames))
        if frames:
            clips.append(np.stack(frames))
    write_store(path, clips)


def _frames(video: Path, size: tuple[int, int], fps: float, most_frames: int) -> Iterator[NDArray[np.uint8]]:
    import av  # imported here: a GPU machine reads frame stores without it
    import cv2

    with av.open(str(video), options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        due, count = 0.0, 0
        for frame in container.decode(stream):
            if frame.time is not None and frame.time + 1e-6 < due:
                continue
            due = (frame.time or 0.0) + 0.999 / fps
            scale = max(size[0] / frame.height, size[1] / frame.width)
            height, width = max(size[0], round(scale * frame.height)), max(size[1], round(scale * frame.width))
            picture = cv2.resize(frame.to_ndarray(format="rgb24"), (width, height), interpolation=cv2.INTER_AREA)
            top, left = (height - size[0]) // 2, (width - size[1]) // 2
            yield picture[top : top + size[0], left : left + size[1]]
            count += 1
            if count == most_frames:
                return
