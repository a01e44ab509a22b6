"""`uvos-worker`: the process that owns the GPU, and the method as a command."""

import logging
import socket
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from redis import RedisError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.logs import configure_logging
from service.settings import Settings
from service.storage.folder import Storage
from service.supervisor import CANNOT_START, exit_with_parent
from uvos.contract import Manifest, Mode, Stage, level_name
from uvos.errors import InvalidParameters, QueueUnavailable, UvosError
from uvos.models import MODELS, find_model
from uvos.options import parameter_options, parse_options
from uvos.progress import CommandProgress
from uvos.weights import is_installed
from worker.evaluation import commands as evaluation
from worker.models.commands import app as weights_app
from worker.training import commands as training

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Unsupervised video object segmentation: the worker of the service, and the method as a command.",
)
app.command()(evaluation.evaluate)
app.add_typer(training.app, name="train")
app.add_typer(weights_app, name="weights")
app.command()(evaluation.score)
console = Console(stderr=True)


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


@app.command()
def run(
    attached: Annotated[
        bool, typer.Option("--attached", help="End when standard input closes, that is, when the parent dies.")
    ] = False,
) -> None:
    """Run jobs from the queue (UVOS_REDIS_URL) until SIGTERM or SIGINT."""
    from worker.jobs.worker import ChildCannotStart, SegmentWorker

    settings = Settings()
    configure_logging("worker", as_json=settings.log_format == "json")
    if settings.redis_url is None:
        raise InvalidParameters("UVOS_REDIS_URL is not set: set it, or run `uvos up`, which starts a queue")
    storage = Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s)
    worker = SegmentWorker(settings, storage, must_start=attached)
    if attached:
        exit_with_parent(worker.hand_back_now)
    try:
        worker.serve()
    except ChildCannotStart as error:
        console.print(f"[red]error:[/] the worker cannot start: {escape(str(error))}", highlight=False)
        raise typer.Exit(CANNOT_START) from None


@app.command()
def alive() -> None:
    """Health check of a container: exit 0 if a worker of this host has a recent heartbeat."""
    from service.jobs.queue import Broker, connect

    settings = Settings()
    if settings.redis_url is None:
        raise InvalidParameters("UVOS_REDIS_URL is not set: set it to the queue that holds the heartbeats of workers")
    broker = Broker(connect(settings.redis_url.get_secret_value()), job_timeout_s=settings.job_timeout_s)
    host = socket.gethostname()
    if not any(worker.name.rsplit("-", 1)[0] == host for worker in broker.workers()):
        raise QueueUnavailable(f"no worker on {host} has a recent heartbeat")


@app.command()
@parameter_options()
def segment(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Video file, or folder of frames.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder for the result; created if needed.")],
    given: dict[str, Any],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Weights file, in the format of timm, DINO, the released code or uvos.", exists=True, dir_okay=False
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Type of features and attention; auto: the fastest of the device.")
    ] = Dtype.auto,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also write tokens.npz, the cluster of every token.")
    ] = False,
    rounds: Annotated[
        bool, typer.Option("--rounds", help="Also write the patch masks of each round of the clustering.")
    ] = False,
) -> None:
    """Segment one video, without a queue or a server."""
    settings = Settings()
    chosen = parse_options(given)
    entry = find_model(chosen.model or settings.default_model) if chosen.model or weights is None else None
    _check_out(out)

    from worker.jobs.tasks import budget_of
    from worker.models.loading import load_model  # imports torch, hence after the checks
    from worker.pipeline import segment as run_pipeline
    from worker.run import Extras, SegmentationRun

    with CommandProgress(console=console) as progress:
        progress.update("loading the model", 0)
        loaded = load_model(
            entry,
            weights=weights,
            weights_dir=settings.weights_folder,
            allow_hub=settings.allow_hub,
            device=settings.device,
            dtype=dtype.value,
            clustering=chosen.clustering,
        )
        progress.remove("loading the model")

        def on_progress(stage: Stage, done: int, total: int | None) -> None:
            progress.update(stage.value, done, total)

        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".uvos-", dir=out.parent) as work:
            manifest = run_pipeline(
                SegmentationRun(
                    source=source,
                    params=loaded.entry.complete(chosen),
                    model=loaded,
                    out=Path(work),
                    budget=budget_of(settings),
                    extras=Extras(tokens, rounds),
                    on_progress=on_progress,
                )
            )
            for path in sorted(Path(work).iterdir()):
                path.rename(out / path.name)
    _print_summary(manifest, out)


@app.command()
def models() -> None:
    """List the models with their defaults and licences, and whether their weights are installed."""
    settings = Settings()
    columns = ("model", "patch", "short\nside", "tau\nmulti", "tau\nsingle", "motion", "weights\ninstalled", "licence")
    table = Table(*columns, box=None)
    table.columns[0].no_wrap = True
    for column in table.columns[1:5]:
        column.justify = "right"
    for entry in MODELS.values():
        table.add_row(
            entry.name,
            str(entry.patch),
            str(entry.short_side),
            f"{entry.tau[Mode.multi]:g}",
            f"{entry.tau[Mode.single]:g}",
            entry.motion.value,
            "yes" if is_installed(entry, settings.weights_folder) else "no",
            entry.licence,
        )
    Console().print(table)


@app.command()
def export_block(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint with a spatio-temporal block.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="File to write, such as block.safetensors.")],
) -> None:
    """Extract the trained block of a checkpoint, for use as --weights together with --model."""
    from worker.models.weights import export_block

    export_block(checkpoint, out)
    console.print(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB", highlight=False)


def _check_out(out: Path) -> None:
    """Reject a folder that holds another result: nothing is overwritten.

    Raises:
        InvalidParameters: the folder holds a result.
    """
    existing = [name for name in ("manifest.json", "levels", "tokens.npz") if (out / name).exists()]
    if existing:
        raise InvalidParameters(f"--out {out} already holds a result ({', '.join(existing)}): choose another folder")


def _print_summary(manifest: Manifest, out: Path) -> None:
    for level in manifest.levels:
        console.print(
            f"tau {level_name(level.tau)}: {len(level.objects)} objects "
            f"({level.clusters} clusters, {level.background_clusters} of them background)"
        )
    for warning in manifest.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    console.print(
        f"{manifest.video.frame_count} frames in {manifest.timings_s['total']:.1f} s with {manifest.model.name} "
        f"on {manifest.device} ({manifest.dtype}); the result is in {escape(str(out))}"
    )


def main() -> None:
    """Run the command line; an expected failure prints one sentence and exits with status 1."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        app()
    except UvosError as error:
        message = error.sentence
    except RedisError as error:
        message = f"Redis does not respond: {error}. Check UVOS_REDIS_URL and that the server runs."
    except (OSError, ValueError) as error:
        message = str(error)
    else:
        return
    console.print(f"[red]error:[/] {escape(message)}", highlight=False)
    sys.exit(1)


if __name__ == "__main__":
    main()
