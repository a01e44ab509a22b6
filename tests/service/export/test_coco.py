"""COCO instances, read by pycocotools and supervision."""

import json

import numpy as np
import pytest
import supervision
from hypothesis import given, settings
from PIL import Image
from pycocotools.coco import COCO

from service.export import coco
from tests.service.export.documents import a_document, a_level, a_manifest, videos

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode


def export(label_maps: np.ndarray) -> dict:
    return json.loads(coco.render(a_document(label_maps), a_manifest(label_maps, name="clip"), a_level(label_maps)))


@given(videos)
@settings(deadline=None)
def test_pycocotools_restores_every_mask(label_maps):
    dataset = COCO()
    dataset.dataset = export(label_maps)
    dataset.createIndex()
    assert dataset.getImgIds() == list(range(1, len(label_maps) + 1))
    restored = np.zeros_like(label_maps)
    for annotation in dataset.loadAnns(dataset.getAnnIds()):
        mask = dataset.annToMask(annotation).astype(bool)
        restored[annotation["image_id"] - 1][mask] = annotation["track_id"]
        rows, columns = np.nonzero(mask)
        assert annotation["area"] == mask.sum()
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == [float(side) for side in box]
    np.testing.assert_array_equal(restored, label_maps)


def test_annotations_carry_the_object_id_and_the_score_and_images_their_frame():
    label_maps = np.zeros((2, 6, 6), np.uint16)
    label_maps[1, 1:3, 1:3] = 2
    dataset = export(label_maps)
    (annotation,) = dataset["annotations"]
    assert annotation["track_id"] == annotation["attributes"]["track_id"] == 2
    assert (annotation["category_id"], annotation["iscrowd"], annotation["score"]) == (1, 0, 0.8)
    assert [(image["file_name"], image["frame_index"], image["time_s"]) for image in dataset["images"]] == [
        ("clip/00000.jpg", 0, 0.0),
        ("clip/00001.jpg", 1, 0.04),
    ]


def test_supervision_restores_every_mask(tmp_path):
    label_maps = np.zeros((2, 12, 16), np.uint16)
    label_maps[:, 2:9, 3:8] = 1
    label_maps[0, 4:6, 5:7] = 0
    label_maps[1, 9:11, 10:15] = 2
    (tmp_path / "coco.json").write_text(json.dumps(export(label_maps)))
    (tmp_path / "clip").mkdir()
    for index in range(len(label_maps)):
        Image.new("RGB", (16, 12)).save(tmp_path / "clip" / f"{index:05d}.jpg")
    dataset = supervision.DetectionDataset.from_coco(str(tmp_path), str(tmp_path / "coco.json"), force_masks=True)
    assert dataset.classes == ["object"]
    assert len(dataset) == 2
    for path, _, detections in dataset:
        labels = label_maps[int(path[-9:-4])]
        assert len(detections) == len(np.unique(labels)) - 1
        for mask in detections.mask:
            (label,) = np.unique(labels[mask])
            np.testing.assert_array_equal(mask, labels == label)
