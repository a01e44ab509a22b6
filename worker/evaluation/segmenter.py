"""A sequence's frames -> its clusters in pixels: the pipeline as the service runs it, and what decides on objects."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import Background, Format, JobParams, Mode, level_name
from worker.evaluation.evaluate import Tell
from worker.evaluation.labels import read_all
from worker.evaluation.measures import Segmentation
from worker.loading import LoadedModel
from worker.masks import decide
from worker.pipeline import Budget, Extras, segment

NO_CAP = 10**9  # key tokens: a key ratio is evaluated as it is, or fails for want of memory


class PipelineSegmenter:
    """The service's own pipeline with one model and one set of parameters.

    It runs once for all that is measured: clusters are kept apart (`background=keep`), and the main object and the
    background are decided afterwards by the same function on the same tokens that the service decides on.
    """

    def __init__(self, model: LoadedModel, params: JobParams, budget: Budget) -> None:
        self.model = model
        kept = {"mode": Mode.multi, "background": Background.keep, "min_area": 0.0, "format": [Format.png, Format.rle]}
        self.params = params.model_copy(update=kept)
        self.budget = budget

    def __call__(self, source: Path, annotated: Sequence[int], tell: Tell) -> list[Segmentation]:
        with tempfile.TemporaryDirectory(prefix="uvos-evaluate-") as folder:
            out = Path(folder)
            segment(
                source,
                self.params,
                self.model,
                out,
                budget=self.budget,
                extras=Extras(tokens=True),
                on_progress=lambda stage, done, total: tell(stage.value, done, total),
            )
            with np.load(out / "tokens.npz") as tokens:
                assignments = tokens["labels"]
            return [
                _segmentation(out / "levels" / level_name(tau) / "masks", annotated, assignment)
                for tau, assignment in zip(self.params.tau, assignments, strict=True)
            ]


def _segmentation(masks: Path, annotated: Sequence[int], assignment: NDArray[np.int32]) -> Segmentation:
    clusters = int(assignment.max()) + 1
    ids = decide(assignment, clusters, background=Background.keep).object_of
    main = decide(assignment, clusters, mode=Mode.single).object_of
    objects = decide(assignment, clusters, background=Background.auto).object_of
    return Segmentation(
        labels=read_all([masks / f"{frame:05d}.png" for frame in annotated]),
        main=frozenset(ids[main > 0].tolist()),
        objects=frozenset(ids[objects > 0].tolist()),
        clusters=int((ids > 0).sum()),
    )
