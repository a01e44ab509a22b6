"""The command lines of evaluation, for `worker/cli.py` to register."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.errors import InvalidParameters, UvosError
from worker.evaluation.score import Frames, Metric, Protocol
from worker.evaluation.score import score as score_folders

MATCHING = {
    Protocol.per_sequence: "the 20 largest proposals, one matching a sequence (official DAVIS-17 unsupervised)",
    Protocol.per_frame: "up to 300 proposals, a matching for each frame (as published with the method)",
    Protocol.foreground: "one object: any id above 0",
}


@contextmanager
def _one_sentence() -> Iterator[None]:
    """An expected failure ends the command with its sentence on stderr and status 1."""
    try:
        yield
    except UvosError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error.detail}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def score(
    predictions: Annotated[Path, typer.Argument(help="A folder of PNG label maps for each sequence.")],
    ground_truth: Annotated[Path, typer.Argument(help="Likewise; its files say which frames count.")],
    metric: Annotated[list[Metric], typer.Option(help="May be given several times.")] = [Metric.j, Metric.f],  # noqa: B006 (typer copies it)
    protocol: Annotated[Protocol, typer.Option(help="How proposals meet objects.")] = Protocol.per_sequence,
    frames: Annotated[Frames, typer.Option(help="Inner: without the first and last, as DAVIS-16.")] = Frames.all,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all values there.")] = None,
) -> None:
    """Score folders of PNG masks against ground truth, without a model."""
    console = Console()
    with _one_sentence():
        with console.status("") as status:
            result = score_folders(
                predictions,
                ground_truth,
                list(dict.fromkeys(metric)),
                protocol,
                frames=frames,
                on_sequence=lambda name, done, of: status.update(f"{name} ({done + 1} of {of})"),
            )
        if json_file is not None:
            write_json(json_file, result)
    console.print(_score_table(result))
    console.print(f"{protocol}: {MATCHING[protocol]}; {frames} annotated frames", highlight=False)


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


def _score_table(result: dict[str, Any]) -> Table:
    table = Table("sequence", *(f"{metric} (%)" for metric in result["metrics"]))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in result["per_sequence"].items():
        table.add_row(name, *(percent(values[metric]) for metric in result["metrics"]))
    table.add_section()
    table.add_row("mean", *(percent(result["mean"][metric]) for metric in result["metrics"]), style="bold")
    return table


def percent(value: float | None) -> str:
    """A share as the field writes it: 75.4; a dash where it is not defined."""
    return "–" if value is None else f"{100 * value:.1f}"
