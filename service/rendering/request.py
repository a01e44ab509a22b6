"""What a rendering process is asked for."""

from enum import StrEnum
from pathlib import Path

from uvos.contract import StrictSchema
from uvos.edits import EditState

NO_SPACE = 3  # exit status: the disk is full


class Product(StrEnum):
    """A file with pixels of the video."""

    cutout_webm = "cutout.webm"
    cutout_mov = "cutout.mov"
    preview_gif = "preview.gif"
    overlay_mp4 = "overlay.mp4"


class RenderRequest(StrictSchema):
    """One file of one level."""

    product: Product
    folder: Path
    """Folder of the result."""
    level: str
    """Name of the level."""
    state: EditState
    """Edits of its objects."""
    object_id: int | None = None
    """The object to show; None for all that the edits show."""
    out: Path
    """The file."""
