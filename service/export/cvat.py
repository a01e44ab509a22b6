"""CVAT 1.1, for video (tracks) and for images (one list of shapes per frame)."""

import re
from enum import StrEnum
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from service.export.conventions import Classes, image_name, source_number
from service.export.polygons import outline
from uvos import rle
from uvos.contract import Manifest, RleDocument, RleMask

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not even allowed as an entity


class Shapes(StrEnum):
    """How a shape is written."""

    mask = "mask"
    """Run lengths: CVAT edits them with its brush."""
    polygon = "polygon"
    """The outline of the mask: FiftyOne reads polygons only."""


class Tracks(StrEnum):
    """What a track of CVAT for video contains."""

    mask = "mask"
    """One mask in one frame, as CVAT itself exports masks: its importer keeps only the first mask of a longer track.
    The masks of an object share its `group_id`."""
    object = "object"
    """All masks of an object, which the format allows but CVAT does not import."""
    polygon = "polygon"
    """All outlines of an object: CVAT imports the whole track; Datumaro and FiftyOne read nothing else."""


Keyframe = tuple[int, str]
"""Index of a frame and the geometry of the shape in it, as XML attributes."""


def render(document: RleDocument, manifest: Manifest, *, tracks: Tracks = Tracks.mask) -> str:
    """CVAT for video 1.1: the XML of one level.

    `group_id` is the object id, and so is the `id` of a track that contains the whole object. `frame` is the number of
    the frame in the file, as CVAT counts the frames of a task made of that file. A shape marked `outside` ends a track
    in the first segmented frame without the object; later shapes resume it.

    Source: docs.cvat.ai, "XML annotation format", version 1.1, section on interpolation; masks as CVAT writes them.
    """
    shapes = Shapes.polygon if tracks is Tracks.polygon else Shapes.mask
    keyframes: dict[int, list[Keyframe]] = {}
    for position, frame in enumerate(document.frames):
        for instance in frame.objects:
            keyframes.setdefault(instance.id, []).append((position, _geometry(instance.rle, shapes)))
    classes = Classes.of(document)
    numbers = [source_number(frame) for frame in document.frames]
    lines = []
    track_count = 0
    for object_id, of_object in sorted(keyframes.items()):
        for track in [[keyframe] for keyframe in of_object] if tracks is Tracks.mask else [of_object]:
            track_id = track_count if tracks is Tracks.mask else object_id
            track_count += 1
            label = quoteattr(_text(classes.name(object_id)))
            lines.append(f'  <track id="{track_id}" label={label} source="auto" group_id="{object_id}">')
            lines += _track(track, shapes, numbers)
            lines.append("  </track>")
    return _annotations(document, manifest, shapes, "interpolation", lines)


def render_images(document: RleDocument, manifest: Manifest, *, shapes: Shapes = Shapes.mask) -> str:
    """CVAT for images 1.1: the XML of one level.

    `group_id` is the object id. CVAT matches `name` in tasks made of images, `id` (the number of the frame in the file)
    in tasks made of a video.

    Source: docs.cvat.ai, "XML annotation format", version 1.1, section on annotation; masks as CVAT writes them.
    """
    height, width = document.size
    classes = Classes.of(document)
    lines = []
    for frame in document.frames:
        name = quoteattr(_text(image_name(manifest, frame.index)))
        lines.append(f'  <image id="{source_number(frame)}" name={name} width="{width}" height="{height}">')
        lines += [
            f'    <{shapes} label={quoteattr(_text(classes.name(instance.id)))} source="auto" occluded="0" '
            f'{_geometry(instance.rle, shapes)} z_order="0" group_id="{instance.id}"></{shapes}>'
            for instance in frame.objects
        ]
        lines.append("  </image>")
    return _annotations(document, manifest, shapes, "annotation", lines)


def _track(track: list[Keyframe], shapes: Shapes, numbers: list[int]) -> list[str]:
    """The elements of one track: every shape, and the end of every run of consecutive frames, numbered by `numbers`."""
    elements = []
    for (frame, geometry), (next_frame, _) in pairwise([*track, (len(numbers), "")]):
        elements.append(_keyframe(numbers[frame], geometry, shapes, outside=False))
        if next_frame > frame + 1:
            elements.append(_keyframe(numbers[frame + 1], geometry, shapes, outside=True))
    return elements


def _keyframe(frame: int, geometry: str, shapes: Shapes, *, outside: bool) -> str:
    return (
        f'    <{shapes} frame="{frame}" keyframe="1" outside="{outside:d}" occluded="0" {geometry} z_order="0">'
        f"</{shapes}>"
    )


def _geometry(mask: RleMask, shapes: Shapes) -> str:
    if shapes is Shapes.polygon:
        points = ";".join(f"{x}.00,{y}.00" for x, y in outline(rle.mask(mask)).tolist())
        return f'points="{points}"'
    return _box(mask)


def _box(mask: RleMask) -> str:
    """The attributes `rle`, `left`, `top`, `width` and `height` of a mask with at least one pixel."""
    height = mask.size[0]
    lengths = rle.runs(mask.counts)
    edges = lengths.cumsum()
    left, right = int(edges[0]) // height, (int(edges[1::2][-1]) - 1) // height  # first and last column
    # Only the columns of the box are decoded.
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


def _annotations(document: RleDocument, manifest: Manifest, shapes: Shapes, mode: str, lines: list[str]) -> str:
    """The XML document around the tracks or images."""
    head = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    return "\n".join([*head, *_meta(document, manifest, shapes, mode), *lines, "</annotations>\n"])


def _text(text: str) -> str:
    return NOT_XML.sub("?", text)


def _meta(document: RleDocument, manifest: Manifest, shapes: Shapes, mode: str) -> list[str]:
    created = manifest.created_at.isoformat(sep=" ")
    height, width = document.size
    return [
        "  <meta>",
        "    <task>",
        f"      <name>{escape(_text(manifest.video.name))}</name>",
        f"      <size>{len(document.frames)}</size>",
        f"      <mode>{mode}</mode>",
        "      <overlap>0</overlap>",
        "      <flipped>False</flipped>",
        f"      <created>{created}</created>",
        f"      <updated>{created}</updated>",
        "      <labels>",
        *(line for name in Classes.of(document).names for line in _label(name, shapes)),
        "      </labels>",
        "      <original_size>",
        f"        <width>{width}</width>",
        f"        <height>{height}</height>",
        "      </original_size>",
        "    </task>",
        f"    <dumped>{created}</dumped>",
        "  </meta>",
    ]


def _label(name: str, shapes: Shapes) -> list[str]:
    return [
        "        <label>",
        f"          <name>{escape(_text(name))}</name>",
        f"          <type>{shapes}</type>",
        "          <attributes></attributes>",
        "        </label>",
    ]
