"""Score label maps against ground truth under a named protocol; folders of PNGs, without a model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uvos.errors import InvalidParameters
from worker.evaluation import labels, metrics
from worker.evaluation.protocols import Frames, Metric, Protocol

BOUNDARY = {Metric.f, Metric.j_and_f}
PAIRED = {Metric.j, Metric.f, Metric.j_and_f}


@dataclass(frozen=True)
class SequenceScores:
    """What one sequence scored.

    Attributes:
        per_frame: For each metric a value a frame, shape (T,); NaN where it is not defined.
        per_object: For J, F, J&F and mIoU a value an object, shape (G,): the mean over frames, or of volumes.
        total: For each metric the value of the sequence.
    """

    per_frame: dict[Metric, metrics.Floats]
    per_object: dict[Metric, metrics.Floats]
    total: dict[Metric, float]


def annotated_objects(truth: metrics.Labels) -> NDArray[np.int64]:
    """The objects that the official code judges: 1 to the highest id of the first frame; all where it has none.

    Source: davis2017-evaluation reads their number off the first frame, and counts ids that are missing below
    the highest as objects too.
    """
    first = metrics.object_ids(truth[0])
    return np.arange(1, first.max() + 1) if len(first) else metrics.object_ids(truth)


def score_sequence(
    prediction: metrics.Labels, truth: metrics.Labels, *, wanted: Sequence[Metric], protocol: Protocol
) -> SequenceScores:
    """Score a sequence's label maps.

    Args:
        prediction: Label maps, 0 is background, shape (T, H, W).
        truth: Likewise, with `labels.VOID`.
        wanted: The metrics to compute. Proposals are matched by those of J and F that are wanted, as the
            official code does.
        protocol: How proposals meet objects; `foreground` takes any id above 0 as the object.

    Raises:
        ValueError: the shapes differ, or a metric of several objects is wanted of `foreground`.
    """
    if prediction.shape != truth.shape or prediction.ndim != 3:
        raise ValueError(f"expected the same (T, H, W), got {prediction.shape = } and {truth.shape = }")
    if protocol is Protocol.foreground:
        if not PAIRED.issuperset(wanted):
            raise ValueError(f"one object has J and F only, got {wanted = }")
        prediction, truth = (prediction > 0).astype(np.uint8), np.where(truth > 0, 1, truth)
    per_frame: dict[Metric, metrics.Floats] = {}
    per_object: dict[Metric, metrics.Floats] = {}
    total: dict[Metric, float] = {}
    if PAIRED.intersection(wanted):
        matched = _match(prediction, truth, wanted, protocol)
        values = {Metric.j: matched.j, Metric.f: matched.f, Metric.j_and_f: (matched.j + matched.f) / 2}
        for metric in PAIRED.intersection(wanted):
            per_frame[metric], per_object[metric] = _mean(values[metric], 1), _mean(values[metric], 0)
            total[metric] = float(_mean(values[metric].ravel(), 0))
    if Metric.fg_ari in wanted:
        per_frame[Metric.fg_ari] = _each_frame(metrics.foreground_ari, prediction, truth)
        total[Metric.fg_ari] = (
            _nan_mean(per_frame[Metric.fg_ari])
            if protocol is Protocol.per_frame
            else metrics.foreground_ari(prediction, truth)
        )
    if Metric.miou in wanted:
        per_frame[Metric.miou] = _each_frame(_frame_miou, prediction, truth)
        if protocol is Protocol.per_frame:
            total[Metric.miou] = _nan_mean(per_frame[Metric.miou])
        else:
            per_object[Metric.miou] = metrics.matched_iou(prediction, truth)
            total[Metric.miou] = float(_mean(per_object[Metric.miou], 0))
    return SequenceScores(per_frame=per_frame, per_object=per_object, total=total)


def _match(
    prediction: metrics.Labels, truth: metrics.Labels, wanted: Sequence[Metric], protocol: Protocol
) -> metrics.ObjectScores:
    with_f = bool(BOUNDARY.intersection(wanted))
    if protocol is Protocol.foreground:
        one = np.array([1])
        return metrics.match_per_sequence(metrics.pair_scores(prediction, truth, one, one, with_f=with_f))
    official = protocol is Protocol.per_sequence
    limit = metrics.MAX_PROPOSALS_OFFICIAL if official else metrics.MAX_PROPOSALS_PUBLISHED
    objects = annotated_objects(truth)
    proposals = metrics.at_least(metrics.largest(prediction, limit), len(objects))
    pairs = metrics.pair_scores(prediction, truth, proposals, objects, with_f=with_f)
    if with_f and not {Metric.j, Metric.j_and_f}.intersection(wanted):
        pairs = metrics.PairScores(pairs.proposals, pairs.objects, np.zeros_like(pairs.j), pairs.f)
    return metrics.match_per_sequence(pairs) if official else metrics.match_per_frame(pairs)


def _each_frame(
    measure: Callable[[metrics.Labels, metrics.Labels], float], prediction: metrics.Labels, truth: metrics.Labels
) -> metrics.Floats:
    return np.array([measure(p, g) for p, g in zip(prediction, truth, strict=True)])


def _frame_miou(prediction: metrics.Labels, truth: metrics.Labels) -> float:
    return float(_mean(metrics.matched_iou(prediction, truth), 0))


def _mean(values: metrics.Floats, axis: int) -> metrics.Floats:
    """The mean along an axis; NaN without values, and no warning."""
    if values.shape[axis] == 0:
        return np.full(np.delete(values.shape, axis), math.nan)
    return np.asarray(values.mean(axis))


def _nan_mean(values: metrics.Floats) -> float:
    """The mean of the values that are not NaN."""
    return float(_mean(values[~np.isnan(values)], 0))


def averages(sequences: Sequence[SequenceScores], wanted: Sequence[Metric], protocol: Protocol) -> dict[Metric, float]:
    """The figure of a data set: of J and F the mean over all objects, as DAVIS-17; of the rest over sequences.

    With one object a sequence, the two are the same.
    """
    mean: dict[Metric, float] = {}
    for metric in wanted:
        over_objects = metric in PAIRED and protocol is not Protocol.foreground
        values = [s.per_object[metric] if over_objects else np.array([s.total[metric]]) for s in sequences]
        mean[metric] = _nan_mean(np.concatenate(values))
    return mean


def score(
    predictions: Path,
    ground_truth: Path,
    wanted: Sequence[Metric],
    protocol: Protocol,
    *,
    frames: Frames = Frames.all,
    on_sequence: Callable[[str, int, int], None] = lambda _name, _done, _of: None,
) -> dict[str, Any]:
    """Score folders of PNG label maps, one folder a sequence, a file a frame with the ground truth's name.

    Args:
        predictions: Holds a folder for each sequence of the ground truth; others are not looked at.
        ground_truth: Likewise; its files say which frames count. Under `foreground` any id above 0 is the
            object; else 255 is void where a sequence has other ids.
        wanted: The metrics to compute.
        protocol: How proposals meet objects.
        frames: All annotated frames, or all but the first and the last.
        on_sequence: Called with the name, the number done and the number in all before each sequence.

    Returns:
        `per_frame` {sequence: {frame: {metric: value}}}, `per_sequence` {sequence: {metric: value}},
        `per_object` {sequence: {metric: [value]}}, `mean` {metric: value}, and what was asked for. Values are
        None where a metric is not defined (FG-ARI without foreground).

    Raises:
        InvalidParameters: a folder or file is missing or no label map, sizes differ, or the metric does not fit
            the protocol.
    """
    if protocol is Protocol.foreground and not PAIRED.issuperset(wanted):
        raise InvalidParameters("FG-ARI and mIoU need several objects: choose protocol per-sequence or per-frame")
    names = _sequence_names(ground_truth)
    for name in names:
        if not (predictions / name).is_dir():
            raise InvalidParameters(f"there is no folder {predictions / name} for the sequence {name}")
    results: dict[str, SequenceScores] = {}
    stems: dict[str, list[str]] = {}
    for done, name in enumerate(names):
        on_sequence(name, done, len(names))
        files = _counted(sorted((ground_truth / name).glob("*.png")), frames)
        truth = labels.read_all(files)
        prediction = labels.read_all([_prediction_file(predictions / name, file) for file in files])
        if prediction.shape != truth.shape:
            raise InvalidParameters(
                f"the masks of {name} are {prediction.shape[2]}x{prediction.shape[1]} pixels, "
                f"the ground truth {truth.shape[2]}x{truth.shape[1]}"
            )
        judged = labels.as_foreground(truth) if protocol is Protocol.foreground else labels.with_void(truth)
        results[name] = score_sequence(prediction, judged, wanted=wanted, protocol=protocol)
        stems[name] = [file.stem for file in files]
    return report(results, stems, wanted, protocol) | {"frames": str(frames)}


def report(
    results: dict[str, SequenceScores], stems: dict[str, list[str]], wanted: Sequence[Metric], protocol: Protocol
) -> dict[str, Any]:
    """The scores of several sequences as plain data, NaN as None; `stems` names the frames of each."""
    return {
        "protocol": str(protocol),
        "metrics": [str(metric) for metric in wanted],
        "per_frame": {
            name: {
                stem: {str(metric): _plain(result.per_frame[metric][t]) for metric in wanted}
                for t, stem in enumerate(stems[name])
            }
            for name, result in results.items()
        },
        "per_object": {
            name: {str(metric): [_plain(value) for value in values] for metric, values in result.per_object.items()}
            for name, result in results.items()
        },
        "per_sequence": {
            name: {str(metric): _plain(result.total[metric]) for metric in wanted} for name, result in results.items()
        },
        "mean": {
            str(metric): _plain(value) for metric, value in averages(list(results.values()), wanted, protocol).items()
        },
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _sequence_names(ground_truth: Path) -> list[str]:
    if not ground_truth.is_dir():
        raise InvalidParameters(f"there is no folder {ground_truth}")
    names = sorted(folder.name for folder in ground_truth.iterdir() if folder.is_dir() and any(folder.glob("*.png")))
    if not names:
        raise InvalidParameters(f"{ground_truth} has no folder with PNG files, one folder a sequence")
    return names


def _counted(files: list[Path], frames: Frames) -> list[Path]:
    counted = files[1:-1] if frames is Frames.inner else files
    if not counted:
        raise InvalidParameters(f"{files[0].parent} has no frame between the first and the last")
    return counted


def _prediction_file(folder: Path, truth: Path) -> Path:
    file = folder / truth.name
    if not file.is_file():
        raise InvalidParameters(f"there is no prediction {file} for the annotated frame {truth.stem}")
    return file
