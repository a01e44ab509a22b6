"""All formats over HTTP contain the same masks, read back by the tools or rules of each format."""

import io
import json
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from tests.videos import Shape, make_scene, write_video
from uvos.client import Client
from uvos.contract import JobView, LevelLinks

FRAMES, HEIGHT, WIDTH = 6, 96, 128


@pytest.fixture(scope="module")
def done(service_url: str, tmp_path_factory: pytest.TempPathFactory) -> JobView:
    scene = make_scene([Shape("disc", 48, (48, 30), (0, 8))], frames=FRAMES)
    video = write_video(tmp_path_factory.mktemp("video") / "clip.mp4", scene.frames, fps=10)
    with Client(service_url) as client:
        taus = [0.5, 1.0]
        return client.result(
            client.wait(client.submit(video, tau=taus, background="keep", format=["png", "overlay", "frames"]))
        ).job


@pytest.fixture(scope="module")
def level(done: JobView) -> LevelLinks:
    return done.links.levels[1]


def fetch(service_url: str, link: str | None, **headers: str) -> httpx.Response:
    assert link is not None
    return httpx.get(service_url + link, headers=headers, timeout=30)


@pytest.fixture(scope="module")
def masks(service_url: str, level: LevelLinks) -> NDArray[np.uint8]:
    """Label maps from the palette PNGs, (T, H, W)."""
    with zipfile.ZipFile(io.BytesIO(fetch(service_url, level.masks_zip).content)) as archive:
        return np.stack([np.asarray(Image.open(archive.open(name))) for name in archive.namelist()])


def test_pngs_have_the_davis_layout_and_palette(service_url: str, level: LevelLinks, masks: NDArray[np.uint8]) -> None:
    assert masks.shape == (FRAMES, HEIGHT, WIDTH)
    assert masks.max() >= 1
    with zipfile.ZipFile(io.BytesIO(fetch(service_url, level.masks_zip).content)) as archive:
        assert archive.namelist() == [f"clip/{index:05d}.png" for index in range(FRAMES)]
        picture = Image.open(archive.open("clip/00000.png"))
    assert picture.mode == "P"
    palette = picture.getpalette()
    assert palette is not None
    assert palette[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # first colours of VOC


def test_pycocotools_decodes_the_rle(service_url: str, level: LevelLinks, masks: NDArray[np.uint8]) -> None:
    document = fetch(service_url, level.rle).json()
    for frame, labels in zip(document["frames"], masks, strict=True):
        assert frame["time"] == pytest.approx(frame["index"] / 10)
        assert {item["id"] for item in frame["objects"]} == set(np.unique(labels)) - {0}
        for item in frame["objects"]:
            np.testing.assert_array_equal(coco.decode(item["rle"]).astype(bool), labels == item["id"])


def test_youtube_vis_results_follow_the_rules_of_the_benchmark(
    service_url: str, done: JobView, level: LevelLinks, masks: NDArray[np.uint8]
) -> None:
    results = fetch(service_url, level.youtube_vis).json()
    manifest = fetch(service_url, done.links.manifest).json()
    ids = [item["id"] for item in manifest["levels"][1]["objects"]]
    assert len(results) == len(ids)
    for label, entry in zip(ids, results, strict=True):
        assert set(entry) == {"video_id", "category_id", "score", "segmentations"}
        assert 0 <= entry["score"] <= 1
        assert len(entry["segmentations"]) == FRAMES
        for rle, labels in zip(entry["segmentations"], masks, strict=True):
            mask = coco.decode(rle).astype(bool) if rle else np.zeros((HEIGHT, WIDTH), bool)
            np.testing.assert_array_equal(mask, labels == label)


def test_pycocotools_reads_the_coco_instances(service_url: str, level: LevelLinks, masks: NDArray[np.uint8]) -> None:
    dataset = COCO()
    dataset.dataset = fetch(service_url, level.coco).json()
    dataset.createIndex()
    restored = np.zeros_like(masks)
    for annotation in dataset.loadAnns(dataset.getAnnIds()):
        restored[annotation["image_id"] - 1][dataset.annToMask(annotation) == 1] = annotation["attributes"]["track_id"]
    np.testing.assert_array_equal(restored, masks)


def test_mots_images_hold_the_object_ids(service_url: str, level: LevelLinks, masks: NDArray[np.uint8]) -> None:
    response = fetch(service_url, level.mots)
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        for index, labels in enumerate(masks):
            image = np.asarray(Image.open(archive.open(f"instances/clip/{index:05d}.png")))
            np.testing.assert_array_equal(image, np.where(labels > 0, 1000 + labels.astype(int), 0))


def test_there_is_a_yolo_line_and_a_brush_mask_for_every_object_in_every_frame(
    service_url: str, level: LevelLinks, masks: NDArray[np.uint8]
) -> None:
    counts = [len(np.unique(labels[labels > 0])) for labels in masks]
    with zipfile.ZipFile(io.BytesIO(fetch(service_url, level.yolo).content)) as archive:
        labels = [archive.read(f"labels/train/clip/{index:05d}.txt") for index in range(FRAMES)]
    assert [len(lines.splitlines()) for lines in labels] == counts
    tasks = fetch(service_url, level.label_studio).json()
    assert [len(task["predictions"][0]["result"]) for task in tasks] == counts


@pytest.mark.parametrize("shapes", ["mask", "polygon"])
def test_cvat_images_hold_every_object_in_every_frame(
    service_url: str, level: LevelLinks, masks: NDArray[np.uint8], shapes: str
) -> None:
    root = ElementTree.fromstring(fetch(service_url, f"{level.cvat_images}&shapes={shapes}").text)
    groups = [[int(shape.get("group_id", "")) for shape in image.iter(shapes)] for image in root.iter("image")]
    assert groups == [np.unique(labels[labels > 0]).tolist() for labels in masks]


def test_cvat_tracks_hold_one_mask_by_default(service_url: str, level: LevelLinks) -> None:
    assert fetch(service_url, level.cvat).content == fetch(service_url, f"{level.cvat}&tracks=mask").content


@pytest.mark.parametrize("tracks", ["object", "mask"])
def test_cvat_masks_are_row_major_within_their_box(
    service_url: str, level: LevelLinks, masks: NDArray[np.uint8], tracks: str
) -> None:
    response = fetch(service_url, f"{level.cvat}&tracks={tracks}")
    assert response.headers["content-type"].startswith("application/xml")
    root = ElementTree.fromstring(response.text)
    assert root.findtext("version") == "1.1"
    restored = np.zeros_like(masks)
    for track in root.iter("track"):
        for element in track.iter("mask"):
            if element.get("outside") == "1":
                continue
            left, top, width, height = (int(element.get(name, "")) for name in ("left", "top", "width", "height"))
            lengths = [int(length) for length in element.get("rle", "").split(",")]
            inside = (np.arange(len(lengths)) % 2 == 1).repeat(lengths).reshape(height, width)
            box = restored[int(element.get("frame", "")), top : top + height, left : left + width]
            box[inside] = int(track.get("group_id", ""))
    np.testing.assert_array_equal(restored, masks)


def test_the_overlay_can_be_decoded(service_url: str, level: LevelLinks) -> None:
    with av.open(io.BytesIO(fetch(service_url, level.overlay).content)) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", WIDTH, HEIGHT)
        assert stream.codec_context.pix_fmt == "yuv420p"  # the format that browsers play
        times = [frame.time for frame in video.decode(stream)]
    np.testing.assert_allclose(times, np.arange(FRAMES) / 10, atol=1e-3)


def test_the_source_stays_with_the_result(service_url: str, done: JobView) -> None:
    response = fetch(service_url, done.links.source, Range="bytes=0-")
    assert (response.status_code, response.headers["content-type"]) == (206, "video/mp4")
    assert response.headers["etag"]
    with av.open(io.BytesIO(response.content)) as video:
        frames = list(video.decode(video=0))
        assert video.streams.video[0].codec_context.name == "h264"
    assert [(frame.height, frame.width) for frame in frames] == [(HEIGHT, WIDTH)] * FRAMES
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(FRAMES) / 10, atol=1e-3)
    thumbnail = Image.open(io.BytesIO(fetch(service_url, done.links.thumbnail).content))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (WIDTH, HEIGHT))


def test_frames_zip_holds_the_frames_and_their_masks(
    service_url: str, level: LevelLinks, masks: NDArray[np.uint8]
) -> None:
    with zipfile.ZipFile(io.BytesIO(fetch(service_url, level.frames).content)) as archive:
        assert archive.testzip() is None
        names = [f"{index:05d}" for index in range(FRAMES)]
        assert archive.namelist() == [
            *(f"JPEGImages/{name}.jpg" for name in names),
            *(f"Annotations/{name}.png" for name in names),
        ]
        for name, labels in zip(names, masks, strict=True):
            assert Image.open(archive.open(f"JPEGImages/{name}.jpg")).size == (WIDTH, HEIGHT)
            annotation = Image.open(archive.open(f"Annotations/{name}.png"))
            assert annotation.mode == "P"
            np.testing.assert_array_equal(np.asarray(annotation), labels)


def test_rounds_merge_into_the_clusters_of_the_level(service_url: str, done: JobView, level: LevelLinks) -> None:
    rounds = fetch(service_url, level.rounds).json()
    manifest = fetch(service_url, done.links.manifest).json()
    level_entry = manifest["levels"][1]
    assert "x".join(map(str, rounds["grid"])) == manifest["grid"]
    patches = rounds["grid"][0] * rounds["grid"][1]
    assert all(sum(frame[1::2]) == patches for frame in rounds["frames"])
    groups = {group for frame in rounds["frames"] for group in frame[::2]}
    assert groups == set(range(level_entry["rounds"][0]["centroids"]))
    for merge in level_entry["rounds"][1:]:
        groups = {merge["parents"][group] for group in groups}
    assert groups == set(range(level_entry["clusters"]))


@pytest.mark.parametrize(
    "kind", ["frames", "coco", "youtube_vis", "cvat", "cvat_images", "label_studio", "yolo", "mots"]
)
def test_rendered_formats_support_conditional_requests(
    service_url: str, done: JobView, level: LevelLinks, kind: str
) -> None:
    first = fetch(service_url, getattr(level, kind))
    assert "no-cache" in first.headers["cache-control"]  # edits change the document
    tag = first.headers["etag"]
    again = fetch(service_url, getattr(level, kind), **{"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = fetch(service_url, getattr(done.links.levels[0], kind))
    assert other.headers["etag"] != tag


def test_a_job_links_to_all_its_results(done: JobView, level: LevelLinks) -> None:
    assert all(json.loads(level.model_dump_json()).values())
    assert Path(done.links.self).name == done.id
