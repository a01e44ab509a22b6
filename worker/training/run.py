"""How a training run saves its state: by steps, by time, at the end and on SIGTERM."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

SAVE_EVERY_S = 300.0
"""On 2 cores a step of the block takes 5 s: by steps alone the first checkpoint comes after 40 minutes."""


class TrainingStopped(Exception):
    """SIGTERM ended the run after a checkpoint was written; `step` is the number of steps it holds."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped by SIGTERM at step {step}; the same command continues from there")
        self.step = step


@dataclass(frozen=True)
class TrainingRun:
    """Where a run keeps its state and when it saves and reports.

    Attributes:
        folder: Holds `checkpoint.pt`, `loss.csv` and the exported weights.
        save_every: Steps between two checkpoints.
        save_every_s: Seconds after which a checkpoint is written although fewer steps were taken.
        stop_at: Leave at this step, with a checkpoint; None: at the end of the schedule.
        workers: Processes that prepare samples; 0: the training process itself.
        on_step: Called with the number of steps done and the loss.
    """

    folder: Path
    save_every: int = 500
    save_every_s: float = SAVE_EVERY_S
    stop_at: int | None = None
    workers: int = 1
    on_step: Callable[[int, float], None] = lambda _step, _loss: None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def load(self, schedule: dict[str, Any], device: torch.device | str) -> dict[str, Any] | None:
        """The state of an interrupted run, or None where there is none.

        Raises:
            ValueError: It belongs to another schedule.
        """
        if not self.checkpoint.exists():
            return None
        state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True, map_location=device)
        if state["schedule"] != schedule:
            raise ValueError(f"{self.checkpoint} belongs to another schedule: {state['schedule']}")
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write the state; an interruption leaves the previous checkpoint intact."""
        part = self.checkpoint.with_suffix(".new")
        torch.save(state, part)
        part.replace(self.checkpoint)


class SaveClock:
    """Decides after each step whether a checkpoint is due."""

    def __init__(self, run: TrainingRun, last_step: int) -> None:
        self.stop_requested = False
        self._run = run
        self._last_step = last_step
        self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after this step; a positive answer starts the interval anew."""
        elapsed = time.monotonic() - self._saved_at
        due = step % self._run.save_every == 0 or step == self._last_step or elapsed >= self._run.save_every_s
        if due or self.stop_requested:
            self._saved_at = time.monotonic()
        return due or self.stop_requested


@contextmanager
def stop_on_sigterm(clock: SaveClock) -> Iterator[None]:
    """Let SIGTERM request a stop after the current step instead of ending the process at once."""

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        clock.stop_requested = True

    before = signal.signal(signal.SIGTERM, request_stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
