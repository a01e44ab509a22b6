"""The command lines of evaluation, for `worker/cli.py` to register. Heavy imports wait until a command runs."""

import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console

from service.settings import Settings
from uvos.contract import Edges, Mode, SegmentParams
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


def score(
    predictions: Annotated[Path, typer.Argument(help="A folder of PNG label maps for each sequence.")],
    ground_truth: Annotated[Path, typer.Argument(help="Likewise; its files say which frames count.")],
    metric: Annotated[list[Metric] | None, typer.Option(help="May be given several times; default: J and F.")] = None,
    protocol: Annotated[Protocol, typer.Option(help="How proposals meet objects.")] = Protocol.per_sequence,
    frames: Annotated[Frames, typer.Option(help="Inner: without the first and last, as DAVIS-16.")] = Frames.all,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all values there.")] = None,
) -> None:
    """Score folders of PNG masks against ground truth, without a model."""
    from worker.evaluation import tables
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
    table = tables.numbers("sequence", *(f"{name} (%)" for name in wanted))
    for name, values in result["per_sequence"].items():
        table.add_row(name, *(tables.percent(values[wanted_one]) for wanted_one in wanted))
    table.add_section()
    table.add_row("mean", *(tables.percent(result["mean"][name]) for name in wanted), style="bold")
    console.print(table)
    console.print(f"{protocol}: {MATCHING[protocol]}; {frames} annotated frames", highlight=False)


@parameter_options(
    omit=("model", "affinity", "format", "start", "end", "fps", "background", "min_area"),
    defaults={"edges": Edges.patch, "mode": "single for data sets with one object, else multi"},
)
def evaluate(  # noqa: PLR0913 - one parameter per command line option
    dataset: Annotated[DatasetName, typer.Argument(help="Name of the data set.")],
    root: Annotated[Path, typer.Argument(help="Folder of the data set, in the published layout.")],
    given: dict[str, Any],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A name from `uvos-worker models`, or an untrained baseline: colour-position, random. all: every "
            "model with installed weights. May repeat."
        ),
    ] = None,
    affinity: Annotated[
        list[str] | None,
        typer.Option(help=f"{SegmentParams.model_fields['affinity'].description} all: each of them. May repeat."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights file, in the format of timm, DINO, the released code or uvos.", exists=True, dir_okay=False
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or int8 (CPU).")] = "auto",
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
    """Segment a data set and score it by the published protocols, beside the paper's results.

    With several models or affinities, the table has a row for each combination.
    """
    from worker.evaluation import tables
    from worker.evaluation.evaluate import evaluate as run
    from worker.evaluation.runs import Data, ModelChoice, evaluation_runs

    settings = Settings()
    wanted = [name.strip() for names in sequences or [] for name in names.split(",") if name.strip()]
    found = open_dataset(dataset, root, split=split, sequences=wanted)
    mode = Mode.single if DATASETS[dataset].one_object else Mode.multi
    chosen = parse_options({"edges": Edges.patch, "mode": mode} | given)
    data = Data(dataset, split or DATASETS[dataset].split, limit_frames)
    models = ModelChoice(tuple(model or ()), tuple(affinity or ()), weights, dtype)
    work = None if json_file is None else json_file.with_name(json_file.name + ".parts")  # of an interrupted evaluation
    results = []
    with _Progress() as progress:
        for done, count, evaluation, segmenter in evaluation_runs(data, models, chosen, settings):
            progress.run(evaluation.model["name"], done, count)
            results.append(run(evaluation, found, segmenter, work=work, progress=progress))
    if json_file is not None:
        write_json(json_file, results[0] if len(results) == 1 else {"evaluations": results})
    if work is not None:
        shutil.rmtree(work)
    console = Console()
    console.print(tables.measures(results[0]) if len(results) == 1 else tables.comparison(results))
    console.print(tables.footnote(results), highlight=False)


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


class _Progress:
    """The evaluations, the sequences, and the stage of the current one."""

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

    def run(self, title: str, done: int, of: int) -> None:
        """An evaluation begins, one of several."""
        if of > 1:
            self._bars.update("evaluations", done, of, detail=title)

    def sequence(self, name: str, done: int, of: int) -> None:
        self._sequence = name
        self._bars.update("sequences", done, of)

    def stage(self, name: str, done: int, of: int | None) -> None:
        self._bars.update("sequence", done, of, detail=f"{self._sequence} {name}".strip())
