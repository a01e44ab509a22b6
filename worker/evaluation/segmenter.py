"""Segment a sequence with the pipeline of the service, and apply its rules for objects afterwards."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uvos.contract import Background, Format, JobParams, Mode, level_name
from worker.evaluation.evaluate import OnStage
from worker.evaluation.labels import read_all
from worker.evaluation.measures import Segmentation
from worker.method.masks import decide_objects
from worker.models.loading import LoadedModel
from worker.pipeline import segment
from worker.run import Budget, Extras, SegmentationRun

NO_CAP = 10**9  # key tokens: an evaluation uses the key ratio as given, or fails where memory does not suffice


class PipelineSegmenter:
    """The service's own pipeline with one model and one set of parameters.

    It runs once for all measures: clusters stay separate (`background=keep`), and the main object and the background
    are determined afterwards by the function and on the tokens that the service uses.
    """

    def __init__(self, model: LoadedModel, params: JobParams, budget: Budget) -> None:
        self.model = model
        kept = {"mode": Mode.multi, "background": Background.keep, "min_area": 0.0, "format": [Format.png, Format.rle]}
        self.params = params.model_copy(update=kept)
        self.budget = budget

    def __call__(self, source: Path, annotated: Sequence[int], on_stage: OnStage) -> list[Segmentation]:
        with tempfile.TemporaryDirectory(prefix="uvos-evaluate-") as folder:
            out = Path(folder)
            segment(
                SegmentationRun(
                    source=source,
                    params=self.params,
                    model=self.model,
                    out=out,
                    budget=self.budget,
                    extras=Extras(tokens=True),
                    on_progress=lambda stage, done, total: on_stage(stage.value, done, total),
                )
            )
            with np.load(out / "tokens.npz") as tokens:
                assignments, motion = tokens["labels"], tokens.get("motion")
            return [
                _segmentation(out / "levels" / level_name(tau) / "masks", annotated, assignment, motion)
                for tau, assignment in zip(self.params.tau, assignments, strict=True)
            ]


def _segmentation(
    masks: Path, annotated: Sequence[int], assignment: NDArray[np.int32], motion: NDArray[np.float32] | None
) -> Segmentation:
    clusters = int(assignment.max()) + 1
    labels = read_all([masks / f"{frame:05d}.png" for frame in annotated])
    drawn = drawn_ids(labels, assignment[list(annotated)], clusters)
    main = decide_objects(assignment, clusters, mode=Mode.single, motion=motion).object_ids > 0
    objects = decide_objects(assignment, clusters, background=Background.auto, motion=motion).object_ids > 0
    return Segmentation(
        labels=labels,
        main=frozenset(drawn[main & (drawn > 0)].tolist()),
        objects=frozenset(drawn[objects & (drawn > 0)].tolist()),
        clusters=len(np.unique(assignment)),
    )


def drawn_ids(labels: NDArray[np.uint16], assignment: NDArray[np.int32], clusters: int) -> NDArray[np.int64]:
    """The drawn id of each cluster: the most frequent id at the centres of its patches.

    Args:
        labels: Label maps without background, shape (A, H, W).
        assignment: The cluster of each patch in the same frames, shape (A, h, w).
        clusters: C.

    Returns:
        Shape (C,); 0 for a cluster that has no patch in these frames.
    """
    _, height, width = assignment.shape
    rows = ((np.arange(height) + 0.5) * labels.shape[1] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[2] / width).astype(int)
    at_centres = labels[:, rows][:, :, columns].astype(np.int64)
    ids = int(at_centres.max()) + 1
    votes = np.bincount((assignment * ids + at_centres).ravel(), minlength=clusters * ids).reshape(clusters, ids)
    return np.asarray(votes.argmax(1), dtype=np.int64)
