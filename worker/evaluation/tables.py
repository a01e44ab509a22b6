"""Tables of an evaluation for a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from worker.evaluation.datasets import DATASETS, DatasetName
from worker.evaluation.measures import Measure
from worker.evaluation.published import paper_figure

PERCENT = 100


def percent(value: float | None) -> str:
    """A share as the field writes it: 75.4; a dash where it is not defined."""
    return "–" if value is None else f"{PERCENT * value:.1f}"


def numbers(*columns: str, labels: int = 1) -> Table:
    """A table whose columns after the first `labels` are aligned to the right."""
    table = Table(*columns)
    for column in table.columns[labels:]:
        column.justify = "right"
    return table


def measures(result: dict[str, Any]) -> Table:
    """One evaluation: a row for each measure, a column for each tau, and the paper's figures."""
    levels = _levels(result)
    table = numbers("measure", *(f"tau {name}" for name in levels), "paper")
    for name in next(iter(levels.values()))["mean"]:
        measure = Measure(name)
        figure = paper_figure(
            DatasetName(result["dataset"]),
            measure,
            model=result["model"]["name"],
            key_ratio=result["params"]["key_ratio"],
        )
        cell = "" if figure is None else f"{figure.value:.1f} ({figure.model}, key ratio {figure.key_ratio:g})"
        table.add_row(measure, *(_shown(measure, level["mean"][name]) for level in levels.values()), cell)
    return table


def comparison(results: Sequence[dict[str, Any]]) -> Table:
    """Several evaluations: a row for each model, affinity and tau, a column for each measure."""
    names = list(next(iter(_levels(results[0]).values()))["mean"])
    table = numbers("model", "affinity", "tau", *names, labels=2)
    for result in results:
        for tau, level in _levels(result).items():
            values = (_shown(Measure(name), level["mean"][name]) for name in names)
            table.add_row(result["model"]["name"], result["model"]["affinity"], tau, *values)
    return table


def footnote(results: Sequence[dict[str, Any]]) -> str:
    """Data, models and parameters of the results, and whether they are comparable with the paper's."""
    first = results[0]
    published = DATASETS[DatasetName(first["dataset"])].split
    partial = first["split"] != published or first["limit_frames"] is not None
    models = {
        f"{result['model']['name']} {result['model']['version']} ({result['model']['weights']})" for result in results
    }
    affinities = dict.fromkeys(result["model"]["affinity"] for result in results)
    return (
        f"{first['title']}, {first['split']}: {first['sequences']} sequences"
        + (f", the first {first['limit_frames']} frames" if first["limit_frames"] else "")
        + f"; {', '.join(sorted(models))}"
        + f", affinity {', '.join(affinities)}, edges {first['params']['edges']}"
        + f", motion {', '.join(dict.fromkeys(result['params']['motion'] for result in results))}"
        + (f"; the paper's figures are on {published}: do not compare" if partial else "")
    )


def _levels(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The results of each tau by its name."""
    return result.get("levels") or {f"{result['taus'][0]:g}": result}


def _shown(measure: Measure, value: float | None) -> str:
    return f"{value:.1f}" if measure is Measure.clusters else percent(value)
