"""The stages in order, on clips whose masks are known, with a stub backbone."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.videos import Shape, make_scene, write_video
from tests.worker.jobs.stub import ColorBackbone, stub_model
from uvos.contract import Clustering, JobParams, Manifest, Motion, Stage
from uvos.errors import OutOfMemoryBudget, TooSmall, UnreadableVideo
from worker.pipeline import Budget, Extras, segment
from worker.video.decoder_process import DecoderLost, DecoderProcess

SCENE = make_scene([Shape("square", 32, (48, 40), (0, 4)), Shape("square", 32, (48, 104))], frames=6, texture=4)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", SCENE.frames)


def run(video: Path, out: Path, *, budget: Budget | None = None, **params: Any) -> Manifest:
    chosen = {"model": "stub", "tau": [1.0], "motion": Motion.off, "key_ratio": 0.5} | params
    out.mkdir()
    return segment(
        video,
        JobParams.model_validate(chosen),
        stub_model(),
        out,
        budget=budget or Budget(),
        extras=Extras(tokens=True, rounds=True),
    )


def masks(out: Path, level: str = "1") -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((out / "levels" / level / "masks").iterdir())])


def test_objects_are_found_where_they_are(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out")
    found = masks(tmp_path / "out")
    assert found.shape == SCENE.labels.shape
    assert len(manifest.levels[0].objects) >= 2
    for shape in (1, 2):
        true = SCENE.labels == shape
        overlaps = [(true & (found == i)).sum() / (true | (found == i)).sum() for i in range(1, found.max() + 1)]
        assert max(overlaps) > 0.8


def test_each_level_equals_a_run_of_its_own(video: Path, tmp_path: Path) -> None:
    together = run(video, tmp_path / "both", tau=[0.3, 3.0])
    for index, tau in enumerate((0.3, 3.0)):
        alone = run(video, tmp_path / f"only-{tau:g}", tau=[tau])
        np.testing.assert_array_equal(
            masks(tmp_path / "both", f"{tau:g}"), masks(tmp_path / f"only-{tau:g}", f"{tau:g}")
        )
        assert together.levels[index].objects == alone.levels[0].objects
        assert together.levels[index].rounds == alone.levels[0].rounds


def test_tokens_are_written_before_background_is_told_apart(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out", tau=[0.3, 1.0])
    labels = np.load(tmp_path / "out" / "tokens.npz")["labels"]
    assert labels.dtype == np.int32
    assert labels.shape == (2, 6, 12, 16)
    assert [
        set(np.unique(one)) <= set(range(level.clusters)) for one, level in zip(labels, manifest.levels, strict=True)
    ]


def test_rounds_lead_from_tokens_to_the_clusters(video: Path, tmp_path: Path) -> None:
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
    for before, after, each in zip(drawn, drawn[1:], level.rounds[1:], strict=False):
        np.testing.assert_array_equal(after, 1 + np.array(each.parents)[before.astype(int) - 1])


def test_the_windowed_procedure_runs_too(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out", clustering=Clustering.windowed)
    assert manifest.levels[0].objects


def test_fewer_key_tokens_than_asked_for_are_a_warning_with_both_numbers(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out", key_ratio=1.0, budget=Budget(max_key_tokens=400))
    assert manifest.key_frames == [0, 3]
    assert len(manifest.warnings) == 1
    assert "6 key frames" in manifest.warnings[0]
    assert "400" in manifest.warnings[0]


def test_clusters_beyond_the_memory_budget_fail_with_both_numbers(video: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryBudget) as failure:
        run(video, tmp_path / "out", tau=[1e-6], budget=Budget(memory_bytes=100_000))
    assert isinstance(failure.value.actual, int)
    assert isinstance(failure.value.limit, int)
    assert failure.value.actual > failure.value.limit


def test_a_video_smaller_than_two_patches(tmp_path: Path) -> None:
    video = write_video(tmp_path / "dot.mp4", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(TooSmall):
        run(video, tmp_path / "out")


def test_a_single_frame(tmp_path: Path) -> None:
    video = write_video(tmp_path / "one.mp4", SCENE.frames[:1])
    manifest = run(video, tmp_path / "out", key_ratio=0.1, motion=Motion.on)
    assert (manifest.key_frames, manifest.video.fps) == ([0], None)
    assert len(masks(tmp_path / "out")) == 1


def test_a_folder_of_frames(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(SCENE.frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.png")
    manifest = run(folder, tmp_path / "out", format=["png", "overlay"])
    assert manifest.video.frame_count == 6
    assert (tmp_path / "out" / "levels" / "1" / "overlay.mp4").stat().st_size > 0


def test_every_stage_reports_its_frames_and_what_it_raises_ends_the_job(video: Path, tmp_path: Path) -> None:
    seen: dict[Stage, tuple[int, int | None]] = {}

    class Enough(Exception):
        pass

    def tell(stage: Stage, done: int, total: int | None) -> None:
        seen[stage] = (done, total)

    def stop(stage: Stage, *_: object) -> None:
        if stage is Stage.clustering:
            raise Enough

    params = JobParams(model="stub", tau=[1.0], motion=Motion.off)
    for name, on_progress in (("whole", tell), ("stopped", stop)):
        (tmp_path / name).mkdir()
        try:
            segment(video, params, stub_model(), tmp_path / name, budget=Budget(), on_progress=on_progress)
        except Enough:
            assert name == "stopped"
    assert seen == dict.fromkeys(Stage, (6, 6))
    assert not (tmp_path / "stopped" / "manifest.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_makes_no_difference_how_many_frames_are_projected_while_others_are_decoded(
    video: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ColorBackbone, "batch_size", lambda *_: 4)  # of 6 frames: two are left
    found = {}
    for name, spoken in (("none", lambda _: True), ("most", lambda _: False)):
        monkeypatch.setattr(DecoderProcess, "has_output", spoken)
        (tmp_path / name).mkdir()
        told: list[int] = []
        params = JobParams(model="stub", tau=[0.3], motion=Motion.off, key_ratio=0.5)
        segment(
            video,
            params,
            replace(stub_model(), dtype=dtype),
            tmp_path / name,
            budget=Budget(),
            on_progress=lambda stage, done, _, told=told: told.append(done) if stage is Stage.features else None,
        )
        found[name] = masks(tmp_path / name, "0.3")
        assert told[0] == {"none": 0, "most": 4}[name]
        assert not list((tmp_path / name).glob("*.spool"))
    np.testing.assert_array_equal(found["none"], found["most"])


def test_a_decoder_that_is_lost_takes_its_frames_with_it(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [DecoderLost(UnreadableVideo("stuck"))]
    next_frame = DecoderProcess.next_frame

    def lose_once(self: DecoderProcess) -> float | None:
        if self.frames == 4 and left:
            raise left.pop()
        return next_frame(self)

    run(video, tmp_path / "whole")
    monkeypatch.setattr(DecoderProcess, "has_output", lambda _: False)
    monkeypatch.setattr(DecoderProcess, "next_frame", lose_once)
    run(video, tmp_path / "lost")
    assert not left
    np.testing.assert_array_equal(masks(tmp_path / "lost"), masks(tmp_path / "whole"))


def test_masks_are_drawn_and_encoded_ahead_while_the_frame_before_is_written(video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "levels" / "1" / "masks"
    folder.parents[2].mkdir()
    ahead: list[bool] = []

    def wait_for_the_last_frame(stage: Stage, done: int, _: int | None) -> None:
        if (stage, done) == (Stage.masks, 1):  # the thread that writes overlay and RLE stands still in here
            deadline = time.monotonic() + 60
            while not (folder / "00005.png").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            ahead.append((folder / "00005.png").exists())

    params = JobParams.model_validate({"model": "stub", "tau": [1.0], "motion": "off", "format": ["png", "overlay"]})
    segment(video, params, stub_model(), tmp_path / "out", budget=Budget(), on_progress=wait_for_the_last_frame)
    assert ahead == [True]


def test_the_manifest_on_disk_is_the_one_returned(video: Path, tmp_path: Path) -> None:
    manifest = run(video, tmp_path / "out")
    assert Manifest.model_validate_json((tmp_path / "out" / "manifest.json").read_bytes()) == manifest
    assert json.loads((tmp_path / "out" / "levels" / "1" / "rle.json").read_bytes())["size"] == [96, 128]
    for name in manifest.levels[0].files:
        assert (tmp_path / "out" / name).is_file()
    leftovers = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json", "levels", "tokens.npz"}
    assert not leftovers
