"""Files with pixels of the video, decoded with av: what lies outside of objects is transparent."""

import io
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.rendering.overlay import spread
from service.rendering.products import GIF_FRAMES, gif_frames
from tests.videos import Shape, make_scene, write_video
from uvos.client import Client, Result
from uvos.palette import object_colors

FRAMES, HEIGHT, WIDTH = 6, 96, 128


@pytest.fixture(scope="module")
def result(service_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Result]:
    scene = make_scene([Shape("disc", 48, (48, 30), (0, 8)), Shape("square", 30, (48, 100))], frames=FRAMES)
    video = write_video(tmp_path_factory.mktemp("video") / "clip.mp4", scene.frames, fps=10)
    with Client(service_url) as client:
        yield client.segment(video, tau=0.2, background="keep")


def fetch(service_url: str, link: str | None, **headers: str) -> httpx.Response:
    assert link is not None
    response = httpx.get(service_url + link, headers=headers, timeout=60)
    assert response.status_code in (200, 206, 304), response.text
    return response


def rgba(video: bytes, decoder: str | None = None) -> tuple[NDArray[np.uint8], list[float]]:
    """Frames, (T, H, W, 4), and their times; libav's own VP9 decoder ignores alpha."""
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        if decoder is None:
            frames = list(container.decode(stream))
        else:
            codec = av.CodecContext.create(decoder, "r")
            packets = list(container.demux(stream))
            frames = [frame for packet in packets for frame in codec.decode(packet)]
        times = [float(frame.pts * stream.time_base) for frame in frames]
        return np.stack([frame.reformat(format="rgba").to_ndarray() for frame in frames]), times


@pytest.mark.parametrize(("link", "decoder"), [("cutout_webm", "libvpx-vp9"), ("cutout_mov", None)])
def test_a_cutout_is_opaque_inside_and_transparent_outside(
    service_url: str, result: Result, link: str, decoder: str | None
) -> None:
    (level,) = result.job.links.levels
    masks = result.masks()
    response = fetch(service_url, f"{getattr(level, link)}&object=1")
    frames, times = rgba(response.content, decoder)
    assert frames.shape == (FRAMES, HEIGHT, WIDTH, 4)
    np.testing.assert_allclose(times, np.arange(FRAMES) / 10, atol=2e-3)
    for frame, mask in zip(frames, masks == 1, strict=True):
        inner, outer = spread(mask, 2, np.minimum), spread(mask, 2, np.maximum)
        assert inner.any()
        assert frame[..., 3][inner].min() > 240
        assert frame[..., 3][~outer].max() < 16
    source, _ = rgba(fetch(service_url, result.job.links.source).content)
    inside = spread(masks[0] == 1, 3, np.minimum)
    assert np.abs(frames[0, inside, :3].astype(int) - source[0, inside, :3]).mean() < 12


def test_without_object_all_shown_objects_are_cut_out(service_url: str, result: Result) -> None:
    (level,) = result.job.links.levels
    httpx.patch(service_url + (level.objects or ""), json={"operations": [{"op": "only", "ids": [2]}]}, timeout=30)
    try:
        frames, _ = rgba(fetch(service_url, level.cutout_mov).content)
        refused = httpx.get(f"{service_url}{level.cutout_mov}&object=1", timeout=30)
        overlay, _ = rgba(fetch(service_url, level.overlay).content)
    finally:
        httpx.patch(service_url + (level.objects or ""), json={"operations": [{"op": "reset"}]}, timeout=30)
    assert ((frames[0, ..., 3] > 128) == (result.masks()[0] == 2)).mean() > 0.99
    assert "this level shows no object 1: it shows 2" in refused.json()["detail"]
    inside = spread(result.masks()[0] == 2, 4, np.minimum)
    source, _ = rgba(fetch(service_url, result.job.links.source).content)
    expected = (source[0, inside, :3].astype(int) + object_colors(3)[2]) / 2
    np.testing.assert_allclose(overlay[0, inside, :3].mean(0), expected.mean(0), atol=8)
    outside = ~spread(result.masks()[0] == 2, 4, np.maximum)
    assert np.abs(overlay[0, outside, :3].astype(int) - source[0, outside, :3]).mean() < 6


def test_a_preview_is_an_animated_gif(service_url: str, result: Result) -> None:
    (level,) = result.job.links.levels
    response = fetch(service_url, level.preview_gif)
    assert response.headers["content-type"] == "image/gif"
    picture = Image.open(io.BytesIO(response.content))
    assert (picture.format, picture.size, picture.info["loop"]) == ("GIF", (WIDTH, HEIGHT), 0)
    assert picture.n_frames == FRAMES
    assert picture.info["duration"] == 100


def test_a_file_is_rendered_once_and_removed_with_the_job(service_url: str, service_data: Path, result: Result) -> None:
    (level,) = result.job.links.levels
    folder = service_data / "jobs" / result.job.id / "renders"
    first = fetch(service_url, level.cutout_webm)
    written = {path: path.stat().st_ino for path in folder.iterdir()}
    tag = first.headers["etag"]
    assert fetch(service_url, level.cutout_webm, **{"If-None-Match": tag}).status_code == 304
    part = fetch(service_url, level.cutout_webm, Range="bytes=4-7", **{"If-Range": tag})
    assert (part.status_code, part.content) == (206, first.content[4:8])
    assert {path: path.stat().st_ino for path in folder.iterdir()} == written
    httpx.delete(service_url + result.job.links.self)
    assert not folder.exists()


def test_a_preview_has_a_bounded_number_of_frames() -> None:
    assert gif_frames([0.0]) == {0}
    assert len(gif_frames([index / 60 for index in range(3000)])) == GIF_FRAMES
    assert gif_frames([index / 60 for index in range(61)]) == set(range(0, 61, 6)) | {60}
