"""The method, stage by stage: a video in, masks out. The only file that knows the order of the stages."""

import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uvos.contract import (
    Clustering,
    Format,
    JobParams,
    Manifest,
    ManifestLevel,
    ManifestModel,
    ManifestObject,
    ManifestRound,
    ManifestVideo,
    Motion,
    Stage,
    Workload,
    level_name,
)
from uvos.errors import OutOfMemoryBudget
from worker.method.algorithm1 import Level, algorithm1
from worker.method.assignment import kl_to_centroids
from worker.method.attention import AttentionMaps, key_frames, released_key_frames
from worker.method.edges import draw_label_map
from worker.method.leaders import MemoryBudgetExceeded
from worker.method.masks import ObjectDecision, decide_objects, renumber_as_drawn
from worker.method.motion import join_motion, motion_energy, movers
from worker.method.windowed import windowed
from worker.models.backbone import Projections
from worker.models.loading import LoadedModel
from worker.numerics.choose import choose_backend
from worker.numerics.spool import Spool
from worker.numerics.tile_pool import TilePool
from worker.outputs.overlay import OverlayWriter
from worker.outputs.png import color, write_png
from worker.outputs.rle import RleWriter, Runs
from worker.outputs.rounds import write_rounds
from worker.video.clip import PatchGrid
from worker.video.decode import DecodedVideo, FrameSize, PartialClip, read_clip, stream_frames
from worker.video.request import DecodeLimits, DecodeRequest, VideoPart

Progress = Callable[[Stage, int, int | None], None]
"""Called with the stage, its frames done and all frames; what it raises ends the job."""

KEPT_BYTES = 2**26  # rows of short clips; all of them would save an eighth of attention and clustering, and grow with T
DRAWING_THREADS = 2
DRAWN_AHEAD = 8  # frames: bounds what waits to be written
VERSIONED = ("uvos", "torch", "timm", "av", "numpy")


@dataclass(frozen=True)
class Budget:
    """What a job may use."""

    decode: DecodeLimits = field(default_factory=DecodeLimits)
    memory_bytes: int = 6 * 2**30
    """For centroids and kept attention rows."""
    max_key_tokens: int = 40_000
    """key_ratio is lowered to stay below it."""


@dataclass(frozen=True)
class Extras:
    """What is written beside the result, for people who look into the method."""

    tokens: bool = False
    """`tokens.npz`: the cluster of every token, before background is told apart, and its motion where looked at."""
    rounds: bool = False
    """`levels/<tau>/rounds/<round>/00000.png …`: the groups after each round of the clustering, on patches."""


class Stopwatch:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds = dict.fromkeys((stage.value for stage in Stage), 0.0)

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage.value] += time.perf_counter() - begin

    def move(self, seconds: float, *, source: Stage, target: Stage) -> None:
        """Count time to another stage that ran inside this one."""
        self.seconds[source.value] -= seconds
        self.seconds[target.value] += seconds

    def report(self) -> dict[str, float]:
        total = time.perf_counter() - self.began
        return {name: round(seconds, 4) for name, seconds in {**self.seconds, "total": total}.items()}


@dataclass(frozen=True)
class Projected:
    """What attention needs of a clip: queries of all frames on disk, keys of the key frames in memory."""

    queries: Spool
    """A row a frame, (N, heads, d)."""
    keys: Tensor
    """(K*N, heads, d)."""
    motion: NDArray[np.float32] | None
    """How surely each token moves, (T, h, w); None where it was not looked at."""


@dataclass(frozen=True)
class Assigned:
    """One level after the assignment."""

    level: Level
    labels: NDArray[np.int32]
    """The nearest centroid of each token, (T, h, w)."""
    scores: Spool
    """J - min(J) of each token to each centroid, a row a frame, (N, C) float16: the interpolation's input."""


def segment(
    source: Path,
    params: JobParams,
    model: LoadedModel,
    out: Path,
    *,
    budget: Budget,
    name: str | None = None,
    job_id: str | None = None,
    extras: Extras | None = None,
    on_progress: Progress | None = None,
    on_work: Callable[[Workload], None] | None = None,
) -> Manifest:
    """Segment a video into objects and write the result into `out`.

    Source: Ding et al., "Betrayed by Attention" (arXiv:2311.17893): features and keys of Section 3, clustering by
    Algorithm 1. Joining motion to the tokens, smooth edges and telling background apart are ours.

    Args:
        source: A video file, or a folder of frames.
        params: What to do, defaults filled in.
        model: The loaded model.
        out: An existing folder; written: manifest.json, levels/<tau>/....
        budget: Limits; beyond them the job fails and says so.
        name: The video's name in the manifest; default: the file's.
        job_id: For the manifest.
        extras: What to write beside.
        on_progress: Told where the job is, at least every second or so.
        on_work: Told once how much there is to do, when the video is decoded.

    Raises:
        UvosError: The video or the budget does not allow it; nothing of what is in `out` is a result then.
    """
    extras = extras or Extras()
    tell = on_progress or (lambda *_: None)
    watch = Stopwatch()
    with ExitStack() as open_files:
        projector = open_files.enter_context(_Projector(params, model, out))
        with watch.stage(Stage.decode):
            decoded = read_clip(
                _request(source, params, budget.decode),
                _frame_size(params, model),
                work=out,
                on_progress=lambda done, total: tell(Stage.decode, done, total),
                on_partial_clip=projector.take,
            )
        watch.move(projector.seconds, source=Stage.decode, target=Stage.features)
        size = _frame_size(params, model).model_size(decoded.clip.video_size)
        grid = model.backbone.grid(size)
        frame_count = len(decoded.clip.frames)
        keyed, warnings = _key_frames(frame_count, params, grid, budget.max_key_tokens)
        if on_work is not None:
            height, width = decoded.clip.video_size
            on_work(
                Workload(
                    frames=frame_count,
                    tokens=grid.tokens,
                    key_tokens=len(keyed) * grid.tokens,
                    pixels=height * width,
                    levels=len(params.tau),
                )
            )
        with watch.stage(Stage.features):
            projected = projector.finish(decoded.clip.frames, size, keyed, tell)
        backend, stage = choose_backend(model.device), Stage.attention

        def on_pulse(done: int, total: int) -> None:
            tell(stage, done, total)

        maps = AttentionMaps(
            projected.queries,
            projected.keys,
            backend=backend,
            pool=TilePool(backend.threads, on_pulse),
            # On a CPU rounding the maps gains nothing and moves labels on weak tokens.
            dtype=torch.bfloat16 if model.device.type == "cuda" and model.dtype == "bfloat16" else torch.float32,
            keep_bytes=min(budget.memory_bytes // 2, KEPT_BYTES),
        )
        with watch.stage(Stage.clustering):
            levels = _cluster(maps, params, budget.memory_bytes // 2)
            stage = Stage.clustering
            assigned = open_files.enter_context(_assign(maps, levels, grid, out))
        watch.move(maps.seconds, source=Stage.clustering, target=Stage.attention)
        if extras.tokens:
            clusters = np.stack([one.labels for one in assigned])
            if projected.motion is None:
                np.savez_compressed(out / "tokens.npz", labels=clusters)
            else:
                np.savez_compressed(out / "tokens.npz", labels=clusters, motion=projected.motion)
        with watch.stage(Stage.masks):
            decisions = [_decide(one, params, grid, decoded.clip.video_size, projected.motion) for one in assigned]
            _draw(source, decoded, params, grid, assigned, decisions, out, budget.decode, tell)
            for one in assigned:
                write_rounds(
                    out / "levels" / level_name(one.level.tau) / "rounds.json",
                    one.level.rounds[0].parents.reshape(one.labels.shape),
                )
            if extras.rounds:
                for one in assigned:
                    _draw_rounds(out / "levels" / level_name(one.level.tau) / "rounds", one, decoded.clip.video_size)
            if Format.png in params.format:
                for one in assigned:
                    _zip_masks(out / "levels" / level_name(one.level.tau), name or source.stem)
    return _write_manifest(
        out,
        decoded,
        params,
        model,
        size,
        grid,
        keyed,
        assigned,
        decisions,
        watch,
        warnings,
        name or source.stem,
        job_id,
    )


# --- decode


def _request(source: Path, params: JobParams, limits: DecodeLimits) -> DecodeRequest:
    return DecodeRequest(source, VideoPart(params.start, params.end, params.fps), limits)


def _frame_size(params: JobParams, model: LoadedModel) -> FrameSize:
    # The released procedure resizes by itself, bilinearly and without antialiasing.
    native = params.clustering is Clustering.windowed
    return FrameSize(model.entry.short_side, model.backbone.patch, params.resolution, native)


# --- features


def _key_frames(
    frame_count: int, params: JobParams, grid: PatchGrid, max_key_tokens: int
) -> tuple[list[int], list[str]]:
    """The key frames, fewer than asked for where their tokens would be too many, and the warning that says so."""
    choose = released_key_frames if params.clustering is Clustering.windowed else key_frames
    wanted = choose(frame_count, params.key_ratio)
    allowed = max(1, max_key_tokens // grid.tokens)
    if len(wanted) <= allowed:
        return wanted, []
    found = [i * frame_count // allowed for i in range(allowed)]
    return found, [
        f"key_ratio {params.key_ratio:g} asks for {len(wanted)} key frames of {grid.tokens} tokens; "
        f"{len(found)} were used (key_ratio {len(found) / frame_count:g}) to stay below {max_key_tokens} key tokens"
    ]


class _Projector(AbstractContextManager["_Projector"]):
    """Queries of all frames and keys of the key frames: batch by batch, from when there are frames enough for one.

    Which frames are key frames is known when all are decoded. Of those that were projected before, the keys lie on
    disk until then.

    Attributes:
        seconds: Spent on frames while others were being decoded.
    """

    def __init__(self, params: JobParams, model: LoadedModel, work: Path) -> None:
        self._params, self._model, self._work = params, model, work
        self._bits = model.dtype != "float32"
        self._arrived: PartialClip | None = None
        self._queries: Spool | None = None
        self._early_keys: Spool | None = None
        self.seconds = 0.0

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for spool in (self._queries, self._early_keys):
            if spool is not None:
                spool.close()

    def take(self, arrived: PartialClip) -> None:
        """Project a batch of the frames that have arrived, if there are so many that were not projected yet."""
        if self._params.motion is Motion.on:  # it looks at frames before and after
            return
        began = time.perf_counter()
        if arrived is not self._arrived:  # also where a decoder was lost: the next one begins from the start
            self._close()
            self._arrived, self._queries, self._early_keys = arrived, None, None
        size = _frame_size(self._params, self._model).model_size(arrived.video_size)
        done = 0 if self._queries is None else len(self._queries)
        stop = done + self._model.backbone.batch_size(size)
        if stop <= arrived.count:
            part = self._project(arrived.read(done, stop), size)
            if self._early_keys is None:
                self._early_keys = Spool(self._work, row_shape=part.keys.shape[1:], dtype=np.float32, name="keys.spool")
            self._early_keys.append(part.keys.cpu().numpy())
        self.seconds += time.perf_counter() - began

    def finish(self, frames: NDArray[np.uint8], size: tuple[int, int], keyed: list[int], tell: Progress) -> Projected:
        """Project the frames that are left, of all of them."""
        batch, grid = self._model.backbone.batch_size(size), self._model.backbone.grid(size)
        early = 0 if self._queries is None else len(self._queries)
        tell(Stage.features, early, len(frames))
        energy = None
        if self._params.motion is Motion.on:
            energy = motion_energy(frames, grid, on_progress=lambda *_: tell(Stage.features, early, len(frames)))
        moving = () if energy is None else (energy, movers(energy))
        keys = [self._early_key(frame) for frame in keyed if frame < early]
        for start in range(early, len(frames), batch):
            tell(Stage.features, start, len(frames))
            stop = min(start + batch, len(frames))
            part = self._project(frames[start:stop], size, [of[start:stop] for of in moving])
            keys += [part.keys[frame - start] for frame in keyed if start <= frame < stop]
        tell(Stage.features, len(frames), len(frames))
        if self._early_keys is not None:
            self._early_keys.close()
        assert self._queries is not None
        return Projected(self._queries, torch.cat(keys), energy)

    def _project(
        self, frames: NDArray[np.uint8], size: tuple[int, int], moving: Sequence[NDArray[np.generic]] = ()
    ) -> Projections:
        """Queries, which go to disk, and keys of some frames."""
        backbone = self._model.backbone
        part = backbone.project(_to_device(frames, backbone.device), size=size)
        if moving:
            now = [torch.from_numpy(of).flatten(1).to(backbone.device) for of in moving]
            part = Projections(*join_motion(part.queries, part.keys, *now))
        if self._queries is None:
            dtype = np.uint16 if self._bits else np.float32
            self._queries = Spool(self._work, row_shape=part.queries.shape[1:], dtype=dtype, name="queries.spool")
        self._queries.append(_to_disk(part.queries, self._bits))
        return part

    def _early_key(self, frame: int) -> Tensor:
        """Of one key frame, (N, heads, d)."""
        assert self._early_keys is not None
        return torch.from_numpy(self._early_keys.read(frame, frame + 1)[0]).to(self._model.backbone.device)


def _to_device(frames: NDArray[np.uint8], device: torch.device) -> Tensor:
    batch = torch.from_numpy(np.array(frames))  # a copy: a memory map is read-only
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch


def _to_disk(values: Tensor, bits: bool) -> NDArray[np.generic]:
    """float32, or the bits of bfloat16, which NumPy does not know."""
    found: NDArray[np.generic] = (
        values.to(torch.bfloat16).view(torch.uint16).cpu().numpy() if bits else values.float().cpu().numpy()
    )
    return found


# --- attention and clustering


def _cluster(maps: AttentionMaps, params: JobParams, budget_bytes: int) -> list[Level]:
    cluster = windowed if params.clustering is Clustering.windowed else algorithm1
    try:
        return cluster(maps, params.tau, budget_bytes=budget_bytes)
    except MemoryBudgetExceeded as error:
        raise OutOfMemoryBudget(
            f"clustering at tau {', '.join(map(level_name, params.tau))} needs {error.needed_bytes} bytes, "
            f"{error.budget_bytes} are allowed",
            limit=error.budget_bytes,
            actual=error.needed_bytes,
        ) from error


@contextmanager
def _assign(maps: AttentionMaps, levels: list[Level], grid: PatchGrid, work: Path) -> Iterator[list[Assigned]]:
    """The nearest centroid of every token and how much farther the others are, for all levels in one pass."""
    with ExitStack() as stack:
        assigned = [
            Assigned(
                level,
                np.empty((maps.frame_count, grid.height, grid.width), np.int32),
                stack.enter_context(
                    Spool(
                        work,
                        row_shape=(grid.tokens, len(level.centroids)),
                        dtype=np.float16,
                        name=f"scores-{index}.spool",
                    )
                ),
            )
            for index, level in enumerate(levels)
        ]
        for start, stop, found in kl_to_centroids(maps, levels):
            for one, values in zip(assigned, found, strict=True):
                nearest = values.min(-1, keepdim=True)
                one.labels[start:stop] = nearest.indices.view(-1, grid.height, grid.width).cpu().numpy()
                beyond = (values - nearest.values).clamp_(max=torch.finfo(torch.float16).max)
                one.scores.append(beyond.to(torch.float16).cpu().numpy())
        yield assigned


# --- masks


class _Scores:
    """The scores of an assignment by frame, (N, C)."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def __getitem__(self, frame: int) -> NDArray[np.floating]:
        row: NDArray[np.floating] = self._spool.read(frame, frame + 1)[0]
        return row


def _decide(
    one: Assigned, params: JobParams, grid: PatchGrid, size: tuple[int, int], motion: NDArray[np.float32] | None
) -> ObjectDecision:
    """What becomes of each cluster; ids, areas and spans are those of the label maps as they will be drawn."""
    scores = _Scores(one.scores)
    decision = decide_objects(
        one.labels,
        len(one.level.centroids),
        mode=params.mode,
        background=params.background,
        min_area=params.min_area,
        distances=scores,
        motion=motion,
    )

    def areas(frame: int) -> NDArray[np.intp]:
        labels = draw_label_map(scores[frame], grid, size=size, decision=decision, edges=params.edges)
        return np.bincount(labels.ravel(), minlength=len(decision.objects) + 1)

    with ThreadPoolExecutor(DRAWING_THREADS) as pool:
        return renumber_as_drawn(decision, np.stack(list(pool.map(areas, range(len(one.labels))))))[0]


def _draw(
    source: Path,
    decoded: DecodedVideo,
    params: JobParams,
    grid: PatchGrid,
    assigned: list[Assigned],
    decisions: list[ObjectDecision],
    out: Path,
    limits: DecodeLimits,
    tell: Progress,
) -> None:
    """Write the masks of every level: frames are drawn side by side, and written in order."""
    clip = decoded.clip
    size, times = clip.video_size, clip.pts_s.tolist()
    folders = [out / "levels" / level_name(one.level.tau) for one in assigned]
    for folder in folders:
        (folder / "masks" if Format.png in params.format else folder).mkdir(parents=True)
    with_overlay = Format.overlay in params.format

    def draw(frame: int, index: int) -> tuple[dict[int, str], NDArray[np.uint16] | None]:
        one, decision = assigned[index], decisions[index]
        labels = draw_label_map(_Scores(one.scores)[frame], grid, size=size, decision=decision, edges=params.edges)
        if Format.png in params.format:
            path = folders[index] / "masks" / f"{frame:05d}.png"
            write_png(path, labels, objects=len(decision.objects))
        return Runs.of(labels).counts(), labels if with_overlay else None

    with ExitStack() as stack:
        rles = [stack.enter_context(RleWriter(folder / "rle.json", size)) for folder in folders]
        overlays: list[OverlayWriter] = []
        pictures: Iterator[NDArray[np.uint8]] = iter(())
        if with_overlay:
            overlays = [
                stack.enter_context(OverlayWriter(folder / "overlay.mp4", size, clip.pts_s)) for folder in folders
            ]
            again = stream_frames(_request(source, params, limits), work=out)
            pictures = stack.enter_context(closing(again))
        pool = stack.enter_context(ThreadPoolExecutor(DRAWING_THREADS))
        waiting: deque[list[Future[tuple[dict[int, str], NDArray[np.uint16] | None]]]] = deque()
        drawn = 0
        for frame in range(len(times) + DRAWN_AHEAD):
            if frame < len(times):
                waiting.append([pool.submit(draw, frame, index) for index in range(len(assigned))])
            if (frame < DRAWN_AHEAD - 1 and frame < len(times) - 1) or not waiting:
                continue
            picture = next(pictures, None)
            for index, done in enumerate(waiting.popleft()):
                counts, labels = done.result()
                rles[index].write(times[drawn], counts)
                if labels is not None:
                    assert picture is not None
                    overlays[index].write(picture, labels)
            drawn += 1
            tell(Stage.masks, drawn, len(times))


def _draw_rounds(folder: Path, one: Assigned, size: tuple[int, int]) -> None:
    """The hierarchy of Fig. 1: the groups after each round, as patches at the video's size; ids are group + 1."""
    length, height, width = one.labels.shape
    rows, columns = np.arange(size[0]) * height // size[0], np.arange(size[1]) * width // size[1]
    groups = np.arange(length * height * width)
    for number, each in enumerate(one.level.rounds):
        groups = each.parents[groups]
        place = folder / str(number)
        place.mkdir(parents=True)
        count = int(groups.max()) + 1
        for frame, labels in enumerate(groups.reshape(one.labels.shape)):
            write_png(place / f"{frame:05d}.png", labels.take(rows, 0).take(columns, 1) + 1, objects=count)


def _zip_masks(folder: Path, name: str) -> None:
    """All masks in one archive in the layout of DAVIS, stored as they are: PNGs are compressed already."""
    with zipfile.ZipFile(folder / "masks.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in sorted((folder / "masks").iterdir()):
            archive.writestr(zipfile.ZipInfo(f"{name}/{path.name}"), path.read_bytes())


# --- manifest


def _write_manifest(
    out: Path,
    decoded: DecodedVideo,
    params: JobParams,
    model: LoadedModel,
    size: tuple[int, int],
    grid: PatchGrid,
    keyed: list[int],
    assigned: list[Assigned],
    decisions: list[ObjectDecision],
    watch: Stopwatch,
    warnings: list[str],
    name: str,
    job_id: str | None,
) -> Manifest:
    info = decoded.info
    for one, decision in zip(assigned, decisions, strict=True):
        if len(decision.objects) > 255:
            warnings.append(
                f"level {level_name(one.level.tau)} has {len(decision.objects)} objects: its PNGs are 16-bit grey"
            )
    manifest = Manifest(
        job_id=job_id,
        created_at=datetime.now(UTC),
        video=ManifestVideo(
            name=name,
            sha256=info.sha256,
            width=info.width,
            height=info.height,
            frame_count=info.frame_count,
            fps=info.fps,
            pts_s=decoded.clip.pts_s.tolist(),
            rotation=info.rotation,
            sample_aspect_ratio=info.sample_aspect_ratio,
            codec=info.codec,
        ),
        params=params.model_dump(mode="json"),
        model=ManifestModel(
            name=model.entry.name, weights=model.weights_source, sha256=model.sha256, version=model.version
        ),
        versions={package: version(package) for package in VERSIONED},
        device=str(model.device),
        dtype=model.dtype,
        resolution=f"{size[0]}x{size[1]}",
        grid=f"{grid.height}x{grid.width}",
        key_frames=keyed,
        timings_s=watch.report(),
        warnings=[*decoded.warnings, *warnings],
        sandbox=list(decoded.sandbox),
        levels=[_level(out, one, decision) for one, decision in zip(assigned, decisions, strict=True)],
    )
    (out / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    return manifest


def _level(out: Path, one: Assigned, decision: ObjectDecision) -> ManifestLevel:
    folder = out / "levels" / level_name(one.level.tau)
    return ManifestLevel(
        tau=one.level.tau,
        name=level_name(one.level.tau),
        clusters=len(one.level.centroids),
        objects=[
            ManifestObject(
                id=found.id,
                color=color(found.id),
                area=found.area,
                first_frame=found.first_frame,
                last_frame=found.last_frame,
                frames=found.frames,
                background_score=found.background_score,
            )
            for found in decision.objects
        ],
        background_clusters=decision.background_clusters,
        rounds=[
            ManifestRound(centroids=int(each.parents.max()) + 1, parents=each.parents.tolist() if number else [])
            for number, each in enumerate(one.level.rounds)
        ],
        files=sorted(str(path.relative_to(out)) for path in folder.rglob("*") if path.is_file()),
    )
