"""A ViT in training: initial weights, the last layer's queries and keys with gradients, updates, checkpoints."""

import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from worker.models.backbone import create_vit
from worker.training.run import SaveClock, TrainingRun, TrainingStopped, stop_on_sigterm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MEAN_MOMENTUM = 0.99  # of the running mean of the weights: single steps are noisy at this batch size

Loss = Callable[[Any], Tensor]
"""The loss of one step, a scalar, as a function of the ViT."""


@dataclass(frozen=True)
class Schedule:
    """Length, batch and learning rate of a run.

    Attributes:
        steps: Number of updates.
        batch: Samples per step: pairs of frames for grouping, frames for distillation.
        size: (H, W) of a frame in pixels.
        rate: Highest learning rate.
        warm_up: Steps of linear warm-up; half a cosine down to a hundredth follows.
        decay: AdamW's weight decay.
        seed: Of the initial weights and of every sample.
    """

    steps: int = 3000
    batch: int = 8
    size: tuple[int, int] = (128, 256)
    rate: float = 1e-3
    warm_up: int = 40
    decay: float = 0.05
    seed: int = 0

    def rate_at(self, step: int) -> float:
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def project(vit: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The last layer's queries and keys, with gradients; `Backbone.project` gives the same values without.

    Args:
        vit: timm's `VisionTransformer`.
        frames: RGB, uint8, shape (B, H, W, 3).

    Returns:
        Queries and keys, shape (B, N, heads, d) each.
    """
    mean, std = torch.tensor(MEAN, device=frames.device), torch.tensor(STD, device=frames.device)
    pixels = ((frames.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
    for layer in vit.blocks[:-1]:
        x = layer(x)
    last = vit.blocks[-1]
    x = last.norm1(x[:, vit.num_prefix_tokens :])
    rows = 2 * x.shape[-1]
    qk = nn.functional.linear(x, last.attn.qkv.weight[:rows], last.attn.qkv.bias[:rows])
    parts = qk.reshape(*x.shape[:2], 2, last.attn.num_heads, -1)
    return parts[:, :, 0], parts[:, :, 1]


def initialize_from_image_statistics(vit: Any, seed: int) -> None:
    """Initialize so that attention compares patches by colour, coarse structure and position.

    The patch embedding is a cosine transform with whitened frequencies, position embeddings are sines, and the
    queries of each layer equal its keys, so that attention is a similarity (the last after Trockman and Kolter,
    "Mimetic Initialization of Self-Attention Layers", arXiv:2305.09828). Not compared with a random initialization.
    """
    generator = torch.Generator().manual_seed(seed)
    dim, patch = vit.embed_dim, vit.patch_embed.patch_size[0]
    n = torch.arange(patch)
    cosines = torch.cos(torch.pi * (n[None] + 0.5) * n[:, None] / patch) * (2 / patch) ** 0.5
    cosines[0] /= 2**0.5
    opponent = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])
    opponent = opponent / opponent.norm(dim=1, keepdim=True) * torch.tensor([1.0, 2.5, 2.5])[:, None]
    rows = []
    for u in range(patch):
        for v in range(patch):
            for colour, axis in enumerate(opponent):
                order = math.hypot(u, v) + 1.5 * (colour > 0)
                gain = (1 + math.hypot(u, v)) / patch
                rows.append((order, gain * axis[:, None, None] * cosines[u][:, None] * cosines[v][None]))
    rows.sort(key=lambda row: row[0])
    seen = dim * 2 // 3
    with torch.no_grad():
        weight = vit.patch_embed.proj.weight
        weight.zero_()
        weight[:seen] = torch.stack([row for _, row in rows[:seen]])
        vit.patch_embed.proj.bias.zero_()
        vit.pos_embed.copy_(_sines(vit.pos_embed, seen, vit.num_prefix_tokens, vit.patch_embed.grid_size))
        for layer in vit.blocks:
            q = torch.randn(dim, dim, generator=generator) * dim**-0.5
            layer.attn.qkv.weight[:dim] = q
            layer.attn.qkv.weight[dim : 2 * dim] = q
            layer.attn.qkv.bias.zero_()
            layer.attn.proj.weight.mul_(0.3)
            layer.mlp.fc2.weight.mul_(0.3)
        vit.blocks[-1].attn.qkv.weight[: 2 * dim].mul_(0.6)


class VitTraining:
    """The ViT, its optimizer and the running mean of its weights."""

    def __init__(self, vit: Any, schedule: Schedule, *, device: str, mixed: bool) -> None:
        self.vit = vit.to(device)
        self.schedule = schedule
        self.device = device
        self.mixed = mixed
        self.mean = {name: value.detach().clone() for name, value in vit.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            vit.parameters(), lr=schedule.rate, weight_decay=schedule.decay, betas=(0.9, 0.98)
        )
        self.step = 0
        self._began = time.monotonic()

    @classmethod
    def begin(
        cls,
        options: dict[str, Any],
        schedule: Schedule,
        run: TrainingRun,
        *,
        begin_with: dict[str, Tensor] | None = None,
        device: str = "cpu",
        mixed: bool = False,
    ) -> "VitTraining":
        """A new run, or the one that the folder holds.

        Args:
            options: Options of timm's `VisionTransformer`.
            schedule: Length, batch and rate.
            run: Its folder may hold a checkpoint.
            begin_with: Initial weights; default: `initialize_from_image_statistics`.
            device: Device of the ViT.
            mixed: Whether products are computed in bfloat16.

        Raises:
            ValueError: The folder holds a run with another schedule.
        """
        run.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(schedule.seed)
        vit: Any = create_vit("VisionTransformer", options).train().requires_grad_(True)
        if begin_with is None:
            initialize_from_image_statistics(vit, schedule.seed)
        else:
            vit.load_state_dict(begin_with)
        training = cls(vit, schedule, device=device, mixed=mixed)
        state = run.load(_plain(schedule), device)
        if state is not None:
            training.vit.load_state_dict(state["vit"])
            training.optimizer.load_state_dict(state["optimizer"])
            training.mean, training.step = state["mean"], state["step"]
            training._began -= state["seconds"]
        return training

    @property
    def elapsed_s(self) -> float:
        """Training time, earlier parts of a resumed run included."""
        return time.monotonic() - self._began

    def finish(self, losses: Iterator[Loss], run: TrainingRun, clock: SaveClock) -> Path:
        """Take one step per loss until the end of the schedule.

        Args:
            losses: Losses of the steps that are left; may end early once the clock requests a stop.
            run: Where and when to save; the folder receives `checkpoint.pt`, `loss.csv` and `weights.safetensors`.
            clock: Decides when to save.

        Returns:
            The weights' file: the running mean, float16.

        Raises:
            TrainingStopped: SIGTERM ended the run; the state was saved.
        """
        with (run.folder / "loss.csv").open("a", newline="") as file, stop_on_sigterm(clock):
            rows = csv.writer(file)
            if self.step == 0:
                rows.writerow(["step", "loss", "seconds"])
            for loss_of in losses:
                loss = self._take_step(loss_of)
                rows.writerow([self.step, f"{loss:.5f}", f"{self.elapsed_s:.1f}"])
                run.on_step(self.step, loss)
                if clock.is_due(self.step):
                    file.flush()
                    self._save(run)
                if clock.stop_requested:
                    break
            if self.step < self.schedule.steps:
                self._save(run)
                raise TrainingStopped(self.step)
        return run.folder / "weights.safetensors"

    def _take_step(self, loss_of: Loss) -> float:
        """One update; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(self.step)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.mixed):
            loss = loss_of(self.vit)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.vit.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        momentum = min(MEAN_MOMENTUM, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.vit.state_dict().items():
                self.mean[name].lerp_(value, 1 - momentum)
        return float(loss.item())

    def _save(self, run: TrainingRun) -> None:
        """Write the checkpoint and the weights so far."""
        run.save(
            {
                "vit": self.vit.state_dict(),
                "mean": self.mean,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.elapsed_s,
                "schedule": _plain(self.schedule),
            }
        )
        tensors = {name: value.half().cpu().contiguous() for name, value in self.mean.items()}
        metadata = {"format": "pt", "seed": str(self.schedule.seed), "steps": str(self.step)}
        save_file(tensors, run.folder / "weights.safetensors", metadata)


def _plain(schedule: Schedule) -> dict[str, Any]:
    return {**asdict(schedule), "size": list(schedule.size)}


def _sines(like: Tensor, first: int, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Position embeddings: sines of rising frequency in the channels from `first` on, zeros in the others."""
    positions = torch.zeros_like(like)
    channels = like.shape[-1] - first
    waves = channels // 4
    frequency = 0.5 * 2 ** (torch.arange(waves) / max(1, waves - 1) * 3)  # half a wave to four over the frame
    rows = (torch.arange(grid[0]) + 0.5) / grid[0]
    columns = (torch.arange(grid[1]) + 0.5) / grid[1]
    down = (2 * torch.pi * rows[:, None] * frequency)[:, None].expand(-1, grid[1], -1)
    across = (2 * torch.pi * columns[:, None] * frequency)[None].expand(grid[0], -1, -1)
    amplitude = 0.5 / (1 + torch.arange(waves) * 0.5)
    waves_of = torch.cat([part * amplitude for part in (down.sin(), down.cos(), across.sin(), across.cos())], -1)
    positions[:, prefix:, first : first + 4 * waves] = waves_of.reshape(1, -1, 4 * waves)
    return positions
