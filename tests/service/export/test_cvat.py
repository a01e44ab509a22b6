"""CVAT for video 1.1, read back by a strict reader of the published format."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings

from service.export import cvat
from service.export.cvat import Tracks
from tests.service.export.documents import a_document, a_manifest, videos

ATTRIBUTES = {"frame", "keyframe", "outside", "occluded", "rle", "left", "top", "width", "height", "z_order"}


def decoded(element: ET.Element, size: tuple[int, int]) -> np.ndarray:
    """One mask: row-major run lengths within the bounding box, background first; the box must be tight."""
    left, top, width, height = (int(element.attrib[name]) for name in ("left", "top", "width", "height"))
    counts = [int(count) for count in element.attrib["rle"].split(",")]
    assert sum(counts) == width * height
    assert all(count > 0 for count in counts[1:])
    inside, value = [], 0
    for count in counts:
        inside += [value] * count
        value = 1 - value
    box = np.array(inside, bool).reshape(height, width)
    assert box[0].any()
    assert box[-1].any()
    assert box[:, 0].any()
    assert box[:, -1].any()
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = box
    return mask


def read(text: str) -> list[tuple[int, np.ndarray]]:
    """(group, masks (T, H, W)) of each track; a mask lasts until the next keyframe, `outside` ends it."""
    root = ET.fromstring(text.encode())
    assert root.tag == "annotations"
    assert root.findtext("version") == "1.1"
    task = root.find("meta/task")
    assert task is not None
    assert task.findtext("mode") == "interpolation"
    length = int(task.findtext("size"))
    size = int(task.findtext("original_size/height")), int(task.findtext("original_size/width"))
    labels = {label.findtext("name") for label in task.iterfind("labels/label")}
    tracks = []
    for track in root.iterfind("track"):
        assert track.attrib["label"] in labels
        masks, frames = np.zeros((length, *size), bool), []
        for element in track:
            assert element.tag == "mask"
            assert set(element.attrib) == ATTRIBUTES
            assert element.attrib["keyframe"] == "1"
            assert element.attrib["outside"] in ("0", "1")
            frame = int(element.attrib["frame"])
            assert 0 <= frame < length
            frames.append(frame)
            masks[frame:] = element.attrib["outside"] == "0" and decoded(element, size)
        assert frames == sorted(set(frames))
        tracks.append((int(track.attrib["group_id"]), masks))
    assert len({track.attrib["id"] for track in root.iterfind("track")}) == len(tracks)
    return tracks


@given(videos)
@settings(deadline=None)
def test_a_track_contains_the_masks_of_an_object(label_maps):
    tracks = read(cvat.render(a_document(label_maps), a_manifest(label_maps)))
    assert [label for label, _ in tracks] == np.unique(label_maps[label_maps > 0]).tolist()
    for label, masks in tracks:
        np.testing.assert_array_equal(masks, label_maps == label)


@given(videos)
@settings(deadline=None)
def test_a_track_per_mask_covers_one_frame(label_maps):
    tracks = read(cvat.render(a_document(label_maps), a_manifest(label_maps), tracks=Tracks.mask))
    restored = np.zeros_like(label_maps)
    for label, masks in tracks:
        assert masks.any((1, 2)).sum() == 1
        restored[masks] = label
    np.testing.assert_array_equal(restored, label_maps)


def test_an_object_that_leaves_is_outside_until_it_returns():
    label_maps = np.zeros((6, 5, 5), np.uint16)
    label_maps[[0, 1, 4], 1:3, 1:4] = 1
    track = ET.fromstring(cvat.render(a_document(label_maps), a_manifest(label_maps)).encode()).find("track")
    assert [(mask.attrib["frame"], mask.attrib["outside"]) for mask in track] == [
        ("0", "0"),
        ("1", "0"),
        ("2", "1"),
        ("4", "0"),
        ("5", "1"),
    ]


def test_a_mask_is_written_in_the_documented_format():
    label_maps = np.zeros((1, 6, 8), np.uint16)
    label_maps[0, 2, 3:6] = 1  # .###
    label_maps[0, 3, 2:4] = 1  # ##..
    text = cvat.render(a_document(label_maps), a_manifest(label_maps))
    assert 'rle="1, 5, 2" left="2" top="2" width="4" height="2"' in text


@pytest.mark.parametrize("name", ['<clip> & "co".mp4', "tab\x00\x0b\ud800.mp4", "Übung 動画.mp4"])
def test_any_name_gives_valid_xml(name):
    label_maps = np.ones((1, 2, 2), np.uint16)
    task = ET.fromstring(cvat.render(a_document(label_maps), a_manifest(label_maps, name=name)).encode()).find(
        "meta/task"
    )
    assert task.findtext("name").endswith(".mp4")


def test_a_video_without_objects_has_no_tracks():
    label_maps = np.zeros((2, 3, 3), np.uint16)
    assert read(cvat.render(a_document(label_maps), a_manifest(label_maps))) == []
