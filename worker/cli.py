"""`uvos-worker`: the process that owns the GPU, and the method on the command line."""

import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from redis import RedisError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.settings import Settings
from service.storage.folder import Storage
from uvos.contract import (
    Background,
    Clustering,
    Edges,
    Format,
    JobParams,
    Manifest,
    Mode,
    Motion,
    SegmentParams,
    Stage,
    level_name,
)
from uvos.errors import InvalidParameters, QueueUnavailable, UvosError
from uvos.models import MODELS, ModelEntry, find_model
from worker.evaluation import commands as evaluation
from worker.training import commands as training

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Unsupervised video object segmentation: the worker of the service, and the method on its own.",
)
app.command()(evaluation.evaluate)
app.add_typer(training.app, name="train")
app.command()(evaluation.score)
console = Console(stderr=True)

ORPHAN_GRACE_S = 5.0  # to hand a job back; the queue may have gone with the parent


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
def run(
    attached: Annotated[
        bool, typer.Option("--attached", help="End when standard input does: whoever holds it is gone.")
    ] = False,
) -> None:
    """Take jobs from the queue (UVOS_REDIS_URL) until told to stop."""
    from worker.jobs.queue import SegmentWorker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker[%(process)d] %(message)s")
    settings = Settings()
    if settings.redis_url is None:
        raise InvalidParameters("set UVOS_REDIS_URL: a worker needs a queue to take jobs from; `uvos up` starts one")
    worker = SegmentWorker(settings, Storage(settings.data_dir, result_ttl_s=settings.result_ttl_s))
    if attached:
        threading.Thread(target=_end_with_parent, args=(worker.hand_back_now,), daemon=True).start()
    worker.serve()


def _end_with_parent(hand_back_now: Callable[[], None]) -> None:
    """Wait for the end of standard input, then stop.

    The kernel closes a pipe whichever thread of the parent had opened it and however the parent died; its own signal
    for that (PR_SET_PDEATHSIG) tells of the death of a thread.
    """
    while os.read(0, 1 << 12):
        pass
    hand_back_now()
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)  # the child has the same end: our pipe to it closes


@app.command()
def alive() -> None:
    """Exit 0 where a worker of this host has shown life in the last seconds: a container's health check."""
    from service.jobs.queue import Broker, connect

    settings = Settings()
    if settings.redis_url is None:
        raise InvalidParameters("set UVOS_REDIS_URL: workers tell of themselves in the queue")
    broker = Broker(connect(settings.redis_url.get_secret_value()), job_timeout_s=settings.job_timeout_s)
    host = socket.gethostname()
    if not any(worker.name.rsplit("-", 1)[0] == host for worker in broker.workers()):
        raise QueueUnavailable(f"no worker of {host} shows life")


@app.command()
def segment(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A video file, or a folder of frames.", exists=True)],
    out: Annotated[Path, typer.Option(help="Where the result is written; made where absent.")],
    tau: Annotated[list[float] | None, typer.Option(help="Merge threshold in nats; repeat for several levels.")] = None,
    key_ratio: Annotated[float, typer.Option(help="Share of the frames that serve as keys, in (0, 1].")] = 0.1,
    mode: Annotated[Mode, typer.Option(help="Several objects, or the one main object.")] = Mode.multi,
    model: Annotated[
        str | None, typer.Option(help="A name of `uvos-worker models`; default: tiny, or what --weights is for.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A file in timm's, DINO's, the released code's or our own format.", exists=True, dir_okay=False
        ),
    ] = None,
    resolution: Annotated[str | None, typer.Option(help="HxW in pixels at which the model looks.")] = None,
    clustering: Annotated[
        Clustering, typer.Option(help="Algorithm 1 of the paper, or the released code's windowed procedure.")
    ] = Clustering.algorithm1,
    background: Annotated[
        Background, typer.Option(help="Tell background apart, or keep it as objects.")
    ] = Background.auto,
    edges: Annotated[Edges, typer.Option(help="Interpolated edges, or patches as published.")] = Edges.smooth,
    min_area: Annotated[float, typer.Option(help="Drop objects below this share of the frame.")] = 0.0,
    motion: Annotated[Motion | None, typer.Option(help="Join motion to the tokens; default: by model.")] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of features and attention; auto: what the device is fast at.")
    ] = Dtype.auto,
    formats: Annotated[
        list[Format] | None, typer.Option("--format", help="png, rle, overlay; repeat for several.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="First second of the part to segment.")] = None,
    end: Annotated[float | None, typer.Option(help="Last second of the part to segment.")] = None,
    fps: Annotated[float | None, typer.Option(help="Keep at most this many frames a second.")] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also write tokens.npz: the cluster of every token.")
    ] = False,
    rounds: Annotated[
        bool, typer.Option("--rounds", help="Also write the masks of each round of the clustering, on patches.")
    ] = False,
) -> None:
    """Segment one video: no queue, no server."""
    settings = Settings()
    chosen = _params(
        {
            "tau": tau or None, "key_ratio": key_ratio, "mode": mode, "model": model, "resolution": resolution,
            "clustering": clustering, "background": background, "edges": edges, "min_area": min_area,
            "motion": motion, "format": formats or [Format.png, Format.rle], "start": start, "end": end, "fps": fps,
        }
    )  # fmt: skip
    entry = find_model(chosen.model or settings.default_model) if chosen.model or weights is None else None
    _refuse_taken(out)

    from worker.jobs.tasks import budget_of
    from worker.models.loading import load_model  # torch, once nothing can be wrong any more that is quicker to tell
    from worker.pipeline import Extras
    from worker.pipeline import segment as run_pipeline

    with _progress() as bar:
        loading = bar.add_task("loading the model", total=None)
        loaded = load_model(
            entry,
            weights=weights,
            weights_dir=settings.weights_folder,
            allow_hub=settings.allow_hub,
            device=settings.device,
            dtype=dtype.value,
            clustering=clustering,
        )
        bar.remove_task(loading)
        params = _filled(chosen, loaded.entry)
        out.mkdir(parents=True, exist_ok=True)
        tasks: dict[Stage, int] = {}

        def tell(stage: Stage, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage.value, total=total)
            bar.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]  # rich's own TaskID

        with tempfile.TemporaryDirectory(prefix=".uvos-", dir=out.parent) as work:
            made = Path(work)
            manifest = run_pipeline(
                source,
                params,
                loaded,
                made,
                budget=budget_of(settings),
                extras=Extras(tokens, rounds),
                on_progress=tell,
            )
            for path in sorted(made.iterdir()):
                path.rename(out / path.name)
    _summarize(manifest, out)


@app.command()
def models() -> None:
    """List the models: what they are, their defaults, their licence, and whether their weights are here."""
    from worker.models.loading import has_weights

    settings = Settings()
    table = Table("model", "patch", "short side", "tau multi / single", "motion", "weights", "licence")
    for entry in MODELS.values():
        table.add_row(
            entry.name,
            str(entry.patch),
            str(entry.short_side),
            f"{entry.tau[Mode.multi]:g} / {entry.tau[Mode.single]:g}",
            entry.motion.value,
            "here" if has_weights(entry, settings.weights_folder) else f"to fetch: {entry.weights}",
            entry.licence,
        )
    Console().print(table)


@app.command()
def export_block(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint with a spatio-temporal block.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="The file to write, such as block.safetensors.")],
) -> None:
    """Write a checkpoint's trained block as a small file, to be given as --weights beside --model."""
    from worker.models.weights import export_block

    export_block(checkpoint, out)
    console.print(f"wrote {out}: {out.stat().st_size / 1e6:.1f} MB", highlight=False)


def _params(values: dict[str, object]) -> SegmentParams:
    try:
        return SegmentParams.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "the options"
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidParameters(f"{option}: {message}, got {first['input']!r}") from error


def _filled(chosen: SegmentParams, entry: ModelEntry) -> JobParams:
    defaults = {
        "model": entry.name,
        "tau": chosen.tau or [entry.tau[chosen.mode]],
        "motion": chosen.motion or entry.motion,
    }
    return JobParams.model_validate(chosen.model_dump() | defaults)


def _refuse_taken(out: Path) -> None:
    """Refuse a folder that holds another result: nothing is overwritten unasked."""
    taken = [name for name in ("manifest.json", "levels", "tokens.npz") if (out / name).exists()]
    if taken:
        raise InvalidParameters(f"--out {out} already holds a result ({', '.join(taken)}): choose another folder")


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<17}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _summarize(manifest: Manifest, out: Path) -> None:
    for level in manifest.levels:
        console.print(
            f"tau {level_name(level.tau)}: {len(level.objects)} objects "
            f"({level.clusters} clusters, {level.background_clusters} of them background)"
        )
    for warning in manifest.warnings:
        console.print(f"[yellow]warning:[/] {warning}")
    console.print(
        f"{manifest.video.frame_count} frames in {manifest.timings_s['total']:.1f} s on {manifest.device} "
        f"({manifest.dtype}); the result is in {out}"
    )


def main() -> None:
    """The command line: an expected failure is one sentence and exit status 1."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        app()
    except UvosError as error:
        remedy = f" {error.remedy}" if error.remedy else ""
        console.print(f"[red]error:[/] {re.sub(r'[.]?$', '.', error.detail)}{remedy}", highlight=False)
        sys.exit(1)
    except RedisError as error:
        console.print(f"[red]error:[/] the queue does not answer: {error}.", highlight=False)
        sys.exit(1)
    except (OSError, ValueError) as error:
        console.print(f"[red]error:[/] {error}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
