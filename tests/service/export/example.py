"""Exports of a fixed result, for the importers of other tools.

`python -m tests.service.export.example FOLDER` writes them; `make importers` has the tools read them.
"""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from service.export import coco, cvat, label_studio, mots, yolo
from tests.service.export.documents import a_document, a_manifest

VERIFIED = Path(__file__).parent / "verified"
"""The exports as the importers have read them."""


def label_maps() -> np.ndarray:
    """Three objects, shape (4, 24, 32): with a hole, in two parts and absent from a frame, and in one frame only."""
    maps = np.zeros((4, 24, 32), np.uint16)
    maps[:3, 3:12, 4:14] = 1
    maps[1, 6:8, 7:9] = 0
    maps[[0, 1, 3], 15:20, 2:10] = 2
    maps[1, 15:20, 5:7] = 0
    maps[2, 2:5, 20:30] = 3
    return maps


def exports() -> dict[str, bytes]:
    """Every export that has a foreign importer, by path; archives are unpacked."""
    document, manifest = a_document(label_maps()), a_manifest(label_maps(), name="clip")
    (level,) = manifest.levels
    texts = {
        "coco/annotations/instances_default.json": coco.render(document, manifest, level),
        "labelstudio.json": label_studio.render(document, manifest, level),
    }
    texts |= {f"cvat-{tracks}/clip.xml": cvat.render(document, manifest, tracks=tracks) for tracks in cvat.Tracks}
    texts |= {
        f"cvat-images-{shapes}/clip.xml": cvat.render_images(document, manifest, shapes=shapes)
        for shapes in cvat.Shapes
    }
    files = {path: text.encode() for path, text in texts.items()}
    for name, data in (("yolo", yolo.render(document, manifest)), ("mots", mots.render(document, manifest))):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files |= {f"{name}/{path}": archive.read(path) for path in archive.namelist()}
    return files


def main() -> None:
    folder = Path(sys.argv[1])
    for path, content in exports().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    np.save(folder / "label_maps.npy", label_maps())


if __name__ == "__main__":
    main()
