"""Segment a sequence with the pipeline of the service, and apply its rules for objects afterwards."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uvos.contract import Background, Format, JobParams, Mode, level_name
from worker.evaluation.evaluate import OnStage
from worker.evaluation.labels import read_all
from worker.evaluation.measures import Segmentation
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
                    extras=Extras(tokens=True, views=True),
                    on_progress=lambda stage, done, total: on_stage(stage.value, done, total),
                )
            )
            with np.load(out / "tokens.npz") as tokens:
                assignments = tokens["labels"]
            return [
                _segmentation(out / "levels" / level_name(tau), annotated, len(np.unique(assignment)))
                for tau, assignment in zip(self.params.tau, assignments, strict=True)
            ]


def _segmentation(level: Path, annotated: Sequence[int], clusters: int) -> Segmentation:
    labels, main, objects = (
        read_all([level / folder / f"{frame:05d}.png" for frame in annotated])
        for folder in ("masks", Mode.single.value, Mode.multi.value)
    )
    return Segmentation(labels=labels, main=main > 0, objects=objects, clusters=clusters)
