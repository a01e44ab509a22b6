"""Results in the form that a worker writes: known label maps, their RLE by pycocotools, a manifest."""

from datetime import UTC, datetime

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco

from uvos.contract import (
    Manifest,
    ManifestLevel,
    ManifestModel,
    ManifestObject,
    ManifestVideo,
    RleDocument,
    RleFrame,
    RleMask,
    RleObject,
)

videos = st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: npst.arrays(np.uint16, shape, elements=st.integers(0, 3))
)
"""Label maps of videos, shape (T, H, W)."""


def pycocotools_counts(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()


def a_document(label_maps: np.ndarray) -> RleDocument:
    size = label_maps.shape[1:]
    return RleDocument(
        size=size,
        frames=[
            RleFrame(
                index=index,
                time=index / 25,
                objects=[
                    RleObject(id=label, rle=RleMask(size=size, counts=pycocotools_counts(label_map == label)))
                    for label in np.unique(label_map[label_map > 0]).tolist()
                ],
            )
            for index, label_map in enumerate(label_maps)
        ],
    )


def a_level(label_maps: np.ndarray) -> ManifestLevel:
    objects = []
    for label in np.unique(label_maps[label_maps > 0]).tolist():
        frames = np.flatnonzero((label_maps == label).any((1, 2)))
        objects.append(
            ManifestObject(
                id=label,
                color="#800000",
                area=float((label_maps[frames] == label).mean()),
                first_frame=int(frames[0]),
                last_frame=int(frames[-1]),
                frames=len(frames),
                background_score=label / 10,
            )
        )
    return ManifestLevel(
        tau=1, name="1", clusters=len(objects) + 1, objects=objects, background_clusters=1, rounds=[], files=[]
    )


def a_manifest(label_maps: np.ndarray, name: str = "clip.mp4") -> Manifest:
    length, height, width = label_maps.shape
    return Manifest(
        job_id="job",
        created_at=datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        video=ManifestVideo(
            name=name,
            sha256="0" * 64,
            width=width,
            height=height,
            frame_count=length,
            fps=25,
            pts_s=[index / 25 for index in range(length)],
            rotation=0,
            sample_aspect_ratio="1:1",
            codec="h264",
        ),
        params={},
        model=ManifestModel(name="tiny", weights="package", sha256="0" * 64),
        versions={},
        device="cpu",
        dtype="float32",
        resolution="64x64",
        grid="8x8",
        key_frames=[0],
        timings_s={},
        warnings=[],
        levels=[a_level(label_maps)],
    )
