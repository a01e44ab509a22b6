"""`uvos-worker train`: frames into one file, then a backbone or a block."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from uvos.contract import VIDEO_SUFFIXES
from uvos.errors import InvalidParameters, UvosError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train a backbone or a spatio-temporal block.")

HELD_OUT = 1  # training's samples are seeded by two numbers, these by three
Videos = Annotated[
    list[Path], typer.Option("--videos", help="A folder of videos, or one video; repeat for more.", exists=True)
]
PackFile = Annotated[Path | None, typer.Option("--pack", help="Frames already in one file.", exists=True)]
Work = Annotated[Path | None, typer.Option(help="Where checkpoints and curves are kept; default: beside the result.")]


@app.command()
def pack(
    videos: Videos,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    size: Annotated[str, typer.Option(help="HxW of the frames in pixels.")] = "192x384",
    fps: Annotated[float, typer.Option(help="Keep at most this many frames a second.")] = 12.5,
    most_frames: Annotated[int, typer.Option(help="Of one video, from its beginning.")] = 160,
) -> None:
    """Decode videos into one file of frames, which a machine without decoders can train from."""
    from worker.training.frame_store import pack_videos

    with _one_sentence():
        found = _videos(videos)
        height, width = _size(size)
        with Progress(transient=True) as bar:
            task = bar.add_task("decoding", total=len(found))
            pack_videos(
                found,
                out,
                size=(height, width),
                fps=fps,
                most_frames=most_frames,
                on_video=lambda video, count: bar.update(task, advance=1, description=f"{video.name}: {count} frames"),
            )
    Console().print(f"{out}: {out.stat().st_size / 1e6:.0f} MB", highlight=False)


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="The folder to make; `uvos-worker evaluate clips` scores on it.")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 20,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each.")] = 24,
    size: Annotated[str, typer.Option(help="HxW of a frame in pixels.")] = "240x432",
    objects: Annotated[int, typer.Option(min=1, help="Objects in each.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Scenes of any seed are others than training's.")] = 0,
) -> None:
    """Generate labelled scenes of the kind that `tiny` learns from, to measure on."""
    import cv2
    import numpy as np

    from worker.outputs.png import write_png
    from worker.training.scenes import draw_scene

    with _one_sentence():
        height, width = _size(size)
        if out.exists() and any(out.iterdir()):
            raise InvalidParameters(f"--out: {out} is not empty")
        with Progress(transient=True) as bar:
            for number in bar.track(range(count), description="drawing"):
                rng = np.random.default_rng((seed, number, HELD_OUT))
                scene = draw_scene(rng, frames=frames, size=(height, width), objects=objects)
                folder = out / f"scene-{number:02d}"
                for kind in ("frames", "masks"):
                    (folder / kind).mkdir(parents=True)
                for index, (frame, labels) in enumerate(zip(scene.frames, scene.labels, strict=True)):
                    cv2.imwrite(str(folder / "frames" / f"{index:05d}.png"), frame[:, :, ::-1])
                    write_png(folder / "masks" / f"{index:05d}.png", labels.astype(np.uint16), objects=objects)
    Console().print(f"{out}: {count} scenes of {frames} frames", highlight=False)


@app.command()
def backbone(
    out: Annotated[Path, typer.Option(help="The weights' file to write.")],
    videos: Annotated[list[Path], typer.Option("--videos", help="A folder of videos, or one; repeat.")] = [],  # noqa: B006 (typer copies it)
    packed: PackFile = None,
    work: Work = None,
    begin_with: Annotated[Path | None, typer.Option(help="Weights of `tiny` to go on from.", exists=True)] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates in all.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Pairs of frames a step.")] = 8,
    size: Annotated[str, typer.Option(help="HxW of a training frame in pixels.")] = "128x256",
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 6e-4,
    seed: Annotated[int, typer.Option(help="Of the start and of every sample.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="For the ViT on a CPU.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train `tiny` without labels, on videos and on scenes made here; run again to go on after an interruption."""
    import torch

    from uvos.models import find_model
    from worker.models.backbone import create_vit
    from worker.models.weights import load_into, read_weights, write_backbone
    from worker.training.backbone import Schedule, train_backbone
    from worker.training.curves import draw_curves
    from worker.training.frame_store import pack_videos, read_pack
    from worker.training.pseudo_labels import common_fate, read_fate, save_fate

    with _one_sentence():
        entry = find_model("tiny")
        folder = work or out.with_suffix(".work")
        folder.mkdir(parents=True, exist_ok=True)
        schedule = Schedule(steps=steps, batch=batch, size=_size(size), rate=rate, seed=seed)
        torch.set_num_threads(threads)
        with Progress() as bar:
            if packed is None:
                packed = folder / "frames.pack"
                if not packed.exists():
                    found = _videos(videos)
                    decoding = bar.add_task("decoding", total=len(found))
                    part = packed.with_suffix(".new")
                    pack_videos(
                        found, part, size=(192, 384), fps=12.5, most_frames=160,
                        on_video=lambda *_: bar.advance(decoding),
                    )  # fmt: skip
                    part.replace(packed)
            frames = read_pack(packed)
            if not (folder / "fate.npz").exists():
                moving = bar.add_task("common fate", total=len(frames.clips))
                fate = common_fate(frames, on_progress=lambda done, _: bar.update(moving, completed=done))
                save_fate(fate, folder / "fate.new")
                (folder / "fate.new").replace(folder / "fate.npz")
            start = None if begin_with is None else dict(read_weights(begin_with).vit)
            training = bar.add_task("training", total=steps)
            weights = train_backbone(
                frames,
                read_fate(folder / "fate.npz"),
                dict(entry.timm_options),
                schedule,
                folder,
                begin_with=start,
                device=device,
                on_step=lambda step, loss: bar.update(training, completed=step, description=f"loss {loss:.3f}"),
            )
        vit = create_vit(entry.timm_id, entry.timm_options)
        load_into(vit, read_weights(weights).vit)
        write_backbone(out, vit, model=entry.name, version=f"seed {seed}, {steps} steps")
        draw_curves(folder / "loss.csv", folder / "loss.png")
    Console().print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; curves: {folder / 'loss.png'}", highlight=False)


@app.command()
def block(
    out: Annotated[Path, typer.Option(help="The block's file to write.")],
    model: Annotated[str, typer.Option(help="The frozen backbone: a name of `uvos-worker models`.")],
    videos: Annotated[list[Path], typer.Option("--videos", help="A folder of videos, or one; repeat.")] = [],  # noqa: B006 (typer copies it)
    packed: PackFile = None,
    weights: Annotated[
        Path | None, typer.Option(help="The backbone's weights, where not its own.", exists=True)
    ] = None,
    work: Work = None,
    size: Annotated[str, typer.Option(help="HxW of the frames in pixels, where they are decoded here.")] = "192x384",
    steps: Annotated[int, typer.Option(min=1, help="Updates in all.")] = 20_000,
    stop_at: Annotated[int | None, typer.Option(min=1, help="Leave at this step; run again to go on.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips a step and process.")] = 4,
    rate: Annotated[float, typer.Option(help="Learning rate at the beginning.")] = 1e-5,
    seed: Annotated[int, typer.Option(help="Of the start, the clips and the dropout.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
) -> None:
    """Train the paper's block behind a frozen backbone; several GPUs: torchrun -m worker.cli train block ..."""
    import torch.distributed as dist

    from service.settings import Settings
    from uvos.models import find_model
    from worker.models.loading import load_model
    from worker.training.block import BlockSchedule, train_block
    from worker.training.frame_store import pack_videos, read_pack

    with _one_sentence():
        settings = Settings()
        folder = work or out.with_suffix(".work")
        folder.mkdir(parents=True, exist_ok=True)
        if "LOCAL_RANK" in os.environ:  # torchrun's
            if device in ("auto", "cuda"):
                device = f"cuda:{os.environ['LOCAL_RANK']}"
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        try:
            leads = not dist.is_initialized() or dist.get_rank() == 0
            if packed is None:
                packed = folder / "frames.pack"
                if leads and not packed.exists():
                    pack_videos(_videos(videos), folder / "frames.new", size=_size(size), fps=12.5, most_frames=10_000)
                    (folder / "frames.new").replace(packed)
                if dist.is_initialized():
                    dist.barrier()
            loaded = load_model(
                find_model(model),
                weights=weights,
                weights_dir=settings.weights_folder,
                allow_hub=settings.allow_hub,
                device=device,
                dtype="auto",
            )
            schedule = BlockSchedule(steps=steps, batch=batch, rate=rate, seed=seed)
            with Progress(disable=not leads) as bar:
                training = bar.add_task("training", total=stop_at or steps)
                made = train_block(
                    read_pack(packed),
                    loaded.backbone,
                    model,
                    schedule,
                    folder,
                    stop_at=stop_at,
                    on_step=lambda step, loss: bar.update(training, completed=step, description=f"loss {loss:.3f}"),
                )
            if leads:
                shutil.copyfile(made, out)
                _draw(folder)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _draw(folder: Path) -> None:
    try:
        from worker.training.curves import draw_curves
    except ModuleNotFoundError:  # a machine with torch, timm and numpy alone keeps the numbers
        return
    draw_curves(folder / "loss.csv", folder / "loss.png")


def _videos(places: list[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        found += [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise InvalidParameters("--videos: no video there; name a folder that holds some")
    return found


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError:
        raise InvalidParameters(f"--size: expected HxW in pixels, got {text!r}") from None
    return height, width


@contextmanager
def _one_sentence() -> Iterator[None]:
    """An expected failure ends the command with its sentence and status 1."""
    try:
        yield
    except UvosError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error.detail}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
