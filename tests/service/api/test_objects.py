"""Edits of objects over HTTP: versions, conflicts, and what the exports contain."""

import io
import json
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.storage.edits import EditLog, EditVersion
from service.storage.local import FolderStore
from tests.videos import Shape, make_scene, write_video
from uvos import rle
from uvos.client import Client
from uvos.contract import JobView, LevelLinks, RleDocument
from uvos.edits import EditState


@pytest.fixture(scope="module")
def done(service_url: str, tmp_path_factory: pytest.TempPathFactory) -> JobView:
    scene = make_scene([Shape("disc", 48, (48, 30), (0, 8)), Shape("square", 30, (48, 100))], frames=4)
    video = write_video(tmp_path_factory.mktemp("video") / "clip.mp4", scene.frames, fps=10)
    with Client(service_url) as client:
        return client.segment(video, tau=[0.2, 0.5], background="keep", format=["png", "frames"]).job


@pytest.fixture
def level(service_url: str, done: JobView) -> Iterator[LevelLinks]:
    """A level with at least three objects and without edits."""
    level = done.links.levels[0]
    assert len(get(service_url, level.objects).json()["objects"]) >= 3
    yield level
    edit(service_url, level, {"op": "reset"})


def get(service_url: str, link: str | None, **headers: str) -> httpx.Response:
    assert link is not None
    response = httpx.get(service_url + link, headers=headers, timeout=30)
    assert response.status_code in (200, 304), response.text
    return response


def edit(service_url: str, level: LevelLinks, *operations: object, **headers: str) -> httpx.Response:
    return httpx.patch(f"{service_url}{level.objects}", json={"operations": operations}, headers=headers, timeout=30)


def label_maps(service_url: str, link: str | None) -> np.ndarray:
    document = RleDocument.model_validate(get(service_url, link).json())
    return np.stack([rle.label_map(frame, document.size) for frame in document.frames])


def test_every_export_contains_the_selection_and_the_names(service_url: str, level: LevelLinks) -> None:
    original = label_maps(service_url, level.rle)
    tags = {name: get(service_url, getattr(level, name)).headers["etag"] for name in ("rle", "coco", "masks_zip")}
    response = edit(
        service_url,
        level,
        {"op": "merge", "ids": [1, 2]},
        {"op": "rename", "id": 1, "name": "koi & carp"},
        {"op": "only", "ids": [1]},
    )
    assert response.status_code == 200, response.text
    listed = response.json()["objects"]
    assert [(item["id"], item["name"], item["hidden"]) for item in listed[:1]] == [(1, "koi & carp", False)]
    assert all(item["hidden"] for item in listed[1:])
    expected = np.where(np.isin(original, [1, 2]), 1, 0)

    np.testing.assert_array_equal(label_maps(service_url, level.rle), expected)
    assert get(service_url, level.rle).json()["names"] == {"1": "koi & carp"}
    for link, folder in ((level.masks_zip, "clip"), (level.frames, "Annotations")):
        with zipfile.ZipFile(io.BytesIO(get(service_url, link).content)) as archive:
            pngs = [np.asarray(Image.open(archive.open(f"{folder}/{index:05d}.png"))) for index in range(4)]
            assert json.loads(archive.read("objects.json")) == {"1": "koi & carp"}
        np.testing.assert_array_equal(pngs, expected)
    assert level.mask is not None
    png = Image.open(io.BytesIO(get(service_url, level.mask.format(frame=2)).content))
    np.testing.assert_array_equal(np.asarray(png), expected[2])

    coco = get(service_url, level.coco).json()
    assert [category["name"] for category in coco["categories"]] == ["koi & carp"]
    assert {item["track_id"] for item in coco["annotations"]} == {1}
    (entry,) = get(service_url, level.youtube_vis).json()
    assert entry["name"] == "koi & carp"
    for link in (level.cvat, level.cvat_images):
        root = ElementTree.fromstring(get(service_url, link).text)
        assert root.findtext("meta/task/labels/label/name") == "koi & carp"
        shapes = [*root.iter("track"), *root.iterfind("image/mask")]
        assert {(item.get("label"), item.get("group_id")) for item in shapes} == {("koi & carp", "1")}
    tasks = get(service_url, level.label_studio).json()
    regions = [region for task in tasks for region in task["predictions"][0]["result"]]
    assert {(region["id"], *region["value"]["brushlabels"]) for region in regions} == {("object-1", "koi & carp")}
    with zipfile.ZipFile(io.BytesIO(get(service_url, level.yolo).content)) as archive:
        assert '0: "koi & carp"' in archive.read("data.yaml").decode()
    with zipfile.ZipFile(io.BytesIO(get(service_url, level.mots).content)) as archive:
        assert archive.read("instances/labels.txt").decode() == "koi & carp\n"

    for name, tag in tags.items():
        link = getattr(level, name)
        assert get(service_url, link).headers["etag"] != tag
        unchanged = get(service_url, f"{link}&original=true", **{"If-None-Match": tag})
        assert (unchanged.status_code, unchanged.headers["etag"]) == (304, tag)
    np.testing.assert_array_equal(label_maps(service_url, f"{level.rle}&original=true"), original)


def test_versions_count_up_and_undo_restores_the_one_before(service_url: str, level: LevelLinks) -> None:
    version = get(service_url, level.objects).json()["version"]
    original = label_maps(service_url, level.rle)
    edit(service_url, level, {"op": "hide", "ids": [1]})
    edit(service_url, level, {"op": "delete", "ids": [2]}, {"op": "rename", "id": 3, "name": "leaf"})
    edit(service_url, level, {"op": "undo"})
    np.testing.assert_array_equal(label_maps(service_url, level.rle), np.where(original == 1, 0, original))
    last = edit(service_url, level, {"op": "undo"}, **{"If-Match": f'"{version + 3}"'})
    assert (last.status_code, last.json()["version"], last.headers["etag"]) == (200, version + 4, f'"{version + 4}"')
    np.testing.assert_array_equal(label_maps(service_url, level.rle), original)


def test_an_edit_of_an_outdated_version_is_refused_with_the_actual_one(service_url: str, level: LevelLinks) -> None:
    tag = get(service_url, level.objects).headers["etag"]
    assert get(service_url, level.objects, **{"If-None-Match": tag}).status_code == 304
    first = edit(service_url, level, {"op": "hide", "ids": [1]}, **{"If-Match": tag})
    assert first.status_code == 200
    second = edit(service_url, level, {"op": "hide", "ids": [2]}, **{"If-Match": tag})
    assert (second.status_code, second.json()["type"]) == (412, "/problems/edit-conflict")
    assert second.json()["limit"] == first.json()["version"]
    assert get(service_url, level.objects).headers["etag"] == first.headers["etag"]


def test_invalid_edits_are_explained_and_change_nothing(service_url: str, done: JobView, level: LevelLinks) -> None:
    tag = get(service_url, level.objects).headers["etag"]
    refused = edit(service_url, level, {"op": "hide", "ids": [1]}, {"op": "hide", "ids": [999]})
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/invalid-edit")
    assert "there is no object 999: the objects of this level are 1, 2" in refused.json()["detail"]
    nothing = edit(service_url, done.links.levels[1], {"op": "undo"})
    assert "nothing to undo" in nothing.json()["detail"]
    assert edit(service_url, level, {"op": "hide", "ids": [1]}, **{"If-Match": "yesterday"}).status_code == 422
    assert edit(service_url, level, {"op": "rename", "id": 1, "name": "x" * 70_000}).status_code == 413
    assert get(service_url, level.objects).headers["etag"] == tag


def test_a_body_that_is_not_utf8_is_an_invalid_parameter(service_url: str, level: LevelLinks) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.patch(f"{service_url}{level.objects}", content=b'{"a": "\xa6"}', headers=headers)
    assert response.status_code == 422
    assert response.json()["type"] == "/problems/invalid-parameters"
    assert "UTF-8" in response.json()["detail"]
    damaged = httpx.patch(f"{service_url}{level.objects}", content=b"{", headers=headers)
    assert damaged.json()["detail"].startswith("body: ")


def test_of_concurrent_edits_none_is_lost(service_url: str, level: LevelLinks) -> None:
    with ThreadPoolExecutor(3) as pool:
        operations = [{"op": "rename", "id": number, "name": f"name {number}"} for number in (1, 2, 3)]
        responses = list(pool.map(lambda operation: edit(service_url, level, operation), operations))
    assert [response.status_code for response in responses] == [200, 200, 200]
    objects = get(service_url, level.objects).json()["objects"]
    assert [item["name"] for item in objects[:3]] == ["name 1", "name 2", "name 3"]


def test_of_two_edits_of_a_version_one_is_stored_and_a_damaged_one_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "a").mkdir(parents=True)
    log = EditLog(FolderStore(tmp_path), "jobs/a/edits/1")
    first = log.append(EditVersion(), EditState(names={1: "koi"}))
    assert first is not None
    assert log.append(EditVersion(), EditState()) is None
    assert EditLog(FolderStore(tmp_path), "jobs/a/edits/1").latest() == first  # as after a restart
    second = log.append(first, EditState(names={1: "carp"}))
    assert second is not None
    (tmp_path / "jobs" / "a" / "edits" / "1" / "2").write_text("{")
    assert (log.latest().number, log.latest().state) == (2, first.state)


def test_edits_are_deleted_with_the_job(service_url: str, service_data: Path, done: JobView) -> None:
    assert (service_data / "jobs" / done.id / "edits").is_dir()
    assert httpx.delete(service_url + done.links.self).status_code == 204
    assert not list(service_data.rglob(f"{done.id}*/edits"))
