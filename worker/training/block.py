"""Train a spatio-temporal block behind a frozen backbone, as the paper does; needs only torch, timm and NumPy.

Source: sections 3.2 to 3.4 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893): semantic consistency,
dynamic motion consistency and its entropy normalisation.
"""

import csv
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from worker.models.backbone import Backbone
from worker.models.weights import BlockWeights, write_block
from worker.training.deterministic import deterministic
from worker.training.frame_store import FrameStore
from worker.training.run import SaveClock, TrainingRun, TrainingStopped, stop_on_sigterm

NORM_EPS = 1e-5  # as in the released block; the exported file states it
ATTENTION_DROPOUT = 0.4

QUERIES_PER_FRAME = 8
NEAREST, FARTHEST = 30, 200  # tokens per frame with most and least attention, attracted and repelled
POSITIVE_COSINE, NEGATIVE_COSINE = 0.9, 0.1  # the loss is zero beyond them
SAME_MOTION, OTHER_MOTION = 10, 50  # tokens of the query's frame whose attention maps are compared with its own
MARGIN = 1.0  # nats


@dataclass(frozen=True)
class BlockSchedule:
    """Length, batch and learning rate of a run.

    Attributes:
        steps: Number of updates.
        batch: Clips per step and process.
        clip_frames: Frames per clip.
        gap: Distance between two of them, in frames of the store.
        rate: Initial learning rate of AdamW; decays to 0 along a cosine.
        seed: Of the initial weights, the clips and the dropout.
    """

    steps: int = 20_000
    batch: int = 4
    clip_frames: int = 3
    gap: int = 2
    rate: float = 1e-5
    seed: int = 0

    def rate_at(self, step: int) -> float:
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class _LinearLayers(nn.Module):
    """Linear layers in one namespace, so that parameter names equal those of the released code."""

    def __init__(self, **layers: nn.Linear) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def linear(self, name: str) -> nn.Linear:
        layer = self.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        return layer


class SpatioTemporalBlock(nn.Module):
    """One transformer block that attends over all frames; parameter names as in the released code.

    Args:
        dim: D.
        heads: Attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = _LinearLayers(qkv=nn.Linear(dim, 3 * dim, bias=False), proj=nn.Linear(dim, dim))
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = _LinearLayers(fc1=nn.Linear(dim, 4 * dim), fc2=nn.Linear(4 * dim, dim))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features and attention.

        Args:
            tokens: Tokens of all frames, class tokens included, shape (B, M, D).

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
        """The parameters that segmentation needs."""
        return BlockWeights(
            self.norm1.weight.detach(),
            self.norm1.bias.detach(),
            self.attn.linear("qkv").weight.detach()[: 2 * self.norm1.normalized_shape[0]],
            self.heads,
            NORM_EPS,
            backbone.preprocessing,
            model,
        )


def semantic_consistency(features: Tensor, attention: Tensor, queries: Tensor) -> Tensor:
    """Semantic consistency: attract the features a query attends to most, repel those it attends to least.

    loss = mean max(0, 0.9 - cos(f_q, f_near)) + mean max(0, cos(f_q, f_far) - 0.1), with the 30 nearest and the
    200 farthest tokens by attention in every frame. Gradients flow through the features, not the attention.

    Args:
        features: The block's output without class tokens, shape (B, T, N, D).
        attention: Attention of the sampled queries, without class tokens, shape (B, Q, T, N).
        queries: Index of each query in T*N, shape (Q,).

    Returns:
        A scalar.
    """
    unit = F.normalize(features, dim=-1)
    own = unit.flatten(1, 2)[:, queries]  # (B, Q, D)
    cosine = torch.einsum("bqd,btnd->bqtn", own, unit)
    order = attention.argsort(-1, descending=True)
    count = attention.shape[-1]
    near = cosine.gather(-1, order[..., : min(NEAREST, count // 2)])
    far = cosine.gather(-1, order[..., max(count - FARTHEST, count // 2) :])
    return F.relu(POSITIVE_COSINE - near).mean() + F.relu(far - NEGATIVE_COSINE).mean()


def motion_consistency(attention: Tensor, queries: Tensor, frames: int) -> Tensor:
    """Dynamic motion consistency: tokens a query attends to in its frame have attention maps like the query's.

    loss = sum_q w_q mean max(0, 1 + H(a_q, a_near) - H(a_q, a_far)), H the cross-entropy in nats, a_q detached, over
    the 10 most and 50 least attended tokens of the query's frame; w = softmax over queries of -H(a_q, a_q), which
    gives queries with low attention entropy the largest weight (the entropy normalisation).

    Args:
        attention: Attention of all tokens, without class tokens, renormalised, shape (B, T*N, T*N).
        queries: Index of each query in T*N, shape (Q,).
        frames: T.

    Returns:
        A scalar, the mean over the batch.
    """
    batch, count, _ = attention.shape
    per_frame = count // frames
    target = attention[:, queries].detach()  # (B, Q, T*N)
    frame = torch.div(queries, per_frame, rounding_mode="floor")
    in_frame = frame[:, None] * per_frame + torch.arange(per_frame, device=queries.device)  # (Q, N)
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


def train_block(store: FrameStore, backbone: Backbone, model: str, schedule: BlockSchedule, run: TrainingRun) -> Path:
    """Train, or resume the run in `run.folder`; under torchrun, one process per GPU shares the work.

    Args:
        store: Frames at the training resolution (the paper's is 192x384).
        backbone: Frozen, on its device; the block is trained on the same device.
        model: Registry name of the backbone, written into the exported file.
        schedule: Length, batch and rate.
        run: Where and when to save; the folder receives `checkpoint.pt`, `loss.csv` and `block.safetensors`.

    Returns:
        The file with what segmentation needs: norm1 and the q and k rows.

    Raises:
        ValueError: The folder holds a run with another schedule, or no clip is long enough.
        TrainingStopped: SIGTERM ended the run; the state was saved.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    rank = dist.get_rank() if dist.is_initialized() else 0
    training = _Training.begin(backbone, schedule, run)
    last_step = min(schedule.steps, run.stop_at or schedule.steps)
    clock = SaveClock(run, last_step)
    rows: list[tuple[int, float, float, float]] = []
    with stop_on_sigterm(clock):
        while training.step < last_step:
            semantic, motion = training.take_step(store, backbone)
            rows.append((training.step, semantic, motion, training.elapsed_s))
            run.on_step(training.step, semantic + motion)
            if rank != 0:  # the first process saves; the others end with it
                continue
            if clock.is_due(training.step):
                _append_losses(run.folder / "loss.csv", rows)
                rows = []
                training.save(run, backbone, model)
            if clock.stop_requested:
                raise TrainingStopped(training.step)
    return run.folder / "block.safetensors"


class _Training:
    """The block, the class tokens trained with it, and their optimizer."""

    def __init__(self, backbone: Backbone, schedule: BlockSchedule) -> None:
        device = backbone.device
        self.schedule = schedule
        self.block = SpatioTemporalBlock(backbone.dim, backbone.last.heads).to(device).train()
        self.classes = nn.Parameter(torch.zeros(1, schedule.clip_frames, 1, backbone.dim, device=device))
        nn.init.trunc_normal_(self.classes, std=0.02)
        self.parameters = [*self.block.parameters(), self.classes]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=schedule.rate)
        self.step = 0
        self._began = time.monotonic()

    @classmethod
    def begin(cls, backbone: Backbone, schedule: BlockSchedule, run: TrainingRun) -> "_Training":
        """A new run, or the one that the folder holds."""
        torch.manual_seed(schedule.seed)
        training = cls(backbone, schedule)
        state = run.load(asdict(schedule), backbone.device)
        if state is not None:
            training.block.load_state_dict(state["block"])
            training.classes.data.copy_(state["classes"])
            training.optimizer.load_state_dict(state["optimizer"])
            training.step = state["step"]
            training._began -= state["seconds"]
        return training

    @property
    def elapsed_s(self) -> float:
        """Training time, earlier parts of a resumed run included."""
        return time.monotonic() - self._began

    def take_step(self, store: FrameStore, backbone: Backbone) -> tuple[float, float]:
        """One update; both losses before it."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        device = backbone.device
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(self.step)
        # All random numbers of a step derive from its number, so that resuming is exact.
        torch.manual_seed((self.schedule.seed * world + rank) * 1_000_003 + self.step)
        rng = np.random.default_rng((self.schedule.seed, rank, self.step))
        tokens = _tokens(_clips(store, self.schedule, rng).to(device), backbone)  # (B, T, N, D)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            semantic, motion = _losses(self.block, tokens, self.classes)
        self.optimizer.zero_grad()
        with deterministic(device):
            torch.autograd.backward(semantic + motion)
        if world > 1:
            for parameter in self.parameters:
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        self.optimizer.step()
        self.step += 1
        return float(semantic.item()), float(motion.item())

    def save(self, run: TrainingRun, backbone: Backbone, model: str) -> None:
        """Write the checkpoint and the block so far."""
        run.save(
            {
                "block": self.block.state_dict(),
                "classes": self.classes.detach(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.elapsed_s,
                "schedule": asdict(self.schedule),
            }
        )
        metadata = {"steps": str(self.step), "seed": str(self.schedule.seed)}
        write_block(run.folder / "block.safetensors", self.block.weights(backbone, model), **metadata)


def _losses(block: SpatioTemporalBlock, tokens: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Both objectives for a batch of clips, tokens (B, T, N, D)."""
    batch, frames, count, dim = tokens.shape
    with_classes = torch.cat([classes.expand(batch, -1, -1, -1).to(tokens), tokens], 2)  # (B, T, 1 + N, D)
    features, attention = block(with_classes.flatten(1, 2))
    features = features.reshape(batch, frames, 1 + count, dim)[:, :, 1:].float()
    attention = attention.float().reshape(batch, frames, 1 + count, frames, 1 + count)[:, :, 1:, :, 1:]
    attention = attention.reshape(batch, frames * count, frames * count)
    attention = attention / attention.sum(-1, keepdim=True)
    positions = torch.randint(count, (frames, QUERIES_PER_FRAME), device=tokens.device)
    queries = (positions + count * torch.arange(frames, device=tokens.device)[:, None]).flatten()
    sampled = attention[:, queries].detach().reshape(batch, len(queries), frames, count)
    return semantic_consistency(features, sampled, queries), motion_consistency(attention, queries, frames)


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows of a matrix (B, M, M) at indices (B, Q, R); shape (B, Q, R, M)."""
    batch = torch.arange(len(matrix), device=matrix.device)[:, None, None]
    return matrix[batch, index]


def _tokens(frames: Tensor, backbone: Backbone) -> Tensor:
    batch, count = frames.shape[:2]
    tokens = backbone.patch_tokens(_augmented(frames.flatten(0, 1)))
    return tokens.reshape(batch, count, *tokens.shape[1:])


def _clips(store: FrameStore, schedule: BlockSchedule, rng: np.random.Generator) -> Tensor:
    """Random clips, half of them mirrored, uint8, shape (B, T, H, W, 3)."""
    span = (schedule.clip_frames - 1) * schedule.gap
    long_enough = [clip for clip in store.clips if len(clip) > span]
    if not long_enough:
        raise ValueError(f"no clip has the {span + 1} frames that training needs")
    starts = [len(clip) - span for clip in long_enough]
    clips = []
    for clip_index in rng.choice(len(long_enough), schedule.batch, p=np.array(starts) / sum(starts)):
        first = long_enough[clip_index].start + int(rng.integers(starts[clip_index]))
        clip = torch.from_numpy(np.array(store.frames[first : first + span + 1 : schedule.gap]))
        clips.append(clip.flip(2) if rng.random() < 0.5 else clip)
    return torch.stack(clips)


def _augmented(frames: Tensor) -> Tensor:
    """Colour jitter, random greyscale and blur, the same for all frames of a batch; uint8 in and out."""
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
        blurred = F.pad(pixels.permute(0, 3, 1, 2), (4, 4, 4, 4), mode="reflect")
        blurred = F.conv2d(F.conv2d(blurred, kernel, groups=3), kernel.transpose(2, 3), groups=3)
        pixels = blurred.permute(0, 2, 3, 1)
    return pixels.clamp(0, 255).to(torch.uint8)


def _append_losses(path: Path, rows: list[tuple[int, float, float, float]]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "semantic", "motion", "seconds"])
        writer.writerows([[step, f"{a:.6f}", f"{b:.6f}", f"{at:.1f}"] for step, a, b, at in rows])
