"""The command lines of evaluation, for `worker/cli.py` to register. Heavy imports wait until a command runs."""

import json
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.table import Table

from service.settings import Settings
from uvos.contract import Edges, Mode
from uvos.errors import InvalidParameters
from uvos.options import parameter_options, parse_options
from uvos.progress import CommandProgress
from worker.evaluation.datasets import DATASETS, DatasetName, open_dataset
from worker.evaluation.protocols import Frames, Metric, Protocol

MATCHING = {
    Protocol.per_sequence: "the 20 largest proposals, one matching a sequence (official DAVIS-17 unsupervised)",
    Protocol.per_frame: "up to 300 proposals, a matching for each frame (as published with the method)",
    Protocol.foreground: "one object: any id above 0",
}
PERCENT = 100


def score(
    predictions: Annotated[Path, typer.Argument(help="A folder of PNG label maps for each sequence.")],
    ground_truth: Annotated[Path, typer.Argument(help="Likewise; its files say which frames count.")],
    metric: Annotated[list[Metric] | None, typer.Option(help="May be given several times; default: J and F.")] = None,
    protocol: Annotated[Protocol, typer.Option(help="How proposals meet objects.")] = Protocol.per_sequence,
    frames: Annotated[Frames, typer.Option(help="Inner: without the first and last, as DAVIS-16.")] = Frames.all,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all values there.")] = None,
) -> None:
    """Score folders of PNG masks against ground truth, without a model."""
    from worker.evaluation.score import score as score_folders

    wanted = list(dict.fromkeys(metric or [Metric.j, Metric.f]))
    console = Console()
    with console.status("") as status:
        result = score_folders(
            predictions,
            ground_truth,
            wanted,
            protocol,
            frames=frames,
            on_sequence=lambda name, done, of: status.update(f"{name} ({done + 1} of {of})"),
        )
    if json_file is not None:
        write_json(json_file, result)
    table = _table("sequence", *(f"{name} (%)" for name in wanted))
    for name, values in result["per_sequence"].items():
        table.add_row(name, *(percent(values[wanted_one]) for wanted_one in wanted))
    table.add_section()
    table.add_row("mean", *(percent(result["mean"][name]) for name in wanted), style="bold")
    console.print(table)
    console.print(f"{protocol}: {MATCHING[protocol]}; {frames} annotated frames", highlight=False)


@parameter_options(
    omit=("model", "format", "start", "end", "fps", "background", "min_area"),
    defaults={"edges": Edges.patch, "mode": "single for data sets with one object, else multi"},
)
def evaluate(  # noqa: PLR0913 - one parameter per command line option
    dataset: Annotated[DatasetName, typer.Argument(help="Name of the data set.")],
    root: Annotated[Path, typer.Argument(help="Folder of the data set, in the published layout.")],
    given: dict[str, Any],
    model: Annotated[
        str | None,
        typer.Option(help="A name from `uvos-worker models`, or an untrained baseline: colour-position, random."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights file, in the format of timm, DINO, the released code or uvos.", exists=True, dir_okay=False
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Default: the split of published results.")] = None,
    sequences: Annotated[
        list[str] | None, typer.Option(help="Names separated by commas, or a file with one per line; may repeat.")
    ] = None,
    limit_frames: Annotated[int | None, typer.Option(min=1, help="Limit to the first frames of each sequence.")] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all values there; an interrupted evaluation resumes."),
    ] = None,
) -> None:
    """Segment a data set and score it by the published protocols, beside the paper's results."""
    from worker.evaluation.baselines import load
    from worker.evaluation.evaluate import Evaluation
    from worker.evaluation.evaluate import evaluate as run
    from worker.evaluation.segmenter import NO_CAP, PipelineSegmenter
    from worker.run import Budget

    settings = Settings()
    wanted = [name.strip() for names in sequences or [] for name in names.split(",") if name.strip()]
    found = open_dataset(dataset, root, split=split, sequences=wanted)
    mode = Mode.single if DATASETS[dataset].one_object else Mode.multi
    chosen = parse_options({"edges": Edges.patch, "mode": mode} | given)
    loaded = load(model, weights=weights, settings=settings, dtype=dtype, clustering=chosen.clustering)
    params = loaded.entry.complete(chosen)
    segmenter = PipelineSegmenter(
        loaded, params, Budget(memory_bytes=settings.memory_budget_bytes, max_key_tokens=NO_CAP)
    )
    evaluation = Evaluation(
        dataset=dataset,
        split=split or DATASETS[dataset].split,
        taus=tuple(params.tau),
        limit_frames=limit_frames,
        model={
            "name": loaded.entry.name,
            "version": loaded.version,
            "weights": loaded.weights_source,
            "sha256": loaded.sha256,
            "device": str(loaded.device),
            "dtype": loaded.dtype,
        },
        params=segmenter.params.model_dump(mode="json"),
    )
    with _Progress() as progress:
        work = None if json_file is None else json_file.with_name(json_file.name + ".parts")
        result = run(evaluation, found, segmenter, work=work, progress=progress)
    if json_file is not None:
        write_json(json_file, result)
    console = Console()
    console.print(_evaluation_table(result))
    console.print(_footnote(result), highlight=False)


def write_json(file: Path, result: dict[str, Any]) -> None:
    """Write a result, its folder made where needed.

    Raises:
        InvalidParameters: nothing can be written there.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InvalidParameters(f"{file} cannot be written: {error.strerror}") from error


def percent(value: float | None) -> str:
    """A share as the field writes it: 75.4; a dash where it is not defined."""
    return "–" if value is None else f"{PERCENT * value:.1f}"


def _table(*columns: str) -> Table:
    table = Table(*columns)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _evaluation_table(result: dict[str, Any]) -> Table:
    """A row a measure: the sequences, the mean and the paper's figure; a table a τ stands below the other."""
    from worker.evaluation.measures import Measure
    from worker.evaluation.published import paper_figure

    levels = result.get("levels") or {f"{result['taus'][0]:g}": result}
    table = _table("measure", *(f"tau {name}" for name in levels), "paper")
    for name in next(iter(levels.values()))["mean"]:
        measure = Measure(name)
        values = [level["mean"][name] for level in levels.values()]
        figure = paper_figure(
            DatasetName(result["dataset"]),
            measure,
            model=result["model"]["name"],
            key_ratio=result["params"]["key_ratio"],
        )
        cell = "" if figure is None else f"{figure.value:.1f} ({figure.model}, key ratio {figure.key_ratio:g})"
        shown = [f"{value:.1f}" for value in values] if measure is Measure.clusters else [percent(v) for v in values]
        table.add_row(measure, *shown, cell)
    return table


def _footnote(result: dict[str, Any]) -> str:
    """Data, model and parameters of the results, and whether they are comparable with the paper's."""
    published = DATASETS[DatasetName(result["dataset"])].split
    partial = result["split"] != published or result["limit_frames"] is not None
    return (
        f"{result['title']}, {result['split']}: {result['sequences']} sequences"
        + (f", the first {result['limit_frames']} frames" if result["limit_frames"] else "")
        + f"; {result['model']['name']} {result['model']['version']} ({result['model']['weights']})"
        + f", affinity {result['params']['affinity']}, edges {result['params']['edges']}"
        + f", motion {result['params']['motion']}"
        + (f"; the paper's figures are on {published}: do not compare" if partial else "")
    )


class _Progress:
    """The sequences, and the stage of the current one."""

    def __init__(self) -> None:
        self._bars = CommandProgress()
        self._sequence = ""

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    def sequence(self, name: str, done: int, of: int) -> None:
        self._sequence = name
        self._bars.update("sequences", done, of)

    def stage(self, name: str, done: int, of: int | None) -> None:
        self._bars.update("sequence", done, of, detail=f"{self._sequence} {name}".strip())
