"""Names and values that all export formats share."""

from dataclasses import dataclass
from typing import Any

from uvos.contract import Manifest, ManifestObject, RleDocument, RleFrame

LABEL = "object"  # the method finds objects, not classes; the class of objects that a user has not named


@dataclass(frozen=True)
class Classes:
    """The classes of the objects of a level: the names that a user gave them.

    Attributes:
        names: Distinct names; `LABEL` is the first if objects have no name, or if there are none.
        index: Index of each object's class, by object id.
    """

    names: list[str]
    index: dict[int, int]

    @staticmethod
    def of(document: RleDocument) -> "Classes":
        ids = sorted({instance.id for frame in document.frames for instance in frame.objects})
        named = [document.names.get(object_id, LABEL) for object_id in ids]
        names = list(dict.fromkeys(sorted(named or [LABEL], key=lambda name: name != LABEL)))
        return Classes(names, {object_id: names.index(name) for object_id, name in zip(ids, named, strict=True)})

    def name(self, object_id: int) -> str:
        return self.names[self.index[object_id]]

    def category_id(self, object_id: int) -> int:
        """Id of an object's class in the formats that number classes from 1."""
        return self.index[object_id] + 1


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
