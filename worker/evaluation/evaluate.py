"""Run a segmenter over a data set and score it, sequence by sequence, so that it can go on where it was cut off."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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

CODE = Path(__file__).parent.parent  # results of other code are not taken up again


Tell = Callable[[str, int, int | None], None]
"""Told the stage, its frames done and all frames."""


class Segmenter(Protocol):
    """Segments the frames of a sequence, a `Segmentation` for each τ asked for, of the annotated frames."""

    def __call__(self, source: Path, annotated: Sequence[int], tell: Tell) -> list[Segmentation]: ...


class Progress(Protocol):
    """Told of every sequence and of the stages inside."""

    def sequence(self, name: str, done: int, of: int) -> None:
        """A sequence begins."""

    def stage(self, name: str, done: int, of: int | None) -> None:
        """Within it, frames done of all."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated: all that results depend on but the sequences.

    Attributes:
        dataset: The data set.
        split: Its split.
        taus: Merge thresholds, a level each.
        limit_frames: Only the first frames of each sequence.
        model: What the model is: name, version, weights, sha256, device, dtype.
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
        """A name for it and the code that runs it: the same key means the same results."""
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
        evaluation: What is evaluated.
        sequences: Of the data set.
        segmenter: Gives a segmentation for each of `evaluation.taus`.
        work: A folder for the results of single sequences, taken up again when the same is evaluated once more;
            removed at the end. None: nothing is kept.
        progress: Told how far it is.

    Returns:
        What was evaluated, and of the first τ `mean` {measure: value}, `per_sequence` {sequence: {measure: value}},
        `per_frame` {sequence: {frame: {measure: value}}}; with several, `levels` {τ: the same}. None where a measure
        is not defined.

    Raises:
        UvosError: a sequence cannot be read or segmented; names it. What is done stays in `work`.
    """
    folder = None if work is None else work / evaluation.key
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Measured]] = {}
    for done, sequence in enumerate(sequences):
        progress.sequence(sequence.name, done, len(sequences))
        part = None if folder is None else folder / f"{sequence.name}.json"
        measured = _read(part)
        if measured is None:
            try:
                measured = _measure(evaluation, sequence, segmenter, progress.stage)
            except UvosError as error:
                raise type(error)(f"{sequence.name}: {error.detail}", limit=error.limit, actual=error.actual) from error
            _write(part, measured)
        found[sequence.name] = measured
    levels = {
        level_name(tau): _level({name: measured[index] for name, measured in found.items()}, sequences, evaluation)
        for index, tau in enumerate(evaluation.taus)
    }
    if work is not None:
        shutil.rmtree(work)
    result = {"title": DATASETS[evaluation.dataset].title, **asdict(evaluation), "sequences": len(sequences)}
    return result | next(iter(levels.values())) | ({"levels": levels} if len(levels) > 1 else {})


def _measure(
    evaluation: Evaluation,
    sequence: LabelledSequence,
    segmenter: Segmenter,
    tell: Tell,
) -> list[Measured]:
    limited = sequence if evaluation.limit_frames is None else sequence.limited(evaluation.limit_frames)
    truth = limited.truth()
    with frames_of(sequence, evaluation.limit_frames) as source:
        segmentations = segmenter(source, limited.annotated, tell)
    tell("score", 0, None)
    if DATASETS[evaluation.dataset].one_object:
        return [measures.measure_one_object(found, truth) for found in segmentations]
    return [
        measures.measure_several_objects(
            found,
            truth,
            boundaries=evaluation.dataset in (DatasetName.davis17, DatasetName.clips),
            last_frame_is_copied=evaluation.dataset is DatasetName.davis17,
        )
        for found in segmentations
    ]


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
    """Over all objects where the benchmark does so (J and F of DAVIS-17), else over sequences."""
    values = [
        value
        for measured in found.values()
        for value in measured.per_object.get(measure, [measured.total[measure]])
        if not math.isnan(value)
    ]
    return float(np.mean(values)) if values else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write(part: Path | None, measured: list[Measured]) -> None:
    if part is not None:
        whole = part.with_suffix(".new")
        whole.write_text(json.dumps([asdict(level) for level in measured]))
        whole.rename(part)  # never half a file, whenever it is cut off


def _read(part: Path | None) -> list[Measured] | None:
    if part is None or not part.is_file():
        return None
    return [
        Measured(
            total={Measure(name): value for name, value in level["total"].items()},
            per_frame={Measure(name): values for name, values in level["per_frame"].items()},
            per_object={Measure(name): values for name, values in level["per_object"].items()},
        )
        for level in json.loads(part.read_text())
    ]
