"""Assignments -> label maps of all levels, written as RLE, PNG and overlay video, and as a ZIP archive of the PNGs.

Every frame is drawn once: its runs are kept on disk until the final object ids are known. Frames are processed in
parallel and written in order; the number of frames in memory does not grow with the length of the video.
"""

import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.rendering.overlay import blend
from service.rendering.video import H264, VideoWriter
from uvos.contract import Background, Edges, Format, Mode, Stage
from worker.method.assignment import Assignment
from worker.method.edges import draw_label_map, nearest_patch
from worker.method.features import Features
from worker.method.instances import track_instances
from worker.method.masks import (
    FrameDistances,
    ObjectDecision,
    decide_objects,
    renumber_as_drawn,
    with_object_scores,
    without_whole_frame,
)
from worker.method.object_tokens import ObjectTokens, divide_into_instances, separate_objects, single_object
from worker.outputs.png import write_png
from worker.outputs.rle import RleWriter, Runs, RunsSpool
from worker.outputs.rounds import write_rounds
from worker.outputs.source import SourceWriter, original_frames
from worker.run import SegmentationRun
from worker.threads import usable_cores
from worker.video.clip import Clip, PatchGrid

DRAWING_THREADS = min(usable_cores(), 2)
OVERLAY_ENCODER = {"crf": "21"}
FRAMES_AHEAD = 8  # frames that are processed before they are written; bounds memory and the delay of a cancellation

T = TypeVar("T")


@dataclass(frozen=True)
class LevelMasks:
    """The masks of one level.

    Attributes:
        assignment: The tokens' clusters.
        decision: The objects, with ids, areas and frame ranges as drawn.
        runs: Label maps with provisional ids.
        final_ids: The id of each provisional id, shape (provisional objects + 1,).
    """

    assignment: Assignment
    decision: ObjectDecision
    runs: RunsSpool
    final_ids: NDArray[np.uint16]

    def frame(self, frame_index: int) -> Runs:
        """The label map of a frame."""
        return self.runs.read(frame_index).renumbered(self.final_ids)


@contextmanager
def draw_masks(
    run: SegmentationRun, clip: Clip, assignments: list[Assignment], features: Features
) -> Iterator[list[LevelMasks]]:
    """Decide the objects of each level and draw all frames; the label maps are deleted when the block is left."""
    size, length = clip.video_size, len(clip.frames)
    edges = run.params.edges
    objects = [_LevelObjects.of(run, clip, assignment, features) for assignment in assignments]
    decisions = [level_objects.decision for level_objects in objects]

    def draw(frame_index: int) -> list[Runs]:
        return [Runs.of(level_objects.draw(frame_index, clip, edges)) for level_objects in objects]

    with ExitStack() as resources:
        spools = [resources.enter_context(RunsSpool(run.out, size)) for _ in assignments]
        areas = [np.empty((length, len(decision.objects) + 1), np.int64) for decision in decisions]
        with ThreadPoolExecutor(DRAWING_THREADS) as pool:
            for frame_index, runs_by_level in enumerate(_map_in_order(pool, draw, length)):
                for spool, level_areas, runs in zip(spools, areas, runs_by_level, strict=True):
                    spool.append(runs)
                    level_areas[frame_index] = runs.areas(level_areas.shape[1])
                run.on_progress(Stage.masks, (frame_index + 1) * (length // 2) // length, length)
        drawn = [renumber_as_drawn(*arguments) for arguments in zip(decisions, areas, strict=True)]
        yield [
            LevelMasks(assignment, decision, spool, final_ids)
            for assignment, (decision, final_ids), spool in zip(assignments, drawn, spools, strict=True)
        ]


def write_masks(run: SegmentationRun, clip: Clip, levels: list[LevelMasks]) -> None:
    """Write the requested formats of all levels into `levels/<tau>/`, and the frames themselves."""
    length = len(clip.frames)
    with ExitStack() as resources:
        writers = [resources.enter_context(_LevelWriter(run, clip, level)) for level in levels]
        frames = resources.enter_context(original_frames(run, clip))
        source = resources.enter_context(SourceWriter(run, clip))
        pool = resources.enter_context(ThreadPoolExecutor(DRAWING_THREADS))

        def encode(frame_index: int) -> list[_EncodedFrame]:
            return [writer.encode(frame_index) for writer in writers]

        for frame_index, encoded in enumerate(_map_in_order(pool, encode, length)):
            frame = None if frames is None else next(frames)
            if frame is not None:
                source.write(frame)
            for writer, encoded_frame in zip(writers, encoded, strict=True):
                writer.write(encoded_frame, frame)
            written = frame_index + 1
            run.on_progress(Stage.masks, length // 2 + written * (length - length // 2) // length, length)
    if Format.png in run.params.format:
        for level in levels:
            _zip_masks(run.level_folder(level.assignment.level.tau), run.video_name)


@dataclass(frozen=True)
class _EncodedFrame:
    pts_s: float
    source_frame: int | None
    counts: dict[int, str]
    label_map: NDArray[np.uint16]


class _LevelWriter:
    """The files of one level: `encode` runs in any thread, `write` in the order of frames."""

    def __init__(self, run: SegmentationRun, clip: Clip, level: LevelMasks) -> None:
        self._level, self._pts_s = level, clip.pts_s.tolist()
        self._source_frames = clip.source_frames
        folder = run.level_folder(level.assignment.level.tau)
        self._png_folder = folder / "masks" if Format.png in run.params.format else None
        (self._png_folder or folder).mkdir(parents=True)
        self._files = ExitStack()
        self._rle = self._files.enter_context(RleWriter(folder / "rle.json", clip.video_size))
        self._overlay: VideoWriter | None = None
        if Format.overlay in run.params.format:
            overlay = VideoWriter(
                folder / "overlay.mp4", clip.video_size, clip.pts_s, H264.with_options(**OVERLAY_ENCODER)
            )
            self._overlay = self._files.enter_context(overlay)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def encode(self, frame_index: int) -> _EncodedFrame:
        runs = self._level.frame(frame_index)
        label_map = runs.label_map()
        if self._png_folder is not None:
            path = self._png_folder / f"{frame_index:05d}.png"
            write_png(path, label_map, objects=len(self._level.decision.objects))
        number = None if self._source_frames is None else self._source_frames[frame_index]
        return _EncodedFrame(self._pts_s[frame_index], number, runs.counts(), label_map)

    def write(self, encoded: _EncodedFrame, frame: NDArray[np.uint8] | None) -> None:
        self._rle.write(encoded.pts_s, encoded.counts, encoded.source_frame)
        if self._overlay is not None and frame is not None:
            self._overlay.write(blend(frame, encoded.label_map))


def write_clustering_rounds(run: SegmentationRun, clip: Clip, levels: list[LevelMasks]) -> None:
    """Write `rounds.json` of all levels, and the label maps of every round if `extras.rounds` is set."""
    for level in levels:
        assignment = level.assignment
        folder = run.level_folder(assignment.level.tau)
        write_rounds(folder / "rounds.json", assignment.level.rounds[0].parents.reshape(assignment.labels.shape))
        if run.extras.rounds:
            _draw_rounds(folder / "rounds", assignment, clip.video_size)


def write_tokens(path: Path, assignments: list[Assignment], motion: NDArray[np.float32] | None) -> None:
    """Write the cluster of every token as `labels`, (levels, T, h, w), and the motion energy as `motion`, (T, h, w)."""
    labels = np.stack([assignment.labels for assignment in assignments])
    if motion is None:
        np.savez_compressed(path, labels=labels)
    else:
        np.savez_compressed(path, labels=labels, motion=motion)


def write_views(run: SegmentationRun, clip: Clip, assignments: list[Assignment], features: Features) -> None:
    """Write the label maps of the main object and of the foreground, `levels/<tau>/{single,multi}/00000.png …`.

    They are what `mode=single` and `mode=multi` with `background=auto` return, from the same clusters.
    """
    for assignment in assignments:
        for mode in Mode:
            params = run.params.model_copy(update={"mode": mode, "background": Background.auto})
            objects = _LevelObjects.of(replace(run, params=params), clip, assignment, features)
            folder = run.level_folder(assignment.level.tau) / mode.value
            folder.mkdir()
            for frame_index in range(len(clip.frames)):
                label_map = objects.draw(frame_index, clip, params.edges)
                write_png(folder / f"{frame_index:05d}.png", label_map, objects=len(objects.decision.objects))


@dataclass(frozen=True)
class _LevelObjects:
    """The objects of a level, before they are drawn.

    Attributes:
        decision: The objects among the clusters, or among the objects and background of `object_tokens.py`.
        distances: Distances of the tokens of each frame to these.
        grid: The patches of a frame.
    """

    decision: ObjectDecision
    distances: FrameDistances
    grid: PatchGrid

    @staticmethod
    def of(run: SegmentationRun, clip: Clip, assignment: Assignment, features: Features) -> "_LevelObjects":
        params = run.params
        labels, clusters, grid = assignment.labels, len(assignment.level.centroids), assignment.labels.shape[1:]
        scores = features.scores
        keeps_background = params.mode is Mode.multi and params.background is Background.keep
        if scores is None or keeps_background:
            decision = decide_objects(
                labels,
                clusters,
                mode=params.mode,
                background=params.background,
                min_area=params.min_area,
                distances=assignment.scores,
                motion=features.motion,
            )
            if not keeps_background:
                decision = without_whole_frame(decision)
            if scores is not None:
                decision = with_object_scores(decision, labels, scores.foreground)
            return _LevelObjects(decision, assignment.scores, PatchGrid(*grid))
        score = scores.main if params.mode is Mode.single else scores.foreground
        if params.mode is Mode.single:
            tokens = single_object(clusters, score)
        else:
            tokens = separate_objects(labels, assignment.scores, clusters, score)
            tokens = _divided(run, clip, tokens, score)
        decision = decide_objects(
            tokens.labels,
            len(tokens.is_background),
            min_area=params.min_area,
            distances=tokens.distances,
            is_background=tokens.is_background,
        )
        decision = without_whole_frame(decision)
        decision = replace(decision, background_clusters=tokens.background_clusters if decision.objects else clusters)
        decision = with_object_scores(decision, tokens.labels, score)
        return _LevelObjects(decision, tokens.distances, PatchGrid(*grid))

    def draw(self, frame_index: int, clip: Clip, edges: Edges) -> NDArray[np.uint16]:
        """The label map of a frame."""
        return draw_label_map(
            self.distances[frame_index],
            self.grid,
            size=clip.video_size,
            decision=self.decision,
            edges=edges,
            frame=clip.frames[frame_index],
        )


def _divided(run: SegmentationRun, clip: Clip, tokens: ObjectTokens, score: NDArray[np.float32]) -> ObjectTokens:
    """The instances of the objects."""
    groups = np.where(tokens.is_background[tokens.labels], -1, tokens.labels)
    length = len(clip.frames)
    instances = track_instances(
        groups, score, clip.frames, work=run.out, on_frame=lambda: run.on_progress(Stage.masks, 0, length)
    )
    return divide_into_instances(tokens, instances, score)


def _map_in_order(pool: ThreadPoolExecutor, function: Callable[[int], T], count: int) -> Iterator[T]:
    """Yield function(0), function(1), … in order, computed by the pool at most `FRAMES_AHEAD` ahead."""
    pending = deque(pool.submit(function, index) for index in range(min(FRAMES_AHEAD, count)))
    for index in range(count):
        result = pending.popleft().result()
        if index + FRAMES_AHEAD < count:
            pending.append(pool.submit(function, index + FRAMES_AHEAD))
        yield result


def _draw_rounds(folder: Path, assignment: Assignment, size: tuple[int, int]) -> None:
    """The hierarchy of Fig. 1: groups after each round as patches at the size of the video; ids are group + 1."""
    shape = assignment.labels.shape
    groups = np.arange(assignment.labels.size)
    for number, clustering_round in enumerate(assignment.level.rounds):
        groups = clustering_round.parents[groups]
        round_folder = folder / str(number)
        round_folder.mkdir(parents=True)
        count = int(groups.max()) + 1
        for frame_index, frame in enumerate(groups.reshape(shape)):
            write_png(round_folder / f"{frame_index:05d}.png", nearest_patch(frame, size) + 1, objects=count)


def _zip_masks(folder: Path, video_name: str) -> None:
    """All masks in one archive in the layout of DAVIS, stored without compression: PNGs are compressed already."""
    with zipfile.ZipFile(folder / "masks.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in sorted((folder / "masks").iterdir()):
            archive.writestr(zipfile.ZipInfo(f"{video_name}/{path.name}"), path.read_bytes())
