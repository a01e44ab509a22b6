"""Names and values that all export formats share."""

from uvos.contract import Manifest, ManifestObject

LABEL = "object"  # the method finds objects, not classes
CATEGORY_ID = 1  # id of that one class in the formats that number classes from 1


def image_name(manifest: Manifest, frame_index: int) -> str:
    """Path of the image of a frame, as the annotations refer to it: "clip/00000.jpg".

    `docs/formats.md` shows how to extract the frames under these names.
    """
    return f"{manifest.video.name}/{frame_index:05d}.jpg"


def score(summary: ManifestObject) -> float:
    """Confidence that an object is foreground, in [0, 1]: 1 - background score."""
    return round(1 - summary.background_score, 6)
