"""Names and values that all export formats share."""

from typing import Any

from uvos.contract import Manifest, ManifestObject, RleFrame

LABEL = "object"  # the method finds objects, not classes
CATEGORY_ID = 1  # id of that one class in the formats that number classes from 1


def image_name(manifest: Manifest, frame_index: int) -> str:
    """Path of the image of a frame, as the annotations refer to it: "clip/00000.jpg".

    `docs/formats.md` shows how to extract the frames under these names.
    """
    return f"{manifest.video.name}/{frame_index:05d}.jpg"


def source_number(frame: RleFrame) -> int:
    """Number of a frame among the decoded frames of the file; if unknown, its index in the result."""
    return frame.index if frame.source_frame is None else frame.source_frame


def frame_fields(frame: RleFrame) -> dict[str, Any]:
    """Index in the result, time in seconds, and number in the file if known, as JSON formats write them."""
    number = {} if frame.source_frame is None else {"source_frame": frame.source_frame}
    return {"frame_index": frame.index, "time_s": frame.time, **number}


def score(summary: ManifestObject) -> float:
    """Confidence that an object is foreground, in [0, 1]: its object score, else 1 - background score."""
    return round(1 - summary.background_score if summary.object_score is None else summary.object_score, 6)
