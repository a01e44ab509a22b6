"""Train `tiny` without a teacher: group the tokens of videos and generated scenes by their labels.

The loss acts on the queries and keys of the last layer, which are what the method compares.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from worker.training.frame_store import FrameStore
from worker.training.grouping import group_shares, grouping_loss
from worker.training.pseudo_labels import PseudoLabels
from worker.training.run import SaveClock, TrainingRun
from worker.training.samples import Samples
from worker.training.vit import Loss, VitTraining, project

QUERIES_PER_STEP = 256  # query tokens of a sample in one step: a quarter of the tokens of two frames of 128x256


def train_backbone(training: VitTraining, store: FrameStore, pseudo_labels: PseudoLabels, run: TrainingRun) -> Path:
    """Train to the end of the schedule.

    Args:
        training: A new or resumed run.
        store: Real frames.
        pseudo_labels: Labels and cut-outs of these frames.
        run: Where and when to save.

    Returns:
        The weights' file: the running mean, float16.

    Raises:
        TrainingStopped: SIGTERM ended the run; the state was saved.
    """
    schedule = training.schedule
    samples = Samples(
        store,
        pseudo_labels,
        size=schedule.size,
        seed=schedule.seed,
        start=training.step * schedule.batch,
        count=(schedule.steps - training.step) * schedule.batch,
    )
    loader = DataLoader(samples, batch_size=schedule.batch, num_workers=run.workers)
    clock = SaveClock(run, schedule.steps)
    return training.finish(_losses(training, loader, clock), run, clock)


def _losses(
    training: VitTraining, loader: "DataLoader[tuple[Tensor, Tensor, Tensor]]", clock: SaveClock
) -> Iterator[Loss]:
    for frames, labels, is_ground_whole in _until_stopped(loader, clock):
        yield partial(
            _loss,
            frames=frames.to(training.device),
            labels=labels.to(training.device),
            is_ground_whole=is_ground_whole.to(training.device),
            # The choice of queries depends on the step alone, so that a resumed run repeats it.
            generator=torch.Generator().manual_seed(training.schedule.seed * 1_000_003 + training.step),
        )


def _loss(vit: Any, *, frames: Tensor, labels: Tensor, is_ground_whole: Tensor, generator: torch.Generator) -> Tensor:
    queries, keys = project(vit, frames.flatten(0, 1))
    queries, keys = (part.reshape(len(frames), -1, *part.shape[2:]) for part in (queries, keys))
    shares = group_shares(labels, int(vit.patch_embed.patch_size[0]))
    chosen = torch.randperm(shares.shape[1], generator=generator)[:QUERIES_PER_STEP]
    return grouping_loss(queries[:, chosen], keys, shares[:, chosen], shares, is_ground_whole)


def _until_stopped(loader: "DataLoader[tuple[Tensor, Tensor, Tensor]]", clock: SaveClock) -> Iterator[list[Tensor]]:
    """The batches of a loader until SIGTERM requests a stop.

    A service manager signals all processes of a run, so the sample process may end first: that is a stop, too.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError:
            if not clock.stop_requested:
                raise
            return
        yield batch
