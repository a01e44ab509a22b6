"""A training run saves by steps, by time and on SIGTERM, and continues from there."""

import os
import signal
from pathlib import Path

import pytest
import torch

from worker.models.backbone import Backbone, create_vit
from worker.models.weights import Preprocessing, read_weights
from worker.training.block import BlockSchedule, train_block
from worker.training.frame_store import FrameStore
from worker.training.run import SaveClock, TrainingRun, TrainingStopped

SCHEDULE = BlockSchedule(steps=8, batch=1, rate=1e-3)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    options = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2}
    return Backbone(
        create_vit("VisionTransformer", options), preprocessing=Preprocessing((0.485, 0.456, 0.406), (0.2, 0.2, 0.2))
    )


def saved_step(folder: Path) -> int:
    return int(torch.load(folder / "checkpoint.pt", weights_only=True)["step"])


def test_a_checkpoint_is_written_after_the_interval_although_few_steps_were_taken(
    store: FrameStore, backbone: Backbone, tmp_path: Path
) -> None:
    saved: list[bool] = []
    run = TrainingRun(
        tmp_path,
        save_every=1000,
        save_every_s=0.0,
        on_step=lambda *_: saved.append((tmp_path / "checkpoint.pt").exists()),
    )
    train_block(store, backbone, "tiny", BlockSchedule(steps=3, batch=1), run)
    assert saved == [False, True, True]


def test_without_an_interval_only_the_last_step_is_saved(tmp_path: Path) -> None:
    clock = SaveClock(TrainingRun(tmp_path, save_every=1000, save_every_s=1e9), last_step=8)
    assert [clock.is_due(step) for step in range(1, 9)] == [False] * 7 + [True]


def test_sigterm_saves_and_the_run_resumes_from_there(store: FrameStore, backbone: Backbone, tmp_path: Path) -> None:
    def terminate_at_3(step: int, _loss: float) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped, match="step 3"):
        train_block(store, backbone, "tiny", SCHEDULE, TrainingRun(tmp_path / "parts", on_step=terminate_at_3))
    assert signal.getsignal(signal.SIGTERM) == before
    assert saved_step(tmp_path / "parts") == 3
    resumed: list[int] = []
    run = TrainingRun(tmp_path / "parts", on_step=lambda step, _: resumed.append(step))
    parts = train_block(store, backbone, "tiny", SCHEDULE, run)
    whole = train_block(store, backbone, "tiny", SCHEDULE, TrainingRun(tmp_path / "whole"))
    assert resumed == [4, 5, 6, 7, 8]
    expected, found = read_weights(whole).block, read_weights(parts).block
    assert expected is not None
    assert found is not None
    assert torch.equal(expected.qk, found.qk)
