"""Label Studio tasks; brush masks unpacked bit by bit, by the published format of `rle-pack`."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from hypothesis import given, settings

from service.export import label_studio
from tests.service.export.documents import a_document, a_level, a_manifest, videos


def export(label_maps: np.ndarray) -> list:
    manifest = a_manifest(label_maps, name="my clip")
    return json.loads(label_studio.render(a_document(label_maps), manifest, a_level(label_maps)))


def unpacked(packed: list[int]) -> np.ndarray:
    """The values of an `rle-pack` sequence, one bit field after another."""
    bits = "".join(f"{byte:08b}" for byte in packed)
    position = 0

    def field(width: int) -> int:
        nonlocal position
        position += width
        return int(bits[position - width : position], 2)

    count = field(32)
    value_bits = field(5) + 1
    length_bits = [field(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run = field(1)
        length = field(length_bits[field(2)]) + 1
        values += [field(value_bits)] * length if is_run else [field(value_bits) for _ in range(length)]
    assert len(values) == count
    assert len(bits) - position < 8
    return np.array(values, np.uint8)


def mask_of(region: dict) -> np.ndarray:
    channels = unpacked(region["value"]["rle"]).reshape(region["original_height"], region["original_width"], 4)
    assert np.isin(channels, [0, 255]).all()
    assert (channels == channels[..., :1]).all()
    return channels[..., 3] == 255


@given(videos)
@settings(deadline=None, max_examples=50)
def test_brush_masks_hold_the_masks_of_every_object(label_maps):
    tasks = export(label_maps)
    assert len(tasks) == len(label_maps)
    for task, label_map in zip(tasks, label_maps, strict=True):
        (prediction,) = task["predictions"]
        assert [region["id"] for region in prediction["result"]] == [
            f"object-{label}" for label in np.unique(label_map[label_map > 0])
        ]
        for region in prediction["result"]:
            label = int(region["id"].removeprefix("object-"))
            np.testing.assert_array_equal(mask_of(region), label_map == label)


def test_runs_longer_than_a_length_field_are_split():
    label_maps = np.zeros((1, 300, 300), np.uint16)
    label_maps[0, 100:290] = 1
    ((region,),) = (task["predictions"][0]["result"] for task in export(label_maps))
    np.testing.assert_array_equal(mask_of(region), label_maps[0] == 1)


def test_a_task_names_its_frame_and_regions_fit_the_labeling_configuration():
    label_maps = np.zeros((2, 4, 4), np.uint16)
    label_maps[1, 1:3, 1:3] = 1
    first, second = export(label_maps)
    assert first["predictions"][0]["result"] == []
    assert second["data"] == {
        "image": "/data/local-files/?d=my%20clip/00001.jpg",
        "video": "my clip",
        "frame_index": 1,
        "time_s": 0.04,
    }
    config = ElementTree.fromstring(label_studio.LABELING_CONFIG)
    image, brush = config.find("Image"), config.find("BrushLabels")
    (region,) = second["predictions"][0]["result"]
    assert image.get("value") == "$image"
    assert (region["to_name"], region["from_name"]) == (image.get("name"), brush.get("name"))
    assert region["value"]["brushlabels"] == [brush.find("Label").get("value")]
    assert region["score"] == second["predictions"][0]["score"] == 0.9


def test_the_documentation_shows_the_labeling_configuration():
    documentation = Path(__file__).parents[3] / "docs" / "formats.md"
    assert label_studio.LABELING_CONFIG in documentation.read_text()
