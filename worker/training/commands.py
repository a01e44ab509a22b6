"""`uvos-worker train`: decode videos into a frame store, then train a backbone or a block."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from uvos.contract import VIDEO_SUFFIXES
from uvos.errors import InvalidParameters, UvosError
from uvos.progress import CommandProgress

if TYPE_CHECKING:
    from worker.training.run import TrainingRun
    from worker.training.vit import Schedule, VitTraining

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train a backbone or a spatio-temporal block.")

HELD_OUT = 1  # the seed of a training sample is two numbers, that of an evaluation scene three
STOPPED_BY_SIGTERM = 128 + 15


@dataclass(frozen=True)
class StoreOptions:
    """Size (H, W), rate and number of the frames kept of each video."""

    size: tuple[int, int] = (192, 384)
    fps: float = 12.5
    most_frames: int = 160


STORE = StoreOptions()  # defaults of `train frames` and `train backbone`
STILLS = StoreOptions(size=(360, 720), fps=2, most_frames=40)  # of `train distill`, which needs no neighbouring frames
Videos = Annotated[list[Path], typer.Option("--videos", help="A video or a folder of videos; may repeat.", exists=True)]
StoreFile = Annotated[Path | None, typer.Option("--frames", help="A file made by `train frames`.", exists=True)]
Work = Annotated[Path | None, typer.Option(help="Folder for checkpoints and loss curves; default: beside --out.")]
SaveEvery = Annotated[float, typer.Option(min=0, help="Save a checkpoint at least every so many seconds.")]


@app.command("frames")
def store_frames(
    videos: Videos,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    size: Annotated[str, typer.Option(help="HxW of the frames in pixels.")] = "192x384",
    fps: Annotated[float, typer.Option(help="Keep at most this many frames per second.")] = STORE.fps,
    most_frames: Annotated[int, typer.Option(help="Frames per video, from its beginning.")] = STORE.most_frames,
) -> None:
    """Decode videos into one file of frames, from which a machine without decoders can train."""
    from worker.training.frame_store import store_videos

    with _errors_in_one_sentence(), CommandProgress() as progress:
        paths = _videos(videos)
        store_videos(
            paths, out, size=_size(size), fps=fps, most_frames=most_frames, on_video=_decoding(progress, paths)
        )
    Console().print(f"{out}: {out.stat().st_size / 1e6:.0f} MB", highlight=False)


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="The folder to create; `uvos-worker evaluate clips` reads it.")],
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 20,
    frames: Annotated[int, typer.Option(min=1, help="Frames per scene.")] = 24,
    size: Annotated[str, typer.Option(help="HxW of a frame in pixels.")] = "240x432",
    objects: Annotated[int, typer.Option(min=1, help="Objects per scene.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Random seed; no seed repeats a training sample.")] = 0,
) -> None:
    """Generate labelled scenes of the kind that `tiny` is trained on, for evaluation."""
    import cv2
    import numpy as np

    from worker.outputs.png import write_png
    from worker.training.scenes.scene import draw_scene

    with _errors_in_one_sentence(), CommandProgress() as progress:
        height, width = _size(size)
        if out.exists() and any(out.iterdir()):
            raise InvalidParameters(f"--out: {out} is not empty; choose another folder")
        for number in range(count):
            progress.update("drawing", number, count)
            rng = np.random.default_rng((seed, number, HELD_OUT))
            scene = draw_scene(rng, frames=frames, size=(height, width), objects=objects)
            folder = out / f"scene-{number:02d}"
            for name in ("frames", "masks"):
                (folder / name).mkdir(parents=True)
            for index, (frame, labels) in enumerate(zip(scene.frames, scene.labels, strict=True)):
                cv2.imwrite(str(folder / "frames" / f"{index:05d}.png"), frame[:, :, ::-1])
                write_png(folder / "masks" / f"{index:05d}.png", labels.astype(np.uint16), objects=objects)
        progress.update("drawing", count, count)
    Console().print(f"{out}: {count} scenes of {frames} frames", highlight=False)


@app.command()
def backbone(  # noqa: PLR0913 - one parameter per command line option
    out: Annotated[Path, typer.Option(help="The weights' file to write.")],
    videos: Videos = [],  # noqa: B006 (typer copies it)
    frames: StoreFile = None,
    work: Work = None,
    begin_with: Annotated[Path | None, typer.Option(help="Initial weights, of `tiny`.", exists=True)] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Pairs of frames per step.")] = 8,
    size: Annotated[str, typer.Option(help="HxW of a training frame in pixels.")] = "128x256",
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 6e-4,
    seed: Annotated[int, typer.Option(help="Of the initial weights and of every sample.")] = 0,
    save_every_s: SaveEvery = 300.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the ViT on a CPU.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train `tiny` without human labels, on videos and generated scenes; an interrupted run resumes when repeated."""
    import torch

    from worker.training.backbone import train_backbone
    from worker.training.frame_store import read_store
    from worker.training.pseudo_labels import label_moving_objects, read_pseudo_labels, save_pseudo_labels
    from worker.training.run import TrainingRun
    from worker.training.vit import Schedule

    with _errors_in_one_sentence(), CommandProgress() as progress:
        folder = work or out.with_suffix(".work")
        folder.mkdir(parents=True, exist_ok=True)
        schedule = Schedule(steps=steps, batch=batch, size=_size(size), rate=rate, seed=seed)
        torch.set_num_threads(threads)
        store = read_store(frames or _store(videos, folder, STORE, progress))
        labels_file = folder / "pseudo_labels.npz"
        if not labels_file.exists():
            labels = label_moving_objects(store, on_progress=lambda done, of: progress.update("labelling", done, of))
            part = labels_file.with_suffix(".new")
            save_pseudo_labels(labels, part)
            part.replace(labels_file)
        run = TrainingRun(
            folder,
            save_every=250,
            save_every_s=save_every_s,
            on_step=lambda step, loss: progress.update("training", step, steps, detail=f"loss {loss:.3f}"),
        )
        training = _begin(schedule, run, begin_with, device)
        trained = train_backbone(training, store, read_pseudo_labels(labels_file), run)
        _write_tiny(trained, out, f"seed {seed}, {steps} steps")
        _draw(folder)
    Console().print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; curves: {folder / 'loss.png'}", highlight=False)


@app.command()
def distill(  # noqa: PLR0913 - one parameter per command line option
    out: Annotated[Path, typer.Option(help="The weights' file to write.")],
    teacher: Annotated[str, typer.Option(help="The larger model: a name of `uvos-worker models`.")] = "dinov2-vits14",
    videos: Videos = [],  # noqa: B006 (typer copies it)
    frames: StoreFile = None,
    work: Work = None,
    begin_with: Annotated[Path | None, typer.Option(help="Initial weights, of `tiny`.", exists=True)] = None,
    crops: Annotated[int, typer.Option(min=1, help="Crops of real frames that the teacher sees.")] = 900,
    scenes: Annotated[int, typer.Option(min=0, help="Generated scenes that the teacher sees.")] = 300,
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 3000,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 6,
    size: Annotated[str, typer.Option(help="HxW of a training frame in pixels, multiples of 8.")] = "128x256",
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the initial weights and of every sample.")] = 0,
    save_every_s: SaveEvery = 300.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads on a CPU.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Distil `tiny` from a larger model on videos and generated scenes; an interrupted run resumes when repeated."""
    import torch

    from service.settings import Settings
    from uvos.models import find_model
    from worker.models.loading import load_model
    from worker.training.distillation import distil
    from worker.training.frame_store import read_store
    from worker.training.run import TrainingRun
    from worker.training.teacher import SamplePlan, make_teacher_samples, read_teacher_samples
    from worker.training.vit import Schedule
    from worker.video.clip import PatchGrid

    with _errors_in_one_sentence(), CommandProgress() as progress:
        entry, settings = find_model("tiny"), Settings()
        folder = work or out.with_suffix(".work")
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(threads)
        schedule = Schedule(steps=steps, batch=batch, size=_size(size), rate=rate, seed=seed)
        samples = read_teacher_samples(folder)
        if samples is None:
            grid = PatchGrid(schedule.size[0] // entry.patch, schedule.size[1] // entry.patch)
            loaded = load_model(
                find_model(teacher),
                weights_dir=settings.weights_folder,
                allow_hub=settings.allow_hub,
                device=device,
            )
            samples = make_teacher_samples(
                read_store(frames or _store(videos, folder, STILLS, progress)),
                loaded.backbone,
                SamplePlan(crops, scenes, grid, entry.patch, seed),
                folder,
                on_progress=lambda done, of: progress.update("teacher", done, of),
            )
        run = TrainingRun(
            folder,
            save_every_s=save_every_s,
            on_step=lambda step, loss: progress.update("training", step, steps, detail=f"loss {loss:.3f}"),
        )
        training = _begin(schedule, run, begin_with, device)
        _write_tiny(distil(training, samples, run), out, f"distilled from {teacher}, seed {seed}, {steps} steps")
        _draw(folder)
    Console().print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; curves: {folder / 'loss.png'}", highlight=False)


@app.command()
def block(  # noqa: PLR0913 - one parameter per command line option
    out: Annotated[Path, typer.Option(help="The block's file to write.")],
    model: Annotated[str, typer.Option(help="The frozen backbone: a name of `uvos-worker models`.")],
    videos: Videos = [],  # noqa: B006 (typer copies it)
    frames: StoreFile = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the backbone, if not its own.", exists=True)] = None,
    work: Work = None,
    size: Annotated[str, typer.Option(help="HxW of the frames in pixels, where --videos are decoded.")] = "192x384",
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 20_000,
    stop_at: Annotated[
        int | None, typer.Option(min=1, help="Stop after this step; repeat the command to resume.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips per step and process.")] = 4,
    rate: Annotated[float, typer.Option(help="Initial learning rate.")] = 1e-5,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the clips and the dropout.")] = 0,
    save_every_s: SaveEvery = 300.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
) -> None:
    """Train the paper's block behind a frozen backbone; several GPUs: torchrun -m worker.cli train block ..."""
    import torch.distributed as dist

    from service.settings import Settings
    from uvos.models import find_model
    from worker.models.loading import load_model
    from worker.training.block import BlockSchedule, train_block
    from worker.training.frame_store import read_store
    from worker.training.run import TrainingRun

    with (
        _errors_in_one_sentence(),
        _process_group(device) as (device, is_first),
        CommandProgress(enabled=is_first) as progress,
    ):
        settings = Settings()
        folder = work or out.with_suffix(".work")
        folder.mkdir(parents=True, exist_ok=True)
        if frames is None:
            if is_first:
                _store(videos, folder, StoreOptions(size=_size(size), most_frames=10_000), progress)
            if dist.is_initialized():
                dist.barrier()
            frames = folder / "frames.store"
        loaded = load_model(
            find_model(model),
            weights=weights,
            weights_dir=settings.weights_folder,
            allow_hub=settings.allow_hub,
            device=device,
            dtype="auto",
        )
        run = TrainingRun(
            folder,
            stop_at=stop_at,
            save_every_s=save_every_s,
            on_step=lambda step, loss: progress.update("training", step, stop_at or steps, detail=f"loss {loss:.3f}"),
        )
        schedule = BlockSchedule(steps=steps, batch=batch, rate=rate, seed=seed)
        trained = train_block(read_store(frames), loaded.backbone, model, schedule, run)
        if is_first:
            shutil.copyfile(trained, out)
            _draw(folder)


@contextmanager
def _process_group(device: str) -> Iterator[tuple[str, bool]]:
    """Join torchrun's process group where there is one; the device to use, and whether this is the first process."""
    import torch.distributed as dist

    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank is None:
        yield device, True
        return
    if device in ("auto", "cuda"):
        device = f"cuda:{local_rank}"
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device, dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def _store(videos: list[Path], folder: Path, options: StoreOptions, progress: CommandProgress) -> Path:
    """The frame store of a training folder, made from the videos unless it is there."""
    from worker.training.frame_store import store_videos

    store = folder / "frames.store"
    if not store.exists():
        paths = _videos(videos)
        part = store.with_suffix(".new")
        store_videos(
            paths,
            part,
            size=options.size,
            fps=options.fps,
            most_frames=options.most_frames,
            on_video=_decoding(progress, paths),
        )
        part.replace(store)
    return store


def _begin(schedule: "Schedule", run: "TrainingRun", begin_with: Path | None, device: str) -> "VitTraining":
    """Training of `tiny`, from a file of weights if there is one."""
    import torch

    from uvos.models import find_model
    from worker.models.loading import choose_dtype
    from worker.models.weights import read_weights
    from worker.training.vit import VitTraining

    return VitTraining.begin(
        dict(find_model("tiny").timm_options),
        schedule,
        run,
        begin_with=None if begin_with is None else dict(read_weights(begin_with).vit),
        device=device,
        mixed=choose_dtype("auto", device=torch.device(device), exact=False) is torch.bfloat16,
    )


def _write_tiny(trained: Path, out: Path, version: str) -> None:
    """Write the weights of a training run in the format of the package."""
    from uvos.models import find_model
    from worker.models.backbone import create_vit
    from worker.models.weights import load_into, read_weights, write_backbone

    entry = find_model("tiny")
    vit = create_vit(entry.timm_id, entry.timm_options)
    load_into(vit, read_weights(trained).vit)
    write_backbone(out, vit, model=entry.name, version=version)


def _decoding(progress: CommandProgress, videos: list[Path]) -> Callable[[Path, int], None]:
    def show(video: Path, frame_count: int) -> None:
        done = videos.index(video) + 1
        progress.update("decoding", done, len(videos), detail=f"{video.name}, {frame_count} frames")

    return show


def _draw(folder: Path) -> None:
    try:
        from worker.training.curves import draw_curves
    except ModuleNotFoundError:  # a machine with only torch, timm and numpy keeps the numbers
        return
    draw_curves(folder / "loss.csv", folder / "loss.png")


def _videos(places: list[Path]) -> list[Path]:
    paths: list[Path] = []
    for place in places:
        inside = sorted(place.rglob("*")) if place.is_dir() else [place]
        paths += [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES]
    if not paths:
        raise InvalidParameters("--videos: no video found; name a video or a folder that holds some")
    return paths


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError:
        raise InvalidParameters(f"--size: expected HxW in pixels, got {text!r}") from None
    return height, width


@contextmanager
def _errors_in_one_sentence() -> Iterator[None]:
    """Print an expected failure as one sentence and exit with status 1; SIGTERM: 143, as the shell reports it."""
    from worker.training.run import TrainingStopped

    console = Console(stderr=True)
    try:
        yield
    except UvosError as error:
        console.print(f"[red]error:[/red] {error.detail}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except TrainingStopped as stopped:
        console.print(str(stopped), highlight=False, soft_wrap=True)
        raise typer.Exit(STOPPED_BY_SIGTERM) from None
