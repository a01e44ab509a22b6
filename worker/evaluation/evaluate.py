"""Segment and score a data set sequence by sequence; an interrupted evaluation resumes."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from uvos.contract import level_name
from uvos.errors import UvosError
from worker.evaluation import measures
from worker.evaluation.datasets import DATASETS, DatasetName
from worker.evaluation.datasets.sequence import LabelledSequence
from worker.evaluation.frames import frames_of
from worker.evaluation.measures import Measure, Measured, Segmentation

CODE = Path(__file__).parent.parent  # results of other code are not reused

OnStage = Callable[[str, int, int | None], None]
"""Called with the stage, its frames done and all frames."""


class Segmenter(Protocol):
    """Segments the frames of a sequence; returns a `Segmentation` of the annotated frames for each tau."""

    def __call__(self, source: Path, annotated: Sequence[int], on_stage: OnStage) -> list[Segmentation]: ...


class Progress(Protocol):
    """Receives the progress of an evaluation."""

    def sequence(self, name: str, done: int, of: int) -> None:
        """A sequence begins."""

    def stage(self, name: str, done: int, of: int | None) -> None:
        """Frames done within a stage of the sequence."""


@dataclass(frozen=True)
class Evaluation:
    """Everything the results depend on except the sequences.

    Attributes:
        dataset: The data set.
        split: Its split.
        taus: Merge thresholds, a level each.
        limit_frames: Only the first frames of each sequence.
        model: Identity of the model: name, version, weights, sha256, device, dtype.
        params: The parameters as the pipeline takes them.
    """

    dataset: DatasetName
    split: str
    taus: tuple[float, ...]
    limit_frames: int | None
    model: dict[str, str]
    params: dict[str, Any]

    @property
    def key(self) -> str:
        """A digest of the evaluation and of the code: the same key means the same results."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode())
        for file in sorted([*CODE.rglob("*.py")]):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def evaluate(
    evaluation: Evaluation,
    sequences: Sequence[LabelledSequence],
    segmenter: Segmenter,
    *,
    work: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Segment and score all sequences.

    Args:
        evaluation: Data set, model and parameters.
        sequences: Of the data set.
        segmenter: Returns a segmentation for each of `evaluation.taus`.
        work: A folder for the results of single sequences, from which an interrupted evaluation resumes. None: results
            are not stored.
        progress: Receives the progress.

    Returns:
        The evaluation, and for the first tau `mean` {measure: value}, `per_sequence` {sequence: {measure: value}},
        `per_frame` {sequence: {frame: {measure: value}}}; with several, `levels` {tau: the same}. None where a
        measure is undefined.

    Raises:
        UvosError: A sequence cannot be read or segmented; names it. Finished sequences stay in `work`.
    """
    folder = None if work is None else work / evaluation.key
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Measured]] = {}
    for done, sequence in enumerate(sequences):
        progress.sequence(sequence.name, done, len(sequences))
        file = None if folder is None else folder / f"{sequence.name}.json"
        measured = _read(file)
        if measured is None:
            try:
                measured = _measure(evaluation, sequence, segmenter, progress.stage)
            except UvosError as error:
                raise type(error)(f"{sequence.name}: {error.detail}", limit=error.limit, actual=error.actual) from error
            _write(file, measured)
        found[sequence.name] = measured
    levels = {
        level_name(tau): _level({name: measured[index] for name, measured in found.items()}, sequences, evaluation)
        for index, tau in enumerate(evaluation.taus)
    }
    result = {"title": DATASETS[evaluation.dataset].title, **asdict(evaluation), "sequences": len(sequences)}
    return result | next(iter(levels.values())) | ({"levels": levels} if len(levels) > 1 else {})


def _measure(
    evaluation: Evaluation,
    sequence: LabelledSequence,
    segmenter: Segmenter,
    on_stage: OnStage,
) -> list[Measured]:
    limited = sequence if evaluation.limit_frames is None else sequence.limited(evaluation.limit_frames)
    truth = limited.truth()
    with frames_of(sequence, evaluation.limit_frames) as source:
        segmentations = segmenter(source, limited.annotated, on_stage)
    total = len(segmentations) * len(truth)
    on_stage("score", 0, total)
    if DATASETS[evaluation.dataset].one_object:
        return [
            measures.measure_one_object(
                found, truth, on_frame=partial(_report_scored, on_stage, level * len(truth), total)
            )
            for level, found in enumerate(segmentations)
        ]
    return [
        measures.measure_several_objects(
            found,
            truth,
            boundaries=evaluation.dataset in (DatasetName.davis17, DatasetName.clips),
            last_frame_is_copied=evaluation.dataset is DatasetName.davis17,
        )
        for found in segmentations
    ]


def _report_scored(on_stage: OnStage, before: int, total: int, frames_done: int) -> None:
    on_stage("score", before + frames_done, total)


def _level(found: dict[str, Measured], sequences: Sequence[LabelledSequence], evaluation: Evaluation) -> dict[str, Any]:
    present = [measure for measure in Measure if all(measure in measured.total for measured in found.values())]
    frames = {
        sequence.name: [sequence.frame_name(frame) for frame in _limited(sequence, evaluation).annotated]
        for sequence in sequences
    }
    return {
        "mean": {str(measure): _plain(_mean(measure, found)) for measure in present},
        "per_sequence": {
            name: {str(measure): _plain(measured.total[measure]) for measure in present}
            for name, measured in found.items()
        },
        "per_frame": {
            name: {
                frame: {str(measure): _plain(values[t]) for measure, values in measured.per_frame.items()}
                for t, frame in enumerate(frames[name])
            }
            for name, measured in found.items()
        },
    }


def _limited(sequence: LabelledSequence, evaluation: Evaluation) -> LabelledSequence:
    return sequence if evaluation.limit_frames is None else sequence.limited(evaluation.limit_frames)


def _mean(measure: Measure, found: dict[str, Measured]) -> float:
    """The mean over all objects for J and F of DAVIS-17, as its benchmark, else over sequences."""
    values = [
        value
        for measured in found.values()
        for value in measured.per_object.get(measure, [measured.total[measure]])
        if not math.isnan(value)
    ]
    return float(np.mean(values)) if values else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write(file: Path | None, measured: list[Measured]) -> None:
    if file is not None:
        part = file.with_suffix(".new")
        part.write_text(json.dumps([asdict(level) for level in measured]))
        part.rename(file)  # an interruption never leaves an incomplete file


def _read(file: Path | None) -> list[Measured] | None:
    if file is None or not file.is_file():
        return None
    return [
        Measured(
            total={Measure(name): value for name, value in level["total"].items()},
            per_frame={Measure(name): values for name, values in level["per_frame"].items()},
            per_object={Measure(name): values for name, values in level["per_object"].items()},
        )
        for level in json.loads(file.read_text())
    ]
