"""Overlays are videos for browsers: the frames at their times with coloured objects."""

import av
import numpy as np
import pytest

from service.rendering.overlay import blend, strip
from service.rendering.video import H264, VideoWriter
from uvos.palette import object_colors


def grey(height: int, width: int, value: int = 200) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def a_square(height: int, width: int, at: int, label: int = 1) -> np.ndarray:
    label_map = np.zeros((height, width), np.uint16)
    label_map[at : at + 20, at : at + 20] = label
    return label_map


def write(path, frames, label_maps, times):
    with VideoWriter(path, label_maps[0].shape, times, H264.with_options(crf="21")) as writer:
        for frame, label_map in zip(frames, label_maps, strict=True):
            writer.write(blend(frame, label_map))


def read(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return container.streams.video[0], [frame.time for frame in frames], [frame.to_ndarray() for frame in frames]


def test_an_object_is_tinted_and_outlined_and_background_is_unchanged():
    label_map = a_square(60, 80, at=10, label=3)
    blended = blend(grey(60, 80), label_map)
    np.testing.assert_array_equal(blended[label_map == 0], 200)
    np.testing.assert_allclose(blended[20, 20], (200 + object_colors(4)[3].astype(int)) / 2, atol=0.5)
    np.testing.assert_array_equal(blended[10, 10:30], object_colors(4)[[3] * 20])


def test_neighbouring_objects_are_separated_by_their_outlines():
    label_map = np.ones((40, 40), np.uint16)
    label_map[:, 20:] = 2
    blended = blend(grey(40, 40), label_map)
    assert (blended[20, 19] != blended[20, 10]).any()
    assert (blended[20, 20] != blended[20, 30]).any()


def test_a_smaller_frame_is_scaled_to_its_label_map():
    assert blend(grey(30, 40), a_square(60, 80, at=10)).shape == (60, 80, 3)


@pytest.mark.parametrize("size", [(60, 80), (61, 81), (1, 1), (33, 64)])
def test_every_size_is_encoded(tmp_path, size):
    label_maps = [a_square(*size, at=at) for at in range(3)]
    write(tmp_path / "overlay.mp4", [grey(*size)] * 3, label_maps, [0, 0.1, 0.2])
    stream, _, pictures = read(tmp_path / "overlay.mp4")
    assert (stream.height, stream.width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert len(pictures) == 3


def test_frames_keep_their_time_differences(tmp_path):
    times = [2.0, 2.04, 2.1, 2.5, 2.5001, 4.0]
    write(tmp_path / "overlay.mp4", [grey(60, 80)] * 6, [a_square(60, 80, at=at) for at in range(6)], times)
    _, read_times, _ = read(tmp_path / "overlay.mp4")
    np.testing.assert_allclose(read_times, np.array(times) - 2, atol=1e-4)


def test_frames_with_equal_times_are_all_kept(tmp_path):
    write(tmp_path / "overlay.mp4", [grey(60, 80)] * 4, [a_square(60, 80, at=at) for at in range(4)], [0, 0, 0, 0.1])
    assert len(read(tmp_path / "overlay.mp4")[1]) == 4


def test_a_single_frame_is_a_valid_video(tmp_path):
    write(tmp_path / "overlay.mp4", [grey(60, 80)], [a_square(60, 80, at=3)], [0.0])
    stream, _, pictures = read(tmp_path / "overlay.mp4")
    assert len(pictures) == 1
    assert stream.duration > 0


def test_the_index_precedes_the_data_so_that_browsers_can_stream(tmp_path):
    path = tmp_path / "overlay.mp4"
    write(path, [grey(60, 80)] * 3, [a_square(60, 80, at=at) for at in range(3)], [0, 0.04, 0.08])
    stream, _, _ = read(path)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    written = path.read_bytes()
    assert written.index(b"moov") < written.index(b"mdat")


def test_colours_survive_the_encoding(tmp_path):
    label_map = a_square(64, 64, at=20, label=2)
    write(tmp_path / "overlay.mp4", [grey(64, 64)] * 2, [label_map] * 2, [0, 0.04])
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    np.testing.assert_allclose(picture[30, 30], (200 + object_colors(3)[2].astype(int)) // 2, atol=6)
    np.testing.assert_allclose(picture[5, 5], 200, atol=4)


def test_a_strip_shows_each_frame_above_its_objects():
    label_map = a_square(60, 80, at=10)
    picture = strip([grey(60, 80)] * 3, [label_map] * 3, width=300, gap=6)
    assert picture.size == (300, 2 * 72 + 6)
    pixels = np.array(picture)
    assert (pixels[:72, :96] == 200).all()
    assert (pixels[78:, :96] != 200).any()
