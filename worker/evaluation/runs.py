"""The evaluations of one command: a segmenter for each chosen model and affinity."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.settings import Settings
from uvos.contract import Affinity, SegmentParams
from uvos.errors import InvalidParameters
from uvos.models import MODELS
from uvos.weights import is_installed
from worker.evaluation.baselines import load
from worker.evaluation.datasets import DatasetName
from worker.evaluation.evaluate import Evaluation
from worker.evaluation.segmenter import NO_CAP, PipelineSegmenter
from worker.models.loading import LoadedModel
from worker.run import Budget

ALL = "all"
TRAINED_BLOCK = "trained block"  # in place of an affinity


@dataclass(frozen=True)
class Data:
    """What is evaluated on: a data set, its split, and the first frames of each sequence or all (None)."""

    dataset: DatasetName
    split: str
    limit_frames: int | None


@dataclass(frozen=True)
class ModelChoice:
    """The models and affinities of an evaluation.

    Attributes:
        models: Names of models or baselines, or `all`; none: the default model.
        affinities: Names, or `all`; none: that of each model.
        weights: A file with the weights of a single model.
        dtype: Of features and attention.

    Raises:
        InvalidParameters: an affinity is unknown, or weights are given for several models.
    """

    models: tuple[str, ...]
    affinities: tuple[str, ...]
    weights: Path | None
    dtype: str

    def __post_init__(self) -> None:
        unknown = sorted(set(self.affinities) - {ALL, *Affinity})
        if unknown:
            raise InvalidParameters(f"--affinity must be one of {', '.join([*Affinity, ALL])}, got {unknown[0]!r}")
        if self.weights is not None and (len(self.models) > 1 or ALL in self.models):
            raise InvalidParameters(
                f"--weights is a file of one model: name at most one --model, got {', '.join(self.models)}"
            )

    def names(self, weights_dir: Path | None) -> list[str | None]:
        """The models in order without repeats; None is the default model."""
        installed = [entry.name for entry in MODELS.values() if is_installed(entry, weights_dir)]
        chosen = [name for given in self.models for name in (installed if given == ALL else [given])]
        return list(dict.fromkeys(chosen)) or [None]

    def affinities_of(self, model: LoadedModel) -> list[Affinity]:
        """The affinities to evaluate a model with: one with a trained block, which replaces them."""
        chosen = [Affinity(name) for given in self.affinities for name in (Affinity if given == ALL else [given])]
        chosen = list(dict.fromkeys(chosen)) or [model.entry.affinity]
        return chosen if model.affinity(chosen[0]) is not None else chosen[:1]


def evaluation_runs(
    data: Data, choice: ModelChoice, params: SegmentParams, settings: Settings
) -> Iterator[tuple[int, int, Evaluation, PipelineSegmenter]]:
    """Load the models one after the other.

    Yields:
        Number of completed evaluations, number of all evaluations as far as known (a trained block makes it smaller),
        and the next evaluation with its segmenter.
    """
    names = choice.names(settings.weights_folder)
    budget = Budget(memory_bytes=settings.memory_budget_bytes, max_key_tokens=NO_CAP)
    done = 0
    for index, name in enumerate(names):
        model = load(name, weights=choice.weights, settings=settings, dtype=choice.dtype, clustering=params.clustering)
        affinities = choice.affinities_of(model)
        for position, affinity in enumerate(affinities):
            completed = model.entry.complete(params.model_copy(update={"affinity": affinity}))
            segmenter = PipelineSegmenter(model, completed, budget)
            count = done + len(affinities) - position + len(affinities) * (len(names) - 1 - index)
            yield done, count, _evaluation(data, model, segmenter), segmenter
            done += 1


def _evaluation(data: Data, model: LoadedModel, segmenter: PipelineSegmenter) -> Evaluation:
    return Evaluation(
        dataset=data.dataset,
        split=data.split,
        taus=tuple(segmenter.params.tau),
        limit_frames=data.limit_frames,
        model={
            "name": model.entry.name,
            "version": model.version,
            "affinity": model.affinity(segmenter.params.affinity) or TRAINED_BLOCK,
            "weights": model.weights_source,
            "sha256": model.sha256,
            "device": str(model.device),
            "dtype": model.dtype,
        },
        params=segmenter.params.model_dump(mode="json"),
    )
