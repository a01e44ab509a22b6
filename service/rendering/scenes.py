"""The frames of a result with the label maps of a level, one frame in memory at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.rendering.request import RenderRequest
from uvos import rle
from uvos.contract import Manifest, RleDocument
from uvos.edits import applied


@dataclass(frozen=True)
class Scene:
    """The frames that were segmented, and the masks of the objects to show.

    Attributes:
        folder: Folder of the result.
        document: Masks.
        pts_s: Time of each frame, seconds.
    """

    folder: Path
    document: RleDocument
    pts_s: list[float]

    @staticmethod
    def of(request: RenderRequest) -> "Scene":
        manifest = Manifest.model_validate_json((request.folder / "manifest.json").read_bytes())
        path = request.folder / "levels" / request.level / "rle.json"
        document = RleDocument.model_validate_json(path.read_bytes())
        level = next(level for level in manifest.levels if level.name == request.level)
        document, _ = applied(request.state, document, level)
        if request.object_id is not None:
            for frame in document.frames:
                frame.objects = [item for item in frame.objects if item.id == request.object_id]
        return Scene(request.folder, document, manifest.video.pts_s)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint16]]]:
        """Each frame, RGB (h, w, 3), with its label map (H, W) in the size of the video."""
        for picture, frame in zip(self._pictures(), self.document.frames, strict=True):
            yield picture, rle.label_map(frame, self.document.size)

    def _pictures(self) -> Iterator[NDArray[np.uint8]]:
        """The frames in the size of the video if the job kept them, else those of the proxy."""
        images = self.folder / "frames"
        if images.is_dir():
            for frame in self.document.frames:
                yield np.asarray(Image.open(images / f"{frame.index:05d}.jpg"))
            return
        with av.open(str(self.folder / "source.mp4")) as container:
            for decoded in container.decode(video=0):
                yield np.asarray(decoded.to_ndarray(format="rgb24"), np.uint8)
