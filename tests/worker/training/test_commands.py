"""The commands of `uvos-worker train`: from videos to weights and loss curves."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.videos import write_video
from uvos.models import find_model
from worker.evaluation.datasets import DatasetName, open_dataset
from worker.models.backbone import create_vit
from worker.models.weights import load_into, read_weights
from worker.training.commands import app
from worker.training.curves import draw_curves
from worker.training.scenes.scene import draw_scene


@pytest.fixture(scope="module")
def frames_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    scene = draw_scene(np.random.default_rng(910_000), frames=8, size=(64, 128), objects=2)
    write_video(folder / "clip.mp4", scene.frames, fps=10)
    done = CliRunner().invoke(
        app, ["frames", "--videos", str(folder), "--out", str(folder / "frames.store"), "--size", "64x128"]
    )
    assert done.exit_code == 0, done.output
    return folder / "frames.store"


def test_a_backbone_is_trained_and_fits_tiny(frames_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    done = CliRunner().invoke(
        app,
        [
            "backbone",
            "--frames",
            str(frames_file),
            "--out",
            str(out),
            "--steps",
            "2",
            "--batch",
            "1",
            "--size",
            "32x64",
        ],
    )
    assert done.exit_code == 0, done.output
    entry = find_model("tiny")
    load_into(create_vit(entry.timm_id, entry.timm_options), read_weights(out).vit)
    assert (tmp_path / "weights.work" / "loss.png").read_bytes()[1:4] == b"PNG"


def test_tiny_is_distilled_from_a_model(frames_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    command = ["distill", "--frames", str(frames_file), "--out", str(out), "--teacher", "tiny", "--size", "32x64",
               "--crops", "3", "--scenes", "2", "--steps", "2", "--batch", "2", "--threads", "1"]  # fmt: skip
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    weights = read_weights(out)
    assert weights.metadata["version"] == "distilled from tiny, seed 0, 2 steps"
    entry = find_model("tiny")
    load_into(create_vit(entry.timm_id, entry.timm_options), weights.vit)
    assert np.load(tmp_path / "weights.work" / "keys.npy", mmap_mode="r").shape == (5, 4, 8, 192)
    assert len((tmp_path / "weights.work" / "loss.csv").read_text().splitlines()) == 3


def test_a_block_is_trained_behind_tiny(frames_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "block.safetensors"
    done = CliRunner().invoke(
        app,
        ["block", "--frames", str(frames_file), "--out", str(out), "--model", "tiny", "--steps", "2", "--batch", "1",
         "--device", "cpu"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    block = read_weights(out).block
    assert block is not None
    assert block.backbone == "tiny"
    assert (tmp_path / "block.work" / "loss.csv").exists()


def test_scenes_are_labelled_clips_outside_the_training_samples(tmp_path: Path) -> None:
    command = ["scenes", "--count", "2", "--frames", "3", "--size", "64x96", "--objects", "2", "--out"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "scenes")])
    assert done.exit_code == 0, done.output
    found = open_dataset(DatasetName.clips, tmp_path / "scenes")
    assert [sequence.name for sequence in found] == ["scene-00", "scene-01"]
    for number, sequence in enumerate(found):
        drawn = draw_scene(np.random.default_rng((0, number, 1)), frames=3, size=(64, 96), objects=2)
        np.testing.assert_array_equal(sequence.truth(), drawn.labels)
        trained = draw_scene(np.random.default_rng((0, number)), frames=3, size=(64, 96), objects=2)
        assert not np.array_equal(trained.frames, drawn.frames)

    again = CliRunner().invoke(app, [*command, str(tmp_path / "scenes")])
    assert again.exit_code == 1
    assert "is not empty" in again.output


def test_a_folder_without_videos_is_one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["frames", "--videos", str(tmp_path), "--out", str(tmp_path / "frames.store")])
    assert done.exit_code == 1
    assert "no video found" in done.output


def test_too_few_steps_give_no_curve(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("step,loss,seconds\n1,2.0,0.1\n")
    with pytest.raises(ValueError, match="1 steps; a curve needs at least 2"):
        draw_curves(tmp_path / "loss.csv", tmp_path / "loss.png")
