"""YOLO segmentation labels, read by supervision and by the steps of Ultralytics' loader."""

import io
import zipfile

import cv2
import numpy as np
import pytest
import supervision
from PIL import Image

from service.export import yolo
from tests.service.export.documents import a_document, a_manifest

HEIGHT, WIDTH = 90, 121  # a width whose fractions have no short decimals


@pytest.fixture
def label_maps() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    maps = np.zeros((3, HEIGHT, WIDTH), np.uint16)
    for index in range(2):
        maps[index][(rows - 40) ** 2 + (columns - 40 - 9 * index) ** 2 < 30**2] = 1
        maps[index][(rows - 40) ** 2 + (columns - 40 - 9 * index) ** 2 < 10**2] = 0  # a hole
    maps[1, 80:, 100:] = 2  # to the corner of the image
    maps[1, 0, 0] = 3
    return maps


@pytest.fixture
def archive(label_maps) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(yolo.render(a_document(label_maps), a_manifest(label_maps, name="clip"))))


def test_supervision_restores_every_mask(label_maps, archive, tmp_path):
    archive.extractall(tmp_path)
    images = tmp_path / "images" / "train" / "clip"
    images.mkdir(parents=True)
    for index in range(len(label_maps)):
        Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{index:05d}.jpg")
    dataset = supervision.DetectionDataset.from_yolo(
        str(images), str(tmp_path / "labels" / "train" / "clip"), str(tmp_path / "data.yaml"), force_masks=True
    )
    assert dataset.classes == ["object"]
    assert len(dataset) == 3
    for path, _, detections in dataset:
        labels = label_maps[int(path[-9:-4])]
        masks = detections.mask if len(detections) else []
        assert [int(labels[mask].min()) for mask in masks] == np.unique(labels)[1:].tolist()
        for label, mask in zip(np.unique(labels)[1:], masks, strict=True):
            np.testing.assert_array_equal(mask, labels == label)


def test_coordinates_truncated_to_pixels_as_ultralytics_does_restore_every_mask(label_maps, archive):
    for index, labels in enumerate(label_maps):
        lines = archive.read(f"labels/train/clip/{index:05d}.txt").decode().splitlines()
        for label, line in zip(np.unique(labels)[1:], lines, strict=True):
            name, *numbers = line.split()
            polygon = np.array(numbers, np.float32).reshape(-1, 2)
            assert name == "0"
            assert polygon.min() >= 0
            assert polygon.max() < 1
            points = (polygon * np.float32([WIDTH, HEIGHT])).astype(np.int32)
            filled = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.uint8), [points], 1)
            np.testing.assert_array_equal(filled.astype(bool), labels == label)


def test_a_frame_without_objects_has_an_empty_file(archive):
    assert archive.read("labels/train/clip/00002.txt") == b""


def test_the_same_result_gives_the_same_archive(label_maps):
    document, manifest = a_document(label_maps), a_manifest(label_maps)
    assert yolo.render(document, manifest) == yolo.render(document, manifest)
