"""Train a spatio-temporal block behind a frozen backbone, as the paper does; torch, timm and NumPy alone.

Source: sections 3.2 to 3.4 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893): semantic consistency,
dynamic motion consistency and its entropy normalisation.
"""

import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from worker.models.backbone import Backbone
from worker.models.weights import BlockWeights, write_block
from worker.training.deterministic import repeatable
from worker.training.frame_store import Pack

NORM_EPS = 1e-5  # of the released block; segmenting reads it from the exported file
ATTENTION_DROPOUT = 0.4

POSITIONS = 8  # sampled in each frame
NEAREST, FARTHEST = 30, 200  # tokens of each frame, by attention, whose features are pulled and pushed
ALIKE, UNLIKE = 0.9, 0.1  # cosines beyond which neither is done any more
SAME_MOTION, OTHER_MOTION = 10, 50  # tokens of the query's own frame whose attention is compared
MARGIN = 1.0  # nats


@dataclass(frozen=True)
class BlockSchedule:
    """How long and on what.

    Attributes:
        steps: Updates in all.
        batch: Clips a step and process.
        clip_frames: Frames of a clip.
        gap: Frames from one to the next.
        rate: AdamW's learning rate; a cosine brings it to 0.
        seed: Of the start, the clips and the dropout.
    """

    steps: int = 20_000
    batch: int = 4
    clip_frames: int = 3
    gap: int = 2
    rate: float = 1e-5
    seed: int = 0

    def rate_at(self, step: int) -> float:
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class _Named(nn.Module):
    """Linear layers under a common name."""

    def __init__(self, **layers: nn.Linear) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def linear(self, name: str) -> nn.Linear:
        layer = self.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        return layer


class SpatioTemporalBlock(nn.Module):
    """One transformer block whose tokens see those of every frame; named as in the released code.

    Args:
        dim: D.
        heads: Of its attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = _Named(qkv=nn.Linear(dim, 3 * dim, bias=False), proj=nn.Linear(dim, dim))
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = _Named(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features and attention.

        Args:
            tokens: Of all frames, class tokens included, shape (B, M, D).

        Returns:
            Features, shape (B, M, D), and attention maps before dropout, mean over heads, shape (B, M, M).
        """
        batch, count, dim = tokens.shape
        qkv = self.attn.linear("qkv")(self.norm1(tokens)).reshape(batch, count, 3, self.heads, dim // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, M, d) each
        attention = torch.softmax(queries @ keys.transpose(-1, -2) * (dim // self.heads) ** -0.5, -1)
        dropped = F.dropout(attention, ATTENTION_DROPOUT, self.training)
        mixed = (dropped @ values).transpose(1, 2).reshape(batch, count, dim)
        tokens = tokens + self.attn.linear("proj")(mixed)
        hidden = F.gelu(self.mlp.linear("fc1")(self.norm2(tokens)))
        return tokens + self.mlp.linear("fc2")(hidden), attention.mean(1)

    def weights(self, backbone: Backbone, model: str) -> BlockWeights:
        """What segmenting needs of it."""
        return BlockWeights(
            self.norm1.weight.detach(),
            self.norm1.bias.detach(),
            self.attn.linear("qkv").weight.detach()[: 2 * self.norm1.normalized_shape[0]],
            self.heads,
            NORM_EPS,
            backbone.preprocessing,
            model,
        )


def semantic_consistency(features: Tensor, attention: Tensor, asking: Tensor) -> Tensor:
    """Features of the tokens that a query attends to most are pulled to its own, those it attends to least pushed off.

    loss = mean max(0, 0.9 - cos(f_q, f_near)) + mean max(0, cos(f_q, f_far) - 0.1), with the 30 nearest and the
    200 farthest tokens by attention in every frame. Attention only chooses; gradients go through the features.

    Args:
        features: The block's output without class tokens, shape (B, T, N, D).
        attention: Of sampled queries, without class tokens, shape (B, Q, T, N).
        asking: Index of each query in T*N, shape (Q,).

    Returns:
        A scalar.
    """
    unit = F.normalize(features, dim=-1)
    own = unit.flatten(1, 2)[:, asking]  # (B, Q, D)
    cosine = torch.einsum("bqd,btnd->bqtn", own, unit)
    order = attention.argsort(-1, descending=True)
    count = attention.shape[-1]
    near = cosine.gather(-1, order[..., : min(NEAREST, count // 2)])
    far = cosine.gather(-1, order[..., max(count - FARTHEST, count // 2) :])
    return F.relu(ALIKE - near).mean() + F.relu(far - UNLIKE).mean()


def motion_consistency(attention: Tensor, asking: Tensor, frames: int) -> Tensor:
    """What a query attends to in its own frame attends over time as the query does; what it ignores does not.

    loss = sum_q w_q mean max(0, 1 + H(a_q, a_near) - H(a_q, a_far)), H the cross-entropy in nats, a_q detached, over
    the 10 most and 50 least attended tokens of the query's frame; w = softmax over queries of -H(a_q, a_q), so that
    queries that know where they look count most (the entropy normalisation).

    Args:
        attention: Of all tokens, without class tokens, renormalised, shape (B, T*N, T*N).
        asking: Index of each query in T*N, shape (Q,).
        frames: T.

    Returns:
        A scalar, the mean over the batch.
    """
    batch, count, _ = attention.shape
    per_frame = count // frames
    asked = attention[:, asking]  # (B, Q, T*N)
    target = asked.detach()
    frame = torch.div(asking, per_frame, rounding_mode="floor")
    in_frame = frame[:, None] * per_frame + torch.arange(per_frame, device=asking.device)  # (Q, N): its own frame
    own = target.gather(-1, in_frame[None].expand(batch, -1, -1))
    order = own.argsort(-1, descending=True) + frame[None, :, None] * per_frame
    near, far = (
        order[..., : min(SAME_MOTION, per_frame // 2)],
        order[..., max(per_frame - OTHER_MOTION, per_frame // 2) :],
    )
    log = attention.clamp_min(1e-12).log()
    crossed = -torch.einsum("bqm,bqrm->bqr", target, _rows(log, torch.cat([near, far], -1)))  # (B, Q, 10 + 50)
    same, other = crossed[..., : near.shape[-1]].mean(-1), crossed[..., near.shape[-1] :].mean(-1)
    entropy = -(target * target.clamp_min(1e-12).log()).sum(-1)
    weight = torch.softmax(-entropy, -1)
    return (weight * F.relu(MARGIN + same - other)).sum(-1).mean()


def train_block(
    pack: Pack,
    backbone: Backbone,
    model: str,
    schedule: BlockSchedule,
    folder: Path,
    *,
    save_every: int = 500,
    stop_at: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Path:
    """Train, or go on where `folder` left off; under torchrun, one process a GPU shares the work.

    Args:
        pack: Frames at the resolution to train at (the paper's is 192x384).
        backbone: Frozen, on its device; the block goes there too.
        model: Its name in the registry, for the exported file.
        schedule: How long and on what.
        folder: For `checkpoint.pt`, `loss.csv` and `block.safetensors`.
        save_every: Steps between checkpoints.
        stop_at: Leave before the schedule ends, at this step, with a checkpoint.
        on_step: Told the steps done and the loss.

    Returns:
        The file with what segmenting needs: norm1, and the rows of q and k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = backbone.device
    torch.manual_seed(schedule.seed)
    block = SpatioTemporalBlock(backbone.dim, backbone.last.heads).to(device).train()
    classes = nn.Parameter(torch.zeros(1, schedule.clip_frames, 1, backbone.dim, device=device))
    nn.init.trunc_normal_(classes, std=0.02)
    parameters = [*block.parameters(), classes]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.rate)
    step, seconds = 0, 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True, map_location=device)
        if kept["schedule"] != asdict(schedule):
            raise ValueError(f"{checkpoint} was made with another schedule: {kept['schedule']}")
        block.load_state_dict(kept["block"])
        classes.data.copy_(kept["classes"])
        optimizer.load_state_dict(kept["optimizer"])
        step, seconds = kept["step"], kept["seconds"]
    began = time.monotonic() - seconds
    last = min(schedule.steps, stop_at or schedule.steps)
    rows: list[tuple[int, float, float, float]] = []
    while step < last:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate_at(step)
        # Everything random of a step comes from its number: that is what makes resuming exact.
        torch.manual_seed((schedule.seed * world + rank) * 1_000_003 + step)
        rng = np.random.default_rng((schedule.seed, rank, step))
        tokens = _tokens(_clips(pack, schedule, rng).to(device), backbone)  # (B, T, N, D)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            semantic, dynamic = _losses(block, tokens, classes)
        optimizer.zero_grad()
        with repeatable(device):
            torch.autograd.backward(semantic + dynamic)
        if world > 1:
            for parameter in parameters:
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        optimizer.step()
        step += 1
        rows.append((step, semantic.item(), dynamic.item(), time.monotonic() - began))
        if on_step is not None:
            on_step(step, rows[-1][1] + rows[-1][2])
        if rank == 0 and (step % save_every == 0 or step == last):
            _write_losses(folder / "loss.csv", rows)
            rows = []
            state = {
                "block": block.state_dict(),
                "classes": classes.detach(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": time.monotonic() - began,
                "schedule": asdict(schedule),
            }
            torch.save(state, folder / "checkpoint.new")
            (folder / "checkpoint.new").replace(checkpoint)
            head = {"steps": str(step), "seed": str(schedule.seed)}
            write_block(folder / "block.safetensors", block.weights(backbone, model), **head)
    return folder / "block.safetensors"


def _losses(block: SpatioTemporalBlock, tokens: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Both objectives for a batch of clips, tokens (B, T, N, D)."""
    batch, frames, count, dim = tokens.shape
    with_classes = torch.cat([classes.expand(batch, -1, -1, -1).to(tokens), tokens], 2)  # (B, T, 1 + N, D)
    features, attention = block(with_classes.flatten(1, 2))
    features = features.reshape(batch, frames, 1 + count, dim)[:, :, 1:].float()
    attention = attention.float().reshape(batch, frames, 1 + count, frames, 1 + count)[:, :, 1:, :, 1:]
    attention = attention.reshape(batch, frames * count, frames * count)
    attention = attention / attention.sum(-1, keepdim=True)
    places = torch.randint(count, (frames, POSITIONS), device=tokens.device)
    asking = (places + count * torch.arange(frames, device=tokens.device)[:, None]).flatten()
    asked = attention[:, asking].detach().reshape(batch, len(asking), frames, count)
    return semantic_consistency(features, asked, asking), motion_consistency(attention, asking, frames)


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, M, M) at (B, Q, R): (B, Q, R, M)."""
    batch = torch.arange(len(matrix), device=matrix.device)[:, None, None]
    return matrix[batch, index]


def _tokens(frames: Tensor, backbone: Backbone) -> Tensor:
    batch, count = frames.shape[:2]
    tokens = backbone.patch_tokens(_looked_at_otherwise(frames.flatten(0, 1)))
    return tokens.reshape(batch, count, *tokens.shape[1:])


def _clips(pack: Pack, schedule: BlockSchedule, rng: np.random.Generator) -> Tensor:
    """Random clips, uint8, shape (B, T, H, W, 3), mirrored now and then."""
    span = (schedule.clip_frames - 1) * schedule.gap
    long_enough = [clip for clip in pack.clips if len(clip) > span]
    if not long_enough:
        raise ValueError(f"no clip has the {span + 1} frames that training needs")
    starts = [len(clip) - span for clip in long_enough]
    clips = []
    for which in rng.choice(len(long_enough), schedule.batch, p=np.array(starts) / sum(starts)):
        first = long_enough[which].start + int(rng.integers(starts[which]))
        clip = torch.from_numpy(np.array(pack.frames[first : first + span + 1 : schedule.gap]))
        clips.append(clip.flip(2) if rng.random() < 0.5 else clip)
    return torch.stack(clips)


def _looked_at_otherwise(frames: Tensor) -> Tensor:
    """Colours shifted, taken away or blurred, the same for all frames of a batch; uint8 in and out."""
    pixels = frames.float()
    gain = 0.6 + 0.8 * torch.rand(3, device=frames.device)  # brightness, contrast, saturation
    pixels = pixels * gain[0]
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * gain[1]
    grey = pixels @ pixels.new_tensor([0.299, 0.587, 0.114])[:, None]
    pixels = grey + (pixels - grey) * (0.0 if torch.rand(()) < 0.2 else gain[2])
    if torch.rand(()) < 0.5:
        sigma = 0.1 + 1.9 * float(torch.rand(()))
        reach = torch.arange(-4, 5, device=frames.device)
        kernel = torch.exp(-(reach**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
        moved = F.pad(pixels.permute(0, 3, 1, 2), (4, 4, 4, 4), mode="reflect")
        moved = F.conv2d(F.conv2d(moved, kernel, groups=3), kernel.transpose(2, 3), groups=3)
        pixels = moved.permute(0, 2, 3, 1)
    return pixels.clamp(0, 255).to(torch.uint8)


def _write_losses(path: Path, rows: list[tuple[int, float, float, float]]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "semantic", "motion", "seconds"])
        writer.writerows([[step, f"{a:.6f}", f"{b:.6f}", f"{at:.1f}"] for step, a, b, at in rows])
