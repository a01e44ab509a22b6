"""The whole pipeline on clips with known masks, with a stub backbone."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.videos import Shape, make_scene, write_video
from tests.worker.jobs.stub import ColorBackbone, stub_model
from uvos.contract import Clustering, JobParams, Manifest, Motion, Stage
from uvos.errors import OutOfMemoryBudget, TooSmall, UnreadableVideo
from worker.method.edges import draw_label_map
from worker.outputs import drawing
from worker.pipeline import preview_frames, segment
from worker.run import Budget, Extras, OnProgress, SegmentationRun, ignore_progress
from worker.video.decoder_process import DecoderLost, DecoderProcess

SCENE = make_scene([Shape("square", 32, (48, 40), (0, 4)), Shape("square", 32, (48, 104))], frames=6, texture=4)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", SCENE.frames)


def test_a_preview_of_a_few_frames_comes_before_the_result(tmp_path: Path) -> None:
    scene = make_scene([Shape("square", 32, (48, 40), (0, 1))], frames=40, texture=4)
    video = write_video(tmp_path / "clip.mp4", scene.frames)
    stages: list[Stage] = []
    pictures: list[tuple[Stage, tuple[int, int]]] = []
    out = tmp_path / "out"

    def on_preview() -> None:
        with Image.open(out / "preview.jpg") as picture:
            pictures.append((stages[-1], picture.size))

    run(video, out, on_progress=lambda stage, *_: stages.append(stage), on_preview=on_preview)
    [(stage, (width, height))] = pictures
    assert stage is Stage.features
    assert width / height == pytest.approx(4 * 128 / (2 * 96), rel=0.1)  # four frames, and below them their objects
    assert not list(out.glob("preview-*"))
    assert preview_frames(len(SCENE.frames), torch.device("cpu")) == []  # costs too much of a short clip


def run(
    video: Path,
    out: Path,
    *,
    budget: Budget | None = None,
    on_progress: OnProgress = ignore_progress,
    dtype: str = "float32",
    on_preview: Callable[[], None] | None = None,
    **params: Any,
) -> Manifest:
    defaults = {"model": "stub", "tau": [1.0], "motion": Motion.off, "key_ratio": 0.5}
    out.mkdir()
    return segment(
        SegmentationRun(
            source=video,
            params=JobParams.model_validate(defaults | params),
            model=stub_model(dtype=dtype),
            out=out,
            budget=budget or Budget(),
            extras=Extras(tokens=True, rounds=True),
            on_progress=on_progress,
            on_preview=on_preview,
        )
    )


def masks(out: Path, level: str = "1") -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((out / "levels" / level / "masks").iterdir())])


def test_masks_match_the_ground_truth(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out")
    drawn = masks(tmp_path / "out")
    assert drawn.shape == SCENE.labels.shape
    assert len(manifest.levels[0].objects) >= 2
    for shape in (1, 2):
        true = SCENE.labels == shape
        overlaps = [(true & (drawn == i)).sum() / (true | (drawn == i)).sum() for i in range(1, drawn.max() + 1)]
        assert max(overlaps) > 0.8


def test_each_level_equals_a_separate_run(video: Path, tmp_path: Path) -> None:
    together = run(video, tmp_path / "both", tau=[0.3, 3.0])
    for index, tau in enumerate((0.3, 3.0)):
        alone = run(video, tmp_path / f"only-{tau:g}", tau=[tau])
        np.testing.assert_array_equal(
            masks(tmp_path / "both", f"{tau:g}"), masks(tmp_path / f"only-{tau:g}", f"{tau:g}")
        )
        assert together.levels[index].objects == alone.levels[0].objects
        assert together.levels[index].rounds == alone.levels[0].rounds


def test_tokens_are_written_before_background_is_separated(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out", tau=[0.3, 1.0])
    labels = np.load(tmp_path / "out" / "tokens.npz")["labels"]
    assert labels.dtype == np.int32
    assert labels.shape == (2, 6, 12, 16)
    for level_labels, level in zip(labels, manifest.levels, strict=True):
        assert np.unique(level_labels).tolist() == list(range(level.clusters))


def test_rounds_map_tokens_to_clusters(video: Path, tmp_path: Path) -> None:
    level = run(video, tmp_path / "out").levels[0]
    assert level.rounds[0].parents == []
    for before, after in zip(level.rounds, level.rounds[1:], strict=False):
        assert len(after.parents) == before.centroids
        assert set(after.parents) == set(range(after.centroids))
    assert level.rounds[-1].centroids == level.clusters


def test_the_masks_of_each_round_merge_from_round_to_round(video: Path, tmp_path: Path) -> None:
    level = run(video, tmp_path / "out", tau=[0.3]).levels[0]
    folder = tmp_path / "out" / "levels" / "0.3" / "rounds"
    drawn = [
        np.stack([np.asarray(Image.open(path)) for path in sorted((folder / str(number)).iterdir())])
        for number in range(len(level.rounds))
    ]
    assert drawn[0].shape == SCENE.labels.shape
    for before, after, clustering_round in zip(drawn, drawn[1:], level.rounds[1:], strict=False):
        np.testing.assert_array_equal(after, 1 + np.array(clustering_round.parents)[before.astype(int) - 1])


def test_the_windowed_procedure_finds_objects(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out", clustering=Clustering.windowed)
    assert manifest.levels[0].objects


def test_limited_key_frames_are_a_warning_with_both_numbers(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out", key_ratio=1.0, budget=Budget(max_key_tokens=400))
    assert manifest.key_frames == [0, 3]
    assert len(manifest.warnings) == 1
    assert "6 key frames" in manifest.warnings[0]
    assert "400" in manifest.warnings[0]


def test_exceeding_the_memory_budget_fails_with_both_numbers(video: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryBudget) as failure:
        run(video, tmp_path / "out", tau=[1e-6], budget=Budget(memory_bytes=100_000))
    assert isinstance(failure.value.actual, int)
    assert isinstance(failure.value.limit, int)
    assert failure.value.actual > failure.value.limit


def test_a_video_smaller_than_two_patches_is_refused(tmp_path: Path) -> None:
    video = write_video(tmp_path / "dot.mp4", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(TooSmall):
        run(video, tmp_path / "out")


def test_a_single_frame_is_segmented(tmp_path: Path) -> None:
    video = write_video(tmp_path / "one.mp4", SCENE.frames[:1])
    manifest = run(video, tmp_path / "out", key_ratio=0.1, motion=Motion.on)
    assert (manifest.key_frames, manifest.video.fps) == ([0], None)
    assert len(masks(tmp_path / "out")) == 1


def test_a_folder_of_frames_is_segmented(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(SCENE.frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.png")
    manifest = run(folder, tmp_path / "out", format=["png", "overlay"])
    assert manifest.video.frame_count == 6
    assert (tmp_path / "out" / "levels" / "1" / "overlay.mp4").stat().st_size > 0


def test_every_stage_reports_its_frames(video: Path, tmp_path: Path) -> None:
    last: dict[Stage, tuple[int, int | None]] = {}

    def record(stage: Stage, done: int, total: int | None) -> None:
        last[stage] = (done, total)

    run(video, tmp_path / "out", on_progress=record, motion=Motion.on)
    assert last == dict.fromkeys(Stage, (6, 6))


@pytest.mark.parametrize("stage", Stage)
def test_an_exception_of_the_progress_callback_cancels_the_run(stage: Stage, video: Path, tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def cancel(reported: Stage, *_: object) -> None:
        if reported is stage:
            raise Cancelled

    with pytest.raises(Cancelled):
        run(video, tmp_path / "out", on_progress=cancel, motion=Motion.on)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob("*.spool"))


def test_progress_is_reported_while_label_maps_are_drawn(video: Path, tmp_path: Path) -> None:
    """Drawing all frames of a long video takes longer than a cancellation may."""
    reports: list[int] = []

    def record(stage: Stage, done: int, _: int | None) -> None:
        if stage is Stage.masks:
            reports.append(done)

    run(video, tmp_path / "out", on_progress=record)
    assert reports == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_projecting_ahead_of_the_decoder_does_not_change_the_result(
    video: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ColorBackbone, "batch_size", lambda *_: 4)  # two of six frames remain
    results = {}
    for name, has_output, projected_ahead in (("none", True, 0), ("most", False, 4)):
        monkeypatch.setattr(DecoderProcess, "has_output", lambda _, value=has_output: value)
        reports: list[int] = []

        def record(stage: Stage, done: int, _: int | None, reports: list[int] = reports) -> None:
            if stage is Stage.features:
                reports.append(done)

        run(video, tmp_path / name, tau=[0.3], dtype=dtype, on_progress=record)
        results[name] = masks(tmp_path / name, "0.3")
        assert reports[0] == projected_ahead
        assert not list((tmp_path / name).glob("*.spool"))
    np.testing.assert_array_equal(results["none"], results["most"])


def test_frames_of_a_lost_decoder_are_projected_again(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [DecoderLost(UnreadableVideo("stuck"))]
    next_frame = DecoderProcess.next_frame

    def lose_once(self: DecoderProcess) -> float | None:
        if self.frames == 4 and failures:
            raise failures.pop()
        return next_frame(self)

    run(video, tmp_path / "whole")
    monkeypatch.setattr(DecoderProcess, "has_output", lambda _: False)
    monkeypatch.setattr(DecoderProcess, "next_frame", lose_once)
    run(video, tmp_path / "lost")
    assert not failures
    np.testing.assert_array_equal(masks(tmp_path / "lost"), masks(tmp_path / "whole"))


def test_masks_are_encoded_ahead_while_a_frame_is_written(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "levels" / "1" / "masks"
    is_ahead: list[bool] = []

    def wait_for_the_last_frame(stage: Stage, done: int, _: int | None) -> None:
        is_writing = stage is Stage.masks and (tmp_path / "out" / "levels").exists()
        if is_writing and done < 6 and not is_ahead:  # blocks the thread that writes overlay and RLE
            deadline = time.monotonic() + 60
            while not (folder / "00005.png").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            is_ahead.append((folder / "00005.png").exists())

    run(video, tmp_path / "out", format=["png", "overlay"], on_progress=wait_for_the_last_frame)
    assert is_ahead == [True]


def test_every_frame_is_drawn_once(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def count(*arguments: Any, **options: Any) -> Any:
        drawn.append(1)
        return draw_label_map(*arguments, **options)

    monkeypatch.setattr(drawing, "draw_label_map", count)
    run(video, tmp_path / "out", tau=[0.3, 1.0], format=["png", "overlay"])
    assert len(drawn) == 2 * 6


def test_stage_times_add_up_to_the_total(video: Path, tmp_path: Path) -> None:
    timings_s = run(video, tmp_path / "out").timings_s
    stages = [timings_s[stage] for stage in Stage if stage is not Stage.motion]
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(timings_s["total"], rel=0.1)


def test_the_manifest_on_disk_is_the_one_returned(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out")
    assert Manifest.model_validate_json((tmp_path / "out" / "manifest.json").read_bytes()) == manifest
    assert json.loads((tmp_path / "out" / "levels" / "1" / "rle.json").read_bytes())["size"] == [96, 128]
    for name in manifest.levels[0].files:
        assert (tmp_path / "out" / name).is_file()
    leftovers = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json", "levels", "tokens.npz"}
    assert not leftovers
