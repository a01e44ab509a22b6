"""From video to masks through the whole service: queue, API, worker, decoder, model."""

import io
import json
import re
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from tests.videos import Shape, make_scene, write_video
from uvos.client import Client
from uvos.contract import JobView, Status

CLIP = [Shape("disc", 40, (40, 20), (0, 6)), Shape("square", 32, (64, 90), (0, -2))]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "two shapes.mp4", make_scene(CLIP, frames=8).frames)


@pytest.fixture(scope="module")
def done(service_url: str, video: Path) -> JobView:
    """A job that has succeeded: two levels, every format."""
    with Client(service_url) as client:
        job = client.wait(client.submit(video, tau=[0.5, 2.0], format=["png", "rle", "overlay"]))
    assert job.status == Status.succeeded, job.error
    return job


def get(service_url: str, link: str | None) -> httpx.Response:
    assert link is not None
    response = httpx.get(service_url + link, timeout=30)
    assert response.status_code == 200, response.text
    return response


def test_a_succeeded_job_shows_progress_times_and_levels(done: JobView) -> None:
    assert (done.frames_done, done.frames_total, done.fraction) == (8, 8, 1.0)
    assert done.started_at is not None
    assert done.ended_at is not None
    assert done.created_at <= done.started_at <= done.ended_at < done.expires_at  # type: ignore[operator]
    assert [level.tau for level in done.links.levels] == [0.5, 2.0]


def test_png_and_rle_contain_the_same_masks(service_url: str, done: JobView) -> None:
    for level in done.links.levels:
        rle = get(service_url, level.rle).json()
        assert rle["size"] == [96, 128]
        assert [frame["index"] for frame in rle["frames"]] == list(range(8))
        archive = zipfile.ZipFile(io.BytesIO(get(service_url, level.masks_zip).content))
        assert archive.namelist() == [f"two shapes/{index:05d}.png" for index in range(8)]
        for frame in rle["frames"]:
            png = Image.open(io.BytesIO(archive.read(f"two shapes/{frame['index']:05d}.png")))
            assert png.mode == "P"
            labels = np.asarray(png)
            from_rle = np.zeros_like(labels)
            for item in frame["objects"]:
                from_rle[coco.decode(item["rle"]).astype(bool)] = item["id"]
            np.testing.assert_array_equal(labels, from_rle)
            assert level.mask is not None
            single = get(service_url, level.mask.replace("{frame}", str(frame["index"]))).content
            assert single == archive.read(f"two shapes/{frame['index']:05d}.png")


def test_the_first_level_is_the_default(service_url: str, done: JobView) -> None:
    base = f"/jobs/{done.id}/rle.json"
    assert get(service_url, base).content == get(service_url, base + "?tau=0.5").content


def test_the_manifest_reproduces_the_result(service_url: str, done: JobView) -> None:
    manifest = get(service_url, done.links.manifest).json()
    assert manifest["job_id"] == done.id
    assert manifest["video"]["sha256"] == done.video.sha256
    assert manifest["video"]["frame_count"] == len(manifest["video"]["pts_s"]) == 8
    assert (manifest["video"]["width"], manifest["video"]["height"]) == (128, 96)
    assert manifest["params"] == json.loads(done.params.model_dump_json())
    assert manifest["model"]["sha256"]
    assert set(manifest["timings_s"]) == {"decode", "motion", "features", "attention", "clustering", "masks", "total"}
    assert sum(manifest["timings_s"].values()) <= 2.01 * manifest["timings_s"]["total"]
    ids = [item["id"] for item in manifest["levels"][0]["objects"]]
    assert ids == list(range(1, len(ids) + 1))


def test_results_have_an_etag_and_support_range_requests(service_url: str, done: JobView) -> None:
    whole = get(service_url, done.links.levels[0].overlay)
    assert whole.headers["etag"]
    part = httpx.get(whole.url, headers={"Range": "bytes=4-7", "If-Range": whole.headers["etag"]})
    assert part.status_code == 206
    assert part.content == whole.content[4:8] == b"ftyp"
    changed = httpx.get(whole.url, headers={"Range": "bytes=4-7", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, whole.content)


def test_a_level_or_a_format_that_was_not_requested_is_not_found(
    service_url: str, client: Client, done: JobView, video: Path
) -> None:
    response = httpx.get(f"{service_url}/jobs/{done.id}/rle.json", params={"tau": 7})
    assert (response.status_code, response.json()["type"]) == (404, "/problems/result-not-found")
    job = client.wait(client.submit(video, format=["rle"]))
    assert job.links.levels[0].masks_zip is None
    response = httpx.get(f"{service_url}/jobs/{job.id}/masks.zip")
    assert (response.status_code, response.json()["type"]) == (404, "/problems/result-not-found")


def test_an_audio_file_fails_with_the_reason(client: Client, tmp_path: Path) -> None:
    job = client.wait(client.submit(write_audio(tmp_path / "audio.mp4")))
    assert job.status == Status.failed
    assert job.error is not None
    assert job.error.type == "/problems/no-video-stream"


def test_too_many_frames_fail_with_limit_and_actual_value(client: Client, tmp_path: Path) -> None:
    frames = np.zeros((601, 16, 16, 3), np.uint8)
    job = client.wait(client.submit(write_video(tmp_path / "long.mp4", frames)))
    assert job.status == Status.failed
    assert job.error is not None
    assert (job.error.type, job.error.limit) == ("/problems/too-many-frames", 600)
    assert isinstance(job.error.actual, int)
    assert job.error.actual > 600


def test_too_many_pixels_fail_with_limit_and_actual_value(client: Client, tmp_path: Path) -> None:
    frames = np.zeros((1, 4096, 4096, 3), np.uint8)
    job = client.wait(client.submit(write_video(tmp_path / "large.mp4", frames)))
    assert job.status == Status.failed
    assert job.error is not None
    assert (job.error.type, job.error.actual) == ("/problems/too-many-pixels", 4096 * 4096)


def test_exceeding_the_memory_budget_fails_with_both_values(client: Client, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(CLIP, frames=8).frames)
    levels = [n * 1e-6 for n in range(1, 9)]  # levels share the budget
    job = client.wait(client.submit(video, tau=levels, key_ratio=1.0))
    assert job.status == Status.failed
    assert job.error is not None
    assert job.error.type == "/problems/out-of-memory-budget"
    assert isinstance(job.error.limit, int)
    assert isinstance(job.error.actual, int)
    assert job.error.actual > job.error.limit
    assert str(job.error.actual) in job.error.detail
    assert str(job.error.limit) in job.error.detail


def test_missing_weights_fail_with_the_file_to_copy(client: Client, video: Path) -> None:
    job = client.wait(client.submit(video, model="dino-vits16"))
    if job.status == Status.succeeded:
        pytest.skip("the hub can be reached here")
    assert job.error is not None
    assert job.error.type == "/problems/weights-unavailable"
    assert "dino-vits16.safetensors" in job.error.detail


def test_start_end_and_fps_select_frames(client: Client, service_url: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", make_scene(CLIP, frames=30).frames, fps=10)
    job = client.wait(client.submit(video, start=1, end=2, fps=5))
    manifest = get(service_url, job.links.manifest).json()
    np.testing.assert_allclose(manifest["video"]["pts_s"], [1.0, 1.2, 1.4, 1.6, 1.8], atol=0.02)
    numbers = [10, 12, 14, 16, 18]
    assert manifest["video"]["source_frames"] == numbers
    level = job.links.levels[0]
    assert [frame["source_frame"] for frame in get(service_url, level.rle).json()["frames"]] == numbers
    assert [image["source_frame"] for image in get(service_url, level.coco).json()["images"]] == numbers
    assert re.findall(r'<image id="(\d+)"', get(service_url, level.cvat_images).text) == [str(n) for n in numbers]


@pytest.mark.data
def test_all_real_videos_but_the_smallest_are_segmented(client: Client, service_url: str, data: Path) -> None:
    files = sorted(path for path in (data / "videos").rglob("*.*") if path.is_file())
    assert len(files) >= 25
    jobs = {path: client.submit(path, end=0.2, resolution="64x96", format="rle") for path in files}
    failures = {}
    for path, submitted in jobs.items():
        job = client.wait(submitted)
        if job.status != Status.succeeded:
            assert job.error is not None
            failures[path.name] = job.error.type
            continue
        manifest = get(service_url, job.links.manifest).json()
        rle = get(service_url, job.links.levels[0].rle).json()
        assert len(rle["frames"]) == manifest["video"]["frame_count"] >= 1, path
        assert rle["size"] == [manifest["video"]["height"], manifest["video"]["width"]], path
    assert failures == {"bitmap.mp4": "/problems/too-small"}


def write_audio(path: Path) -> Path:
    """An MP4 with an audio stream only."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))  # type: ignore[attr-defined]
        container.mux(stream.encode(None))  # type: ignore[attr-defined]
    return path
