"""The method of the paper, step by step: video in, masks out.

Source: Ding et al., "Betrayed by Attention" (arXiv:2311.17893), Section 3 and Algorithm 1 of Appendix A. Departures
from it (motion, background, smooth edges) are named in the files of the steps.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from uvos.contract import Clustering, Edges, Manifest, Motion, Stage, Workload, level_name
from uvos.errors import OutOfMemoryBudget
from worker.method.algorithm1 import Level, algorithm1
from worker.method.assignment import assign
from worker.method.attention import AttentionMaps, key_frames, released_key_frames
from worker.method.features import FeatureProjector, Features, KeyFrames, limit_key_frames
from worker.method.leaders import MemoryBudgetExceeded
from worker.method.windowed import windowed
from worker.numerics.choose import choose_backend
from worker.numerics.tile_pool import TilePool
from worker.outputs.drawing import draw_masks, write_clustering_rounds, write_masks, write_tokens, write_views
from worker.outputs.manifest import write_manifest
from worker.outputs.source import write_strip
from worker.run import OnProgress, SegmentationRun
from worker.stopwatch import Stopwatch
from worker.video.clip import Clip, PatchGrid
from worker.video.decode import DecodedVideo, read_clip

PREVIEW_FRAMES, PREVIEW_MIN_FRAMES = 6, 3
PREVIEW_MIN_STEP = 10  # frames of the job per frame of the preview, so that it takes at most a tenth of the time
PREVIEW_MIN_STEP_CUDA = 50  # the fixed part of its time weighs more there
PREVIEW_KEY_RATIO = 0.34
KEPT_BYTES = 2**26  # attention rows kept for the assignment: keeping all would save an eighth, and grow with T


def segment(run: SegmentationRun) -> Manifest:
    """Segment a video into objects and write the result: manifest.json and levels/<tau>/… in `run.out`.

    Raises:
        UvosError: the video is refused, or exceeds the budget; the files in `run.out` are then not a result.
    """
    stopwatch = Stopwatch()
    with ExitStack() as resources:
        projector = resources.enter_context(feature_projector(run, stopwatch))
        with stopwatch.stage(Stage.decode):
            video = read_clip(
                run.decode_request,
                run.frame_size,
                work=run.out,
                on_progress=run.progress_of(Stage.decode),
                on_partial_clip=projector.project_ahead,
            )
        size = run.frame_size.model_size(video.clip.video_size)
        grid = run.model.backbone.grid(size)
        keys = choose_key_frames(run, len(video.clip.frames), grid)
        report_workload(run, video, grid, keys)
        if run.on_preview is not None and (indices := preview_frames(len(video.clip.frames), run.model.device)):
            with stopwatch.stage(Stage.features):
                write_preview(run, video.clip, indices)
            run.on_preview()
        with stopwatch.stage(Stage.features):
            features = projector.project(video.clip.frames, size, keys.indices)
        with stopwatch.stage(Stage.attention):
            maps = attention_maps(run, features, stopwatch)
        with stopwatch.stage(Stage.clustering):
            levels = cluster(run, maps)
            maps.pool.on_pulse = run.progress_of(Stage.clustering)
            assignments = resources.enter_context(assign(maps, levels, grid, run.out))
        with stopwatch.stage(Stage.masks):
            masks = resources.enter_context(draw_masks(run, video.clip, assignments, features))
            write_masks(run, video.clip, masks)
            write_clustering_rounds(run, video.clip, masks)
            if run.extras.tokens:
                write_tokens(run.out / "tokens.npz", assignments, features.motion)
            if run.extras.views:
                write_views(run, video.clip, assignments, features)
    return write_manifest(run, video, keys, masks, stopwatch.report())


def preview_frames(frame_count: int, device: torch.device) -> list[int]:
    """Evenly spaced frames of the preview; none if it would take more than about a tenth of the time of the job."""
    count = min(PREVIEW_FRAMES, frame_count // (PREVIEW_MIN_STEP_CUDA if device.type == "cuda" else PREVIEW_MIN_STEP))
    return [(2 * i + 1) * frame_count // (2 * count) for i in range(count)] if count >= PREVIEW_MIN_FRAMES else []


def write_preview(run: SegmentationRun, clip: Clip, indices: list[int]) -> None:
    """Segment a few frames by themselves and write `preview.jpg`: the frames, and below them their objects.

    The same steps as the whole run, without motion, which needs neighbouring frames, and at the first tau.
    """
    params = run.params.model_copy(
        update={"motion": Motion.off, "key_ratio": PREVIEW_KEY_RATIO, "tau": run.params.tau[:1], "edges": Edges.smooth}
    )
    stopwatch, count = Stopwatch(), len(indices)
    run.on_progress(Stage.features, 0, len(clip.frames))
    with tempfile.TemporaryDirectory(dir=run.out, prefix="preview-") as folder, ExitStack() as resources:
        part = replace(run, params=params, out=Path(folder), on_progress=_only_cancel(run, len(clip.frames)))
        few = Clip(clip.frames[indices], clip.pts_s[indices], clip.video_size)
        size = run.frame_size.model_size(clip.video_size)
        grid = run.model.backbone.grid(size)
        projector = resources.enter_context(feature_projector(part, stopwatch))
        features = projector.project(few.frames, size, choose_key_frames(part, count, grid).indices)
        maps = attention_maps(part, features, stopwatch)
        assignments = resources.enter_context(assign(maps, cluster(part, maps), grid, part.out))
        [level] = resources.enter_context(draw_masks(part, few, assignments, features))
        write_strip(run.out / "preview.jpg", few, [level.frame(index).label_map() for index in range(count)])


def _only_cancel(run: SegmentationRun, frame_count: int) -> OnProgress:
    """Progress of the preview: it advances no stage, but can be cancelled."""
    return lambda *_: run.on_progress(Stage.features, 0, frame_count)


def feature_projector(run: SegmentationRun, stopwatch: Stopwatch) -> FeatureProjector:
    return FeatureProjector(
        run.model,
        run.params,
        run.frame_size,
        work=run.out,
        stopwatch=stopwatch,
        on_progress=run.on_progress,
    )


def choose_key_frames(run: SegmentationRun, frame_count: int, grid: PatchGrid) -> KeyFrames:
    choose = released_key_frames if run.params.clustering is Clustering.windowed else key_frames
    indices = choose(frame_count, run.params.key_ratio)
    return limit_key_frames(indices, frame_count, grid.tokens, run.budget.max_key_tokens)


def report_workload(run: SegmentationRun, video: DecodedVideo, grid: PatchGrid, keys: KeyFrames) -> None:
    if run.on_workload is not None:
        height, width = video.clip.video_size
        run.on_workload(
            Workload(
                frames=len(video.clip.frames),
                tokens=grid.tokens,
                key_tokens=len(keys.indices) * grid.tokens,
                pixels=height * width,
                levels=len(run.params.tau),
            )
        )


def attention_maps(run: SegmentationRun, features: Features, stopwatch: Stopwatch) -> AttentionMaps:
    """The attention maps; rows are computed by later steps on demand, their time is counted to the attention stage."""
    # On a CPU bfloat16 maps gain no time and change labels of ambiguous tokens.
    as_bfloat16 = run.model.device.type == "cuda" and run.model.dtype == "bfloat16"
    backend = choose_backend(run.model.device)
    pool = TilePool(backend.threads, on_pulse=run.progress_of(Stage.attention))
    return AttentionMaps(
        features.queries,
        features.keys,
        backend=backend,
        pool=pool,
        dtype=torch.bfloat16 if as_bfloat16 else torch.float32,
        keep_bytes=min(run.budget.memory_bytes // 2, KEPT_BYTES),
        timer=lambda: stopwatch.tile(Stage.attention, pool.threads),
    )


def cluster(run: SegmentationRun, maps: AttentionMaps) -> list[Level]:
    """The clusters of each tau.

    Raises:
        OutOfMemoryBudget: the clusters exceed half of the memory budget.
    """
    cluster_maps = windowed if run.params.clustering is Clustering.windowed else algorithm1
    try:
        return cluster_maps(maps, run.params.tau, budget_bytes=run.budget.memory_bytes // 2)
    except MemoryBudgetExceeded as error:
        raise OutOfMemoryBudget(
            f"clustering at tau {', '.join(map(level_name, run.params.tau))} needs {error.needed_bytes} bytes; "
            f"the limit is {error.budget_bytes} bytes",
            limit=error.budget_bytes,
            actual=error.needed_bytes,
        ) from error
