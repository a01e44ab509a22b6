"""Read exports with the importers of Datumaro, FiftyOne and Label Studio, and compare every mask.

Runs in an environment of its own (`make importers`): Datumaro needs Pillow 12 and OpenCV 4, Label Studio's SDK exactly
OpenCV 4.12, FiftyOne 1 GB of packages; the project is tested with Pillow 13 and OpenCV 5. Imports nothing of the
project. FiftyOne's importers are used directly, so that no MongoDB starts.

    python importers.py FOLDER    FOLDER holds the exports of tests/service/export/example.py
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"

import datumaro
import fiftyone.utils.coco
import fiftyone.utils.cvat
import fiftyone.utils.yolo
from datumaro.components.annotation import AnnotationType
from datumaro.components.errors import DatasetImportError
from label_studio_sdk.converter import Converter, brush
from label_studio_sdk.label_interface import LabelInterface
from pycocotools import mask as coco

Shapes = Iterator[tuple[int, int, np.ndarray]]
"""Frame index, object id and mask."""
LABELING_CONFIG = (
    '<View><Image name="image" value="$image"/><BrushLabels name="tag" toName="image">'
    '<Label value="object"/></BrushLabels></View>'
)


def polygon_mask(points: list[float], size: tuple[int, int]) -> np.ndarray:
    (encoded,) = coco.frPyObjects([points], *size)
    return coco.decode(encoded).astype(bool)


def by_datumaro(folder: Path, name: str, size: tuple[int, int], *, id_of: str) -> Shapes:
    for item in datumaro.Dataset.import_from(str(folder), name):
        frame = int(item.id[-5:])
        for annotation in item.annotations:
            if annotation.type not in (AnnotationType.mask, AnnotationType.polygon):
                continue
            if annotation.attributes.get("outside"):
                continue
            object_id = annotation.group if id_of == "group" else int(annotation.attributes["track_id"])
            is_mask = annotation.type == AnnotationType.mask
            yield frame, object_id, annotation.image if is_mask else polygon_mask(annotation.points, size)


def by_fiftyone_coco(folder: Path, images: Path, size: tuple[int, int]) -> Shapes:
    importer = fiftyone.utils.coco.COCODetectionDatasetImporter(
        data_path=str(images), labels_path=str(folder / "annotations" / "instances_default.json"),
        label_types=["segmentations"],
    )  # fmt: skip
    importer.setup()
    for path, _, labels in importer:
        for detection in labels.detections:
            left, top = (round(side * length) for side, length in zip(detection.bounding_box, size[::-1], strict=False))
            mask = np.zeros(size, bool)
            height, width = detection.mask.shape
            mask[top : top + height, left : left + width] = detection.mask
            yield int(Path(path).stem), detection["track_id"], mask


def by_fiftyone_cvat_video(path: Path, size: tuple[int, int]) -> Shapes:
    _, _, tracks = fiftyone.utils.cvat.load_cvat_video_annotations(str(path))
    for track in tracks:
        for frame_number, line in track.to_labels().items():
            points = np.array(line.points[0]) * size[::-1]
            yield frame_number - 1, line.index, polygon_mask(points.ravel().tolist(), size)


def by_fiftyone_polygons(importer: object, size: tuple[int, int]) -> list[tuple[int, float]]:
    """(frame, enclosed pixels) of every polygon."""
    importer.setup()
    shapes = []
    for path, _, labels in importer:
        lines = labels.get("polylines") if isinstance(labels, dict) else labels
        for line in lines.polylines if lines else []:
            x, y = (np.array(line.points[0]) * size[::-1]).T
            shapes.append((int(Path(path).stem), abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2))
    return shapes


def by_label_studio(path: Path, work: Path, size: tuple[int, int]) -> Shapes:
    """Predictions are validated, accepted as annotations, and exported by the converter."""
    tasks = json.loads(path.read_text())
    interface = LabelInterface(LABELING_CONFIG)
    for index, task in enumerate(tasks):
        (prediction,) = task.pop("predictions")
        assert interface.validate_prediction(prediction)
        for region in prediction["result"]:
            values = brush.decode_rle(region["value"]["rle"]).reshape(*size, 4)
            yield task["data"]["frame_index"], int(region["id"].removeprefix("object-")), values[..., 3] > 0
        task |= {"id": index, "annotations": [prediction | {"id": index, "completed_by": {"email": "a@b"}}]}
    accepted, out = work / "accepted.json", work / "brush"
    accepted.write_text(json.dumps(tasks))
    out.mkdir()
    Converter(config=LABELING_CONFIG, project_dir=str(work)).convert(
        str(accepted), str(out), "BRUSH_TO_NUMPY", is_dir=False
    )
    areas = sorted(int((np.load(file) > 0).sum()) for file in out.glob("*.npy"))
    label_maps = np.load(path.with_name("label_maps.npy"))
    assert areas == sorted(area for _, area in areas_of(label_maps)), areas


def areas_of(label_maps: np.ndarray) -> list[tuple[int, float]]:
    return [
        (frame, float((labels == label).sum()))
        for frame, labels in enumerate(label_maps)
        for label in np.unique(labels)[1:]
    ]


def compare(name: str, shapes: Shapes, label_maps: np.ndarray) -> None:
    restored = np.zeros_like(label_maps)
    count = 0
    for frame, object_id, mask in shapes:
        restored[frame][np.asarray(mask, bool)] = object_id
        count += 1
    assert count == len(areas_of(label_maps)), f"{name}: {count} masks"
    np.testing.assert_array_equal(restored, label_maps, err_msg=name)
    print(f"{name}: {count} masks restored")


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    label_maps = np.load(folder / "label_maps.npy")
    size = label_maps.shape[1:]
    roots = ["coco/images/default", "cvat-images-mask/images", "cvat-images-polygon/images", "yolo/images/train"]
    for root in roots:
        (folder / root / "clip").mkdir(parents=True)
        for index in range(len(label_maps)):
            Image.new("RGB", size[::-1]).save(folder / root / "clip" / f"{index:05d}.jpg")
    images = folder / roots[0]

    compare("Datumaro, COCO", by_datumaro(folder / "coco", "coco", size, id_of="track"), label_maps)
    compare("Datumaro, MOTS", by_datumaro(folder / "mots", "mots", size, id_of="track"), label_maps)
    for shapes in ("mask", "polygon"):
        exported = folder / f"cvat-images-{shapes}"
        compare(f"Datumaro, CVAT images, {shapes}", by_datumaro(exported, "cvat", size, id_of="group"), label_maps)
    polygons = by_datumaro(folder / "cvat-polygon", "cvat", size, id_of="track")
    compare("Datumaro, CVAT video, polygon", polygons, label_maps)
    for tracks in ("mask", "object"):
        try:
            datumaro.Dataset.import_from(str(folder / f"cvat-{tracks}"), "cvat")
        except DatasetImportError:
            print(f"Datumaro, CVAT video, {tracks}: fails, as docs/formats.md says")
        else:
            raise AssertionError(f"Datumaro reads tracks={tracks} now: correct docs/formats.md")

    compare("FiftyOne, COCO", by_fiftyone_coco(folder / "coco", images, size), label_maps)
    tracks_file = folder / "cvat-polygon" / "clip.xml"
    compare("FiftyOne, CVAT video, polygon", by_fiftyone_cvat_video(tracks_file, size), label_maps)
    assert not list(by_fiftyone_cvat_video(folder / "cvat-mask" / "clip.xml", size)), "correct docs/formats.md"
    labels = folder / "cvat-images-polygon" / "clip.xml"
    of_cvat = fiftyone.utils.cvat.CVATImageDatasetImporter(data_path=str(images), labels_path=str(labels))
    shapes = by_fiftyone_polygons(of_cvat, size)
    assert sorted(shapes) == sorted(areas_of(label_maps)), shapes
    print(f"FiftyOne, CVAT images, polygon: {len(shapes)} areas equal")
    of_yolo = fiftyone.utils.yolo.YOLOv5DatasetImporter(
        dataset_dir=str(folder / "yolo"), yaml_path="data.yaml", split="train", label_type="polylines"
    )
    frames = sorted(frame for frame, _ in by_fiftyone_polygons(of_yolo, size))
    assert frames == sorted(frame for frame, _ in areas_of(label_maps)), frames
    print(f"FiftyOne, YOLO: {len(frames)} polygons in their frames")

    compare("Label Studio", by_label_studio(folder / "labelstudio.json", folder, size), label_maps)


if __name__ == "__main__":
    main()
