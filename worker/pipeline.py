"""The method of the paper, step by step: video in, masks out.

Source: Ding et al., "Betrayed by Attention" (arXiv:2311.17893), Section 3 and Algorithm 1 of Appendix A. Departures
from it (motion, background, smooth edges) are named in the files of the steps.
"""

from contextlib import ExitStack

import torch

from uvos.contract import Clustering, Manifest, Stage, Workload, level_name
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
from worker.run import SegmentationRun
from worker.stopwatch import Stopwatch
from worker.video.clip import PatchGrid
from worker.video.decode import DecodedVideo, read_clip

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


def feature_projector(run: SegmentationRun, stopwatch: Stopwatch) -> FeatureProjector:
    return FeatureProjector(
        run.model,
        run.params,
        run.frame_size,
        work=run.out,
        stopwatch=stopwatch,
        on_progress=run.progress_of(Stage.features),
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
