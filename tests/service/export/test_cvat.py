"""CVAT 1.1 for video and for images, read strictly by the published rules."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools import mask as coco

from service.export import cvat
from service.export.cvat import Shapes, Tracks
from tests.service.export.documents import a_document, a_manifest, videos

GEOMETRY = {"mask": {"rle", "left", "top", "width", "height"}, "polygon": {"points"}}


def decoded(element: ET.Element, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a shape, (H, W)."""
    return decoded_polygon(element, size) if element.tag == "polygon" else decoded_mask(element, size)


def decoded_polygon(element: ET.Element, size: tuple[int, int]) -> np.ndarray:
    numbers = [float(number) for number in element.attrib["points"].replace(";", ",").split(",")]
    (encoded,) = coco.frPyObjects([numbers], *size)
    return coco.decode(encoded).astype(bool)


def decoded_mask(element: ET.Element, size: tuple[int, int]) -> np.ndarray:
    """Run lengths row by row inside the box, zeros first; the box is tight."""
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


def read_meta(root: ET.Element, mode: str) -> tuple[int, tuple[int, int], set[str]]:
    """Number of frames, their size and the labels."""
    assert root.tag == "annotations"
    assert root.findtext("version") == "1.1"
    task = root.find("meta/task")
    assert task.findtext("mode") == mode
    size = int(task.findtext("original_size/height")), int(task.findtext("original_size/width"))
    return int(task.findtext("size")), size, {label.findtext("name") for label in task.iterfind("labels/label")}


def read(text: str) -> list[tuple[int, np.ndarray]]:
    """(group, masks (T, H, W)) of each track; a shape holds until the next keyframe, `outside` ends it."""
    root = ET.fromstring(text.encode())
    length, size, labels = read_meta(root, "interpolation")
    tracks = []
    for track in root.iterfind("track"):
        assert track.attrib["label"] in labels
        masks, frames = np.zeros((length, *size), bool), []
        for element in track:
            expected = {"frame", "keyframe", "outside", "occluded", "z_order"} | GEOMETRY[element.tag]
            assert set(element.attrib) == expected
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


@pytest.mark.parametrize("tracks", [Tracks.object, Tracks.polygon])
@given(label_maps=videos)
@settings(deadline=None)
def test_a_track_holds_the_masks_of_an_object(tracks, label_maps):
    read_tracks = read(cvat.render(a_document(label_maps), a_manifest(label_maps), tracks=tracks))
    assert [label for label, _ in read_tracks] == np.unique(label_maps[label_maps > 0]).tolist()
    for label, masks in read_tracks:
        np.testing.assert_array_equal(masks, label_maps == label)


@given(videos)
@settings(deadline=None)
def test_by_default_a_track_holds_one_mask_in_one_frame(label_maps):
    tracks = read(cvat.render(a_document(label_maps), a_manifest(label_maps)))
    restored = np.zeros_like(label_maps)
    for label, masks in tracks:
        assert masks.any((1, 2)).sum() == 1
        restored[masks] = label
    np.testing.assert_array_equal(restored, label_maps)


@pytest.mark.parametrize("shapes", Shapes)
@given(label_maps=videos)
@settings(deadline=None)
def test_an_image_holds_the_masks_of_a_frame(shapes, label_maps):
    document, manifest = a_document(label_maps), a_manifest(label_maps, name="clip")
    root = ET.fromstring(cvat.render_images(document, manifest, shapes=shapes).encode())
    length, size, labels = read_meta(root, "annotation")
    assert length == len(root.findall("image")) == len(label_maps)
    for index, image in enumerate(root.iterfind("image")):
        assert image.attrib == {
            "id": str(index),
            "name": f"clip/{index:05d}.jpg",
            "width": str(size[1]),
            "height": str(size[0]),
        }
        restored = np.zeros_like(label_maps[index])
        for element in image:
            expected = {"label", "source", "occluded", "z_order", "group_id"} | GEOMETRY[shapes]
            assert set(element.attrib) == expected
            assert element.attrib["label"] in labels
            restored[decoded(element, size)] = int(element.attrib["group_id"])
        np.testing.assert_array_equal(restored, label_maps[index])


@pytest.mark.parametrize("tracks", [Tracks.object, Tracks.polygon])
def test_an_object_that_leaves_is_outside_until_it_returns(tracks):
    label_maps = np.zeros((6, 5, 5), np.uint16)
    label_maps[[0, 1, 4], 1:3, 1:4] = 1
    text = cvat.render(a_document(label_maps), a_manifest(label_maps), tracks=tracks)
    track = ET.fromstring(text.encode()).find("track")
    assert [(shape.attrib["frame"], shape.attrib["outside"]) for shape in track] == [
        ("0", "0"),
        ("1", "0"),
        ("2", "1"),
        ("4", "0"),
        ("5", "1"),
    ]


def test_a_mask_is_written_as_the_rules_say():
    label_maps = np.zeros((1, 6, 8), np.uint16)
    label_maps[0, 2, 3:6] = 1  # .###
    label_maps[0, 3, 2:4] = 1  # ##..
    text = cvat.render(a_document(label_maps), a_manifest(label_maps))
    assert 'rle="1, 5, 2" left="2" top="2" width="4" height="2"' in text


@pytest.mark.parametrize("name", ['<clip> & "co".mp4', "tab\x00\x0b\ud800.mp4", "Übung 動画.mp4"])
def test_any_name_gives_valid_xml(name):
    label_maps = np.ones((1, 2, 2), np.uint16)
    document, manifest = a_document(label_maps), a_manifest(label_maps, name=name)
    for text in (cvat.render(document, manifest), cvat.render_images(document, manifest)):
        assert ET.fromstring(text.encode()).findtext("meta/task/name").endswith(".mp4")


def test_an_image_name_is_escaped():
    label_maps = np.ones((1, 2, 2), np.uint16)
    text = cvat.render_images(a_document(label_maps), a_manifest(label_maps, name='a "b" & <c>'))
    assert ET.fromstring(text.encode()).find("image").attrib["name"] == 'a "b" & <c>/00000.jpg'


def test_a_video_without_objects_has_no_tracks():
    label_maps = np.zeros((2, 3, 3), np.uint16)
    assert read(cvat.render(a_document(label_maps), a_manifest(label_maps))) == []
