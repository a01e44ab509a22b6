"""CVAT for video 1.1: tracks of masks, row-major RLE within the bounding box."""

import re
from enum import StrEnum
from itertools import pairwise
from xml.sax.saxutils import escape

import numpy as np

from uvos import rle
from uvos.contract import Manifest, RleDocument, RleMask

LABEL = "object"  # the method does not classify objects
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # invalid even as entities


class Tracks(StrEnum):
    """Meaning of a track."""

    object = "object"
    """An object through the whole video, as the format defines."""
    mask = "mask"
    """A mask in one frame, as CVAT exports masks. The importer of CVAT keeps only the first mask of a longer track.
    The masks of an object share its `group_id`."""


def render(document: RleDocument, manifest: Manifest, *, tracks: Tracks = Tracks.object) -> str:
    """The XML of one level.

    `group_id` is the object id, and so is the `id` of a track that is an object. `frame` indexes the frames of the
    result, like `pts_s` of the manifest; with `start`, `end` or `fps` these are not all frames of the video. A mask
    marked `outside` hides the object from the frame after its last mask; a later mask shows it again.

    Source: docs.cvat.ai, "XML annotation format", version 1.1, section on interpolation; masks as CVAT writes them.
    """
    masks_by_object: dict[int, list[tuple[int, str]]] = {}
    for position, frame in enumerate(document.frames):
        for item in frame.objects:
            masks_by_object.setdefault(item.id, []).append((position, _box(item.rle)))
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    lines += _meta(document, manifest)
    count = 0
    for label, masks in sorted(masks_by_object.items()):
        for track in [masks] if tracks is Tracks.object else [[mask] for mask in masks]:
            number = label if tracks is Tracks.object else count
            count += 1
            lines.append(f'  <track id="{number}" label="{LABEL}" source="auto" group_id="{label}">')
            lines += _masks(track, len(document.frames))
            lines.append("  </track>")
    lines.append("</annotations>\n")
    return "\n".join(lines)


def _masks(masks: list[tuple[int, str]], frames: int) -> list[str]:
    """The elements of one track: its masks, and an `outside` element wherever the next frame has no mask."""
    elements = []
    for (frame, box), (following, _) in pairwise([*masks, (frames, "")]):
        elements.append(_element(frame, box, outside=False))
        if following > frame + 1:
            elements.append(_element(frame + 1, box, outside=True))
    return elements


def _element(frame: int, box: str, *, outside: bool) -> str:
    return f'    <mask frame="{frame}" keyframe="1" outside="{outside:d}" occluded="0" {box} z_order="0"></mask>'


def _box(mask: RleMask) -> str:
    """The attributes `rle`, `left`, `top`, `width` and `height` of a mask that is not empty."""
    height = mask.size[0]
    lengths = rle.runs(mask.counts)
    edges = lengths.cumsum()
    left, right = int(edges[0]) // height, (int(edges[1::2][-1]) - 1) // height  # first and last column
    # Only the columns of the bounding box are decoded.
    clipped = np.diff(np.clip(edges, left * height, (right + 1) * height), prepend=left * height)
    ones = np.arange(len(clipped)) % 2 == 1
    columns = ones.repeat(clipped).reshape(right - left + 1, height)
    rows = np.flatnonzero(columns.any(0))
    top, bottom = int(rows[0]), int(rows[-1])
    flat = columns[:, top : bottom + 1].T.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], starts, [len(flat)]])).tolist()
    if flat[0]:
        counts = [0, *counts]
    return (
        f'rle="{", ".join(map(str, counts))}" left="{left}" top="{top}" '
        f'width="{right - left + 1}" height="{bottom - top + 1}"'
    )


def _meta(document: RleDocument, manifest: Manifest) -> list[str]:
    created = manifest.created_at.isoformat(sep=" ")
    height, width = document.size
    return [
        "  <meta>",
        "    <task>",
        f"      <name>{escape(NOT_XML.sub('?', manifest.video.name))}</name>",
        f"      <size>{len(document.frames)}</size>",
        "      <mode>interpolation</mode>",
        "      <overlap>0</overlap>",
        "      <flipped>False</flipped>",
        f"      <created>{created}</created>",
        f"      <updated>{created}</updated>",
        "      <labels>",
        "        <label>",
        f"          <name>{LABEL}</name>",
        "          <type>mask</type>",
        "          <attributes></attributes>",
        "        </label>",
        "      </labels>",
        "      <original_size>",
        f"        <width>{width}</width>",
        f"        <height>{height}</height>",
        "      </original_size>",
        "    </task>",
        f"    <dumped>{created}</dumped>",
        "  </meta>",
    ]
