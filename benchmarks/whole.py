"""Time of the whole pipeline with a ViT-S/8, and masks encoded per second; both run in the calling process."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor

from benchmarks.features import textured_frames
from uvos.contract import JobParams, Motion
from uvos.models import MODELS
from worker.models.backbone import Backbone, Projections, create_vit
from worker.models.loading import LoadedModel
from worker.models.weights import Preprocessing
from worker.outputs.drawing import DRAWING_THREADS
from worker.outputs.png import write_png
from worker.outputs.rle import Runs
from worker.pipeline import segment
from worker.run import SegmentationRun

ENTRY = MODELS["dino-vits8"]
VIT_GAIN = 3.0  # factor on the scores of random weights, with which there are as many leaders as with trained ones
VIDEO = (480, 720)
ENCODED = (480, 854)
OBJECTS = 8


class RandomVit(Backbone):
    """A ViT-S/8 with random weights and scores scaled to the spread that trained weights give."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        super().__init__(create_vit("vit_small_patch8_224.dino"), preprocessing=preprocessing, dtype=dtype)
        self._gain: float | None = None

    def project(self, frames: Tensor, *, size: tuple[int, int] | None = None) -> Projections:
        projections = super().project(frames, size=size)
        if self._gain is None:
            self._gain = VIT_GAIN / float(projections.queries.std() * projections.keys.std())
        return Projections(projections.queries * self._gain, projections.keys)


def vit_features(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Queries and keys of generated frames of (H, W) pixels, (T, N, heads, d) float32 each."""
    projections = RandomVit().project(textured_frames(count, *size))
    return projections.queries, projections.keys


def segment_video(count: int, key_ratio: float, size: tuple[int, int]) -> tuple[dict[str, float], int, int]:
    """Segment a generated video at a model resolution of (H, W) pixels: seconds by stage, leaders, clusters."""
    model = LoadedModel(
        RandomVit(),
        entry=ENTRY,
        weights_source="random",
        sha256="",
        version="",
        dtype="bfloat16",
    )
    params = JobParams(
        model=ENTRY.name,
        tau=[1.0],
        key_ratio=key_ratio,
        motion=Motion.off,
        resolution="x".join(map(str, size)),
    )
    with tempfile.TemporaryDirectory() as folder:
        video, out = Path(folder) / "video.mp4", Path(folder) / "out"
        with av.open(str(video), "w") as output:
            stream = output.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "12"})
            stream.height, stream.width, stream.pix_fmt = *VIDEO, "yuv420p"
            for frame in textured_frames(count, *VIDEO).numpy():
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            output.mux(stream.encode())
        model.backbone.project(textured_frames(1, *size))  # one-time costs of a process, and the gain
        out.mkdir()
        manifest = segment(SegmentationRun(source=video, params=params, model=model, out=out))
    level = manifest.levels[0]
    return manifest.timings_s, level.rounds[0].centroids, level.clusters


def encode_masks(frames: int) -> dict[str, float]:
    """Masks encoded per second: to RLE, to RLE and PNG as the pipeline does it, and by pycocotools one at a time."""
    label_maps = [_label_map(frame) for frame in range(frames)]
    masks = sum(len(np.unique(label_map)) - 1 for label_map in label_maps)
    rates = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(DRAWING_THREADS) as pool:

        def rle(index: int) -> dict[int, str]:
            return Runs.of(label_maps[index]).counts()

        def both(index: int) -> None:
            rle(index)
            write_png(Path(folder) / f"{index:05d}.png", label_maps[index], objects=OBJECTS)

        for name, work in (("RLE", rle), ("RLE and palette PNG", both)):
            start = time.perf_counter()
            list(pool.map(work, range(frames)))
            rates[name] = masks / (time.perf_counter() - start)
    start = time.perf_counter()
    for label_map in label_maps:
        for label in range(1, OBJECTS + 1):
            coco.encode(np.asfortranarray(label_map == label))
    rates["pycocotools, RLE of one mask at a time"] = masks / (time.perf_counter() - start)
    return rates


def _label_map(frame: int) -> NDArray[np.uint16]:
    """Objects with wavy outlines that drift, and ground."""
    height, width = ENCODED
    y, x = np.mgrid[:height, :width].astype(np.float32)
    labels = np.zeros(ENCODED, np.uint16)
    for label in range(1, OBJECTS + 1):
        down, right = height * (0.2 + 0.2 * (label % 4)), width * (0.1 * label) + 3 * frame
        angle = np.arctan2(y - down, x - right)
        radius = 55 * (1 + 0.15 * np.sin(7 * angle + label) + 0.05 * np.sin(23 * angle + frame))
        labels[(y - down) ** 2 + (x - right) ** 2 < radius**2] = label
    return labels
