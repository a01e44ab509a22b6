"""Train `tiny`: a small ViT, without labels, on videos and generated scenes.

What is trained is what segments: the last layer's own queries and keys, and all before them.
"""

import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from worker.models.backbone import create_vit
from worker.training.frame_store import Pack
from worker.training.grouping import group_shares, grouping_loss
from worker.training.pseudo_labels import Fate
from worker.training.samples import Samples

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ASKED = 256  # tokens of a sample whose attention is trained in one step: a quarter of those of two frames of 128x256
MEMORY = 0.99  # of the running mean of the weights that is kept: the last steps are noisy at this batch size


@dataclass(frozen=True)
class Schedule:
    """How long and on what.

    Attributes:
        steps: Updates in all.
        batch: Pairs of frames a step.
        size: (H, W) of a frame in pixels.
        rate: Highest learning rate.
        warm_up: Steps until it is reached; then half a cosine down to a hundredth.
        decay: AdamW's weight decay.
        seed: Of the start and of every sample.
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
    """The last layer's queries and keys, with gradients; `worker.models.backbone` gives the same without.

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


def start_from_pictures(vit: Any, seed: int) -> None:
    """Begin where patches are compared by colour, coarse structure and place instead of by chance.

    The patch embedding is a cosine transform with its frequencies whitened, positions are sines, and the last
    layer's q and k start equal, so that attention is a similarity (Trockman and Kolter, "Mimetic Initialization
    of Self-Attention Layers", arXiv:2305.09828, for the latter). Not compared with a random start.
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


def train_backbone(
    pack: Pack,
    fate: Fate,
    options: dict[str, Any],
    schedule: Schedule,
    folder: Path,
    *,
    begin_with: dict[str, Tensor] | None = None,
    save_every: int = 250,
    workers: int = 1,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> Path:
    """Train, or go on where `folder` left off.

    Args:
        pack: Real frames.
        fate: Their labels and cut-outs.
        options: What timm's `VisionTransformer` is made with.
        schedule: How long and on what.
        folder: For `checkpoint.pt`, `loss.csv` and `weights.safetensors`.
        begin_with: Weights to go on from; default: `start_from_pictures`.
        save_every: Steps between checkpoints.
        workers: Processes that make samples; 0: this one.
        device: For the ViT.
        on_step: Told the steps done and the loss.

    Returns:
        The weights' file: the running mean, float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(schedule.seed)
    vit: Any = create_vit("VisionTransformer", options).train().requires_grad_(True)
    if begin_with is None:
        start_from_pictures(vit, schedule.seed)
    else:
        vit.load_state_dict(begin_with)
    vit.to(device)
    mean = {name: value.detach().clone() for name, value in vit.state_dict().items()}
    optimizer = torch.optim.AdamW(vit.parameters(), lr=schedule.rate, weight_decay=schedule.decay, betas=(0.9, 0.98))
    step, seconds = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True, map_location=device)
        if kept["schedule"] != _plain(schedule):
            raise ValueError(f"{checkpoint} was made with another schedule: {kept['schedule']}")
        vit.load_state_dict(kept["vit"])
        optimizer.load_state_dict(kept["optimizer"])
        mean, step, seconds = kept["mean"], kept["step"], kept["seconds"]
    samples = Samples(
        pack,
        fate,
        size=schedule.size,
        seed=schedule.seed,
        start=step * schedule.batch,
        count=(schedule.steps - step) * schedule.batch,
    )
    loader = DataLoader(samples, batch_size=schedule.batch, num_workers=workers)
    patch = int(vit.patch_embed.patch_size[0])
    chance = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
    began = time.monotonic() - seconds
    with (folder / "loss.csv").open("a", newline="") as file:
        losses = csv.writer(file)
        if step == 0:
            losses.writerow(["step", "loss", "seconds"])
        for frames, labels, whole in loader:
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(step)
            with torch.autocast(device, torch.bfloat16):
                queries, keys = project(vit, frames.flatten(0, 1).to(device))
                queries, keys = (part.reshape(len(frames), -1, *part.shape[2:]) for part in (queries, keys))
                shares = group_shares(labels.to(device), patch)
                some = torch.randperm(shares.shape[1], generator=chance)[:ASKED]
                loss = grouping_loss(queries[:, some], keys, shares[:, some], shares, whole.to(device))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(vit.parameters(), 1.0)
            optimizer.step()
            step += 1
            kept_share = min(MEMORY, step / (step + 10))
            with torch.no_grad():
                for name, value in vit.state_dict().items():
                    mean[name].lerp_(value, 1 - kept_share)
            losses.writerow([step, f"{loss.item():.5f}", f"{time.monotonic() - began:.1f}"])
            if on_step is not None:
                on_step(step, loss.item())
            if step % save_every == 0 or step == schedule.steps:
                file.flush()
                state = {
                    "vit": vit.state_dict(),
                    "mean": mean,
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "seconds": time.monotonic() - began,
                    "schedule": _plain(schedule),
                }
                torch.save(state, folder / "checkpoint.new")
                (folder / "checkpoint.new").replace(checkpoint)
                _save_weights(folder / "weights.safetensors", mean, schedule, step)
    return folder / "weights.safetensors"


def _plain(schedule: Schedule) -> dict[str, Any]:
    return {**asdict(schedule), "size": list(schedule.size)}


def _save_weights(path: Path, mean: dict[str, Tensor], schedule: Schedule, step: int) -> None:
    tensors = {name: value.half().cpu().contiguous() for name, value in mean.items()}
    metadata = {"format": "pt", "made by": "uvos-worker train backbone", "seed": str(schedule.seed), "steps": str(step)}
    save_file(tensors, path, metadata)


def _sines(like: Tensor, first: int, prefix: int, grid: tuple[int, int]) -> Tensor:
    """Positions as sines of growing frequency in the channels from `first` on; nothing in the others."""
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
