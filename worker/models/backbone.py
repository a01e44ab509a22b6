"""Project frames to patch tokens, queries and keys with a timm ViT.

Source: sections 3.1 and 3.2 of Ding et al., "Betrayed by Attention" (arXiv:2311.17893). The token of a patch is
the key of the last attention layer, heads concatenated (or the output token), followed by `norm1` and the q and k
projections of a trained block. Without a trained block, q and k are those of the last layer.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import timm
import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from worker.models.weights import BlockWeights, Preprocessing, UnusableWeights
from worker.numerics.tile_pool import TilePool
from worker.video.clip import PatchGrid

OWN_ARCHITECTURE = "VisionTransformer"  # instead of a timm id: timm's class, constructed with the entry's options
CPU_BATCH = 8  # limit of frames at once, one per thread; a frame takes 80 MB with a ViT-S/8 at 320x480
GPU_BATCH = 64  # 64 frames of the smallest grid saturate a large GPU
GPU_SHARE = 0.5  # share of the free memory for a batch; the memory of a frame is only estimated

Result = TypeVar("Result")


@dataclass(frozen=True)
class ObjectCues:
    """Quantities of the last layer that separate objects from background (`worker/method/object_scores.py`).

    Attributes:
        keys: Keys of the last attention layer, float32, shape (B, N, D).
        saliency: Attention of the class token to the patches, float32, shape (B, N, heads).
    """

    keys: Tensor
    saliency: Tensor


@dataclass(frozen=True)
class Projections:
    """Queries and keys of every patch.

    Attributes:
        queries: float32, shape (B, N, heads, d), not yet scaled by 1/sqrt(d).
        keys: float32, same shape.
        cues: None where the backbone does not compute them.
    """

    queries: Tensor
    keys: Tensor
    cues: ObjectCues | None = None

    def __post_init__(self) -> None:
        if self.queries.shape != self.keys.shape or self.queries.ndim != 4:
            raise ValueError(f"expected (B, N, heads, d) twice, got {self.queries.shape = } and {self.keys.shape = }")


class QueriesAndKeys(nn.Module):
    """The first norm of a transformer block and its q and k projections, in float32.

    They are one small product, so float32 costs little and avoids rounding queries and keys to bfloat16.
    """

    def __init__(self, norm: nn.Module, qk: nn.Linear, heads: int) -> None:
        super().__init__()
        self.norm = norm.float()
        self.qk = qk.float()
        self.heads = heads
        self.head_dim = qk.out_features // (2 * heads)

    def forward(self, tokens: Tensor) -> Projections:
        batch, count, _ = tokens.shape
        with torch.autocast(tokens.device.type, enabled=False):
            qk = self.qk(self.norm(tokens.float())).reshape(batch, count, 2, self.heads, self.head_dim)
        return Projections(qk[:, :, 0], qk[:, :, 1])  # (B, N, heads, d) each

    @classmethod
    def of_last_layer(cls, vit: nn.Module) -> "QueriesAndKeys":
        """Norm and projections of the last layer of a timm ViT (`VisionTransformer` or `Eva`)."""
        layer: Any = vit.blocks[-1]  # type: ignore[index]
        weight = layer.attn.qkv.weight
        rows = 2 * (weight.shape[0] // 3)
        bias = layer.attn.qkv.bias
        if bias is None and getattr(layer.attn, "q_bias", None) is not None:
            bias = torch.cat((layer.attn.q_bias, layer.attn.k_bias))
        qk = nn.Linear(weight.shape[1], rows, bias=bias is not None)
        with torch.no_grad():
            qk.weight.copy_(weight[:rows])
            if bias is not None:
                qk.bias.copy_(bias[:rows])
        return cls(copy.deepcopy(layer.norm1), qk.to(weight.device), layer.attn.num_heads)

    @classmethod
    def of_block(cls, block: BlockWeights) -> "QueriesAndKeys":
        """Norm and projections of a trained spatio-temporal block."""
        rows, dim = block.qk.shape
        norm, qk = nn.LayerNorm(dim, eps=block.eps), nn.Linear(dim, rows, bias=False)
        with torch.no_grad():
            norm.weight.copy_(block.norm_weight)
            norm.bias.copy_(block.norm_bias)
            qk.weight.copy_(block.qk)
        return cls(norm, qk, block.heads)


def create_vit(timm_id: str, options: Mapping[str, Any] | None = None, *, random: bool = True) -> nn.Module:
    """A timm ViT without trained weights, for any grid of patches.

    Args:
        timm_id: A timm model name, or "VisionTransformer" for the class itself.
        options: Constructor arguments that differ from the defaults.
        random: Whether to draw random weights; False leaves them undefined and saves most of the time.
    """
    if random:
        return _make_vit(timm_id, options or {})
    with torch.device("meta"):
        vit = _make_vit(timm_id, options or {})
    if vit.state_dict().keys() < dict(vit.named_parameters()).keys() | dict(vit.named_buffers()).keys():
        return _make_vit(timm_id, options or {})  # its constructor computes tables that no file has
    return vit.to_empty(device="cpu")


def _make_vit(timm_id: str, options: Mapping[str, Any]) -> nn.Module:
    options = {"num_classes": 0, "dynamic_img_size": True, **options}
    if timm_id == OWN_ARCHITECTURE:
        vit: nn.Module = timm.models.VisionTransformer(**options)
    else:
        vit = timm.create_model(timm_id, pretrained=False, **options)
    return vit.eval().requires_grad_(False)


class Backbone(nn.Module):
    """A frozen self-supervised ViT, optionally with a trained spatio-temporal block.

    Args:
        vit: A timm `VisionTransformer` or `Eva` made by `create_vit`, weights loaded.
        preprocessing: Preprocessing that the weights were trained with.
        facet: "key" (keys of the last attention layer) or "token" (output tokens after the last norm).
        block: A trained block; its preprocessing, where it has one, replaces the other.
        dtype: dtype of the products inside the ViT. Residual stream, norms and results are always float32, which
            halves the error of pure bfloat16 and costs 5 % of the time.
        with_cues: Whether `project` also returns object cues; requires a class token and learned positions.

    Raises:
        UnusableWeights: The block does not fit the ViT.
    """

    vit: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vit: nn.Module,
        *,
        preprocessing: Preprocessing,
        facet: str = "key",
        block: BlockWeights | None = None,
        dtype: torch.dtype = torch.float32,
        with_cues: bool = False,
    ) -> None:
        super().__init__()
        if facet not in ("key", "token"):
            raise ValueError(f"expected the facet key or token, got {facet!r}")
        if block is not None and block.preprocessing is not None:
            preprocessing = block.preprocessing
        self.preprocessing = preprocessing
        self.facet = str(facet)
        self.last = QueriesAndKeys.of_last_layer(vit)
        self.block = None if block is None else QueriesAndKeys.of_block(block)
        self.vit = vit
        for layer in vit.modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)  # once; autocast would convert at every call
        self.dim: int = self.vit.embed_dim
        self.patch: int = self.vit.patch_embed.patch_size[0]
        if self.block is not None and self.block.qk.in_features != self.dim:
            raise UnusableWeights(f"the block expects {self.block.qk.in_features} channels, the ViT has {self.dim}")
        if preprocessing.positions == "dino" and not self._has_dino_positions():
            raise UnusableWeights("DINO's positions need a ViT with learned positions, a class token and no registers")
        self.dtype = dtype
        self.batch_limit: int | None = None
        self.with_cues = with_cues
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("std", std[:, None, None], persistent=False)
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @cached_property
    def _pool(self) -> TilePool:
        return TilePool(torch.get_num_threads() if self.device.type == "cpu" else 1)

    @property
    def heads(self) -> int:
        """Number of heads of the projections."""
        return (self.block or self.last).heads

    @property
    def head_dim(self) -> int:
        """Channels per head of the projections: d in q·k/sqrt(d)."""
        return (self.block or self.last).head_dim

    @property
    def _is_mixed(self) -> bool:
        return self.dtype is not torch.float32

    def grid(self, size: tuple[int, int]) -> PatchGrid:
        """The patch grid of frames of (H, W) pixels.

        Raises:
            ValueError: A side is not a positive multiple of the patch.
        """
        height, width = size
        if height % self.patch or width % self.patch or min(size) < self.patch:
            raise ValueError(f"both sides must be multiples of {self.patch}, got {height}x{width}")
        return PatchGrid(height // self.patch, width // self.patch)

    def patch_tokens(self, frames: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
        """The token of every patch: the key facet or the output tokens.

        Args:
            frames: RGB, uint8, shape (B, H, W, 3), on any device.
            size: Model input resolution (H, W) in pixels, multiples of the patch; default: that of the frames.

        Returns:
            float32, shape (B, N, D), patches row by row; no class and no register token.
        """
        return _joined(self._in_batches(frames, size, self._tokens))

    def project(self, frames: Tensor, *, size: tuple[int, int] | None = None) -> Projections:
        """Queries and keys of every patch.

        With a trained block, its `norm1` and q, k on the patch tokens; without one, q and k of the last layer (with
        rotary positions where the model has them).

        Args:
            frames: RGB, uint8, shape (B, H, W, 3), on any device.
            size: Model input resolution (H, W) in pixels, multiples of the patch; default: that of the frames.
                Frames of another size are resized bilinearly without antialiasing, as the released code does.
        """
        parts = self._in_batches(frames, size, self._projections)
        cues = [part.cues for part in parts if part.cues is not None]
        return Projections(
            _joined([part.queries for part in parts]),
            _joined([part.keys for part in parts]),
            ObjectCues(_joined([cue.keys for cue in cues]), _joined([cue.saliency for cue in cues])) if cues else None,
        )

    def batch_size(self, size: tuple[int, int]) -> int:
        """Number of frames of (H, W) pixels per batch: one per thread on a CPU, on a GPU what fits into free memory.

        Halved permanently after a failure.
        """
        limit = min(CPU_BATCH, self._pool.threads)
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            tokens = self.grid(size).tokens
            # The residual stream twice, q, k, v, the output of attention, and the hidden layer before and after its
            # activation; then the float32 copies of frames and results.
            wide = getattr(self.vit.blocks[0].mlp.fc1, "out_features", 4 * self.dim)
            layer = tokens * (2 * self.dim * 4 + (4 * self.dim + 2 * wide) * self.dtype.itemsize)
            outside = (3 * 3 * size[0] * size[1] + 4 * tokens * self.dim) * 4
            limit = min(GPU_BATCH, int(GPU_SHARE * free / (layer + outside)))
        if self.batch_limit is not None:
            limit = min(limit, self.batch_limit)
        return max(1, limit)

    def _in_batches(
        self, frames: Tensor, size: tuple[int, int] | None, step: Callable[[Tensor], Result]
    ) -> list[Result]:
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise ValueError(f"expected uint8 frames of shape (B, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
        size = size or (frames.shape[1], frames.shape[2])
        self.grid(size)
        results: list[Result] = []
        start, count = 0, self.batch_size(size)
        while start < len(frames):
            try:
                results += self._in_threads(frames[start : start + count], size, step)
                start += count
                continue
            except torch.OutOfMemoryError:
                if count == 1:
                    raise
            # The tensors of the failed attempt are released only outside the exception handler.
            torch.cuda.empty_cache()
            count = self.batch_limit = count // 2
        return results

    def _in_threads(self, frames: Tensor, size: tuple[int, int], step: Callable[[Tensor], Result]) -> list[Result]:
        """The results of a batch, split between the threads of the pool."""
        results: dict[int, Result] = {}

        def work(start: int, stop: int) -> None:
            with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self._is_mixed):
                results[start] = step(self._pixels(frames[start:stop], size))

        self._pool.run(work, len(frames), self._pool.step(len(frames), len(frames)))
        return [results[start] for start in sorted(results)]

    def _pixels(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        pixels = frames.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # (B, 3, H, W)
        if pixels.shape[2:] == size:
            shares = pixels.float() / 255
        elif self.preprocessing.positions == "dino":
            # The released code resizes in float64; float32 sampling positions change pixels by 3e-5, q and k by 3e-4.
            shares = torch.cat([_resized(frame[None].double() / 255, size).float() for frame in pixels])
        else:
            shares = _resized(pixels.float(), size) / 255
        return (shares - self.mean) / self.std

    def _tokens(self, pixels: Tensor) -> Tensor:
        return self._facet_tokens(*self._before_last(pixels))

    def _facet_tokens(self, x: Tensor, rope: Tensor | None) -> Tensor:
        if self.facet == "key":
            return self.last.forward(self._patches(x)).keys.flatten(2)  # (B, N, D)
        x = self._layer(-1, x, rope)
        return self._patches(self.vit.norm(x)).float()

    def _projections(self, pixels: Tensor) -> Projections:
        x, rope = self._before_last(pixels)
        cues = self._cues(x) if self.with_cues else None
        if self.block is not None:
            projections = self.block.forward(self._facet_tokens(x, rope))
            return Projections(projections.queries, projections.keys, cues)
        own = self.last.forward(self._patches(x))
        if rope is None:
            return Projections(own.queries, own.keys, cues)
        half = bool(getattr(self.vit.blocks[-1].attn, "rotate_half", False))
        turned = [
            apply_rot_embed_cat(part.transpose(1, 2), rope.float(), half=half).transpose(1, 2)
            for part in (own.queries, own.keys)
        ]
        return Projections(*turned)

    def _cues(self, x: Tensor) -> ObjectCues:
        last = self.last.forward(x)  # (B, prefix + N, heads, d)
        class_query = last.queries[:, 0] / self.last.head_dim**0.5
        logits = torch.einsum("bhd,bnhd->bnh", class_query, last.keys)
        return ObjectCues(self._patches(last.keys).flatten(2), self._patches(logits.float().softmax(1)))

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual stream before the last layer, and rotary positions where the model has them."""
        x = self._embedded(pixels)  # (B, h, w, D)
        rope = None
        if self.preprocessing.positions == "dino":
            x = self._with_dino_positions(x)
        else:
            x = self.vit._pos_embed(x)
            if isinstance(x, tuple):
                x, rope = x
        x = self.vit.norm_pre(x)
        for index in range(len(self.vit.blocks) - 1):
            x = self._layer(index, x, rope)
        return x, rope

    def _embedded(self, pixels: Tensor) -> Tensor:
        """The patch embedding as a product: cuDNN's convolution would round float32 to TF32."""
        batch, channels, height, width = pixels.shape
        convolution, side = self.vit.patch_embed.proj, self.patch
        cut = pixels.reshape(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
        x: Tensor = F.linear(cut.flatten(3), convolution.weight.flatten(1), convolution.bias)
        return x.float()

    def _layer(self, index: int, x: Tensor, rope: Tensor | None) -> Tensor:
        layer = self.vit.blocks[index]
        result: Tensor = layer(x) if rope is None else layer(x, rope=rope)
        return result

    def _patches(self, x: Tensor) -> Tensor:
        prefix: int = self.vit.num_prefix_tokens
        return x[:, prefix:]

    def _has_dino_positions(self) -> bool:
        vit = self.vit
        side = round((vit.pos_embed.shape[1] - 1) ** 0.5) if getattr(vit, "pos_embed", None) is not None else 0
        return bool(side and side**2 + 1 == vit.pos_embed.shape[1] and vit.num_prefix_tokens == 1)

    def _with_dino_positions(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        positions: Tensor = self.vit.pos_embed.float()
        side = round((positions.shape[1] - 1) ** 0.5)
        if (height, width) != (side, side):
            square = positions[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
            # The 0.1 is DINO's: its positions are always resampled with slightly larger factors.
            factors = ((height + 0.1) / side, (width + 0.1) / side)
            square = F.interpolate(square, scale_factor=factors, mode="bicubic")
            positions = torch.cat((positions[:, :1], square.flatten(2).transpose(1, 2)), dim=1)
        tokens: Tensor = torch.cat((self.vit.cls_token.expand(batch, -1, -1), x.reshape(batch, -1, dim)), dim=1)
        return tokens + positions.to(tokens.dtype)  # (B, 1 + N, D)


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=False)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
