"""Seeded weights in the formats that people have, and frames to look at; nothing is downloaded."""

import numpy as np
import torch
from torch import Tensor

DIM = 384


def dino_state(*, layers: int = 12, patch: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """DINO's ViT-S by its names: attention far from uniform, and no bias, norm or position that could be left out."""
    normal = _normal(seed)
    side = 224 // patch
    state = {
        "cls_token": normal(1, 1, DIM, std=0.5),
        "pos_embed": normal(1, side * side + 1, DIM, std=0.2),
        "patch_embed.proj.weight": normal(DIM, 3, patch, patch, std=0.6 / patch),
        "patch_embed.proj.bias": normal(DIM, std=0.1),
    }
    for layer in range(layers):
        for name, tensor in _layer(normal, gain=2.0).items():
            state[f"blocks.{layer}.{name}"] = tensor
    return state | _norm(normal, "norm")


def block_state(*, seed: int = 1, gain: float = 1.45) -> dict[str, Tensor]:
    """The released block by its names; q and k are alike, so that tokens attend to what resembles them.

    `gain` decides how many clusters there are: about 20 with 1.45 on `moving_shapes`, ten times as many on real frames.
    """
    normal = _normal(seed)
    state = _layer(normal, gain=gain)
    del state["attn.qkv.bias"]
    state["attn.qkv.weight"][DIM : 2 * DIM] = state["attn.qkv.weight"][:DIM] + normal(
        DIM, DIM, std=0.1 * gain / DIM**0.5
    )
    return state


def released_checkpoint(*, layers: int = 12, seed: int = 0, gain: float = 1.45) -> dict[str, object]:
    """What the released training code saves."""
    state = {f"encoder.{name}": tensor for name, tensor in dino_state(layers=layers, seed=seed).items()}
    block = block_state(seed=seed + 1, gain=gain)
    state |= {f"temporal_transformer.0.{name}": tensor for name, tensor in block.items()}
    return {"iteration": 20_000, "model_state_dict": state, "loss": torch.tensor(0.5, requires_grad=True)}


def moving_shapes(count: int, height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Textured rectangles that move over a textured ground: uint8, (count, height, width, 3)."""
    random = np.random.default_rng(seed)

    def texture(rows: int, columns: int) -> np.ndarray:
        coarse = random.integers(0, 256, (rows // 16 + 2, columns // 16 + 2, 3))
        fine = np.repeat(np.repeat(coarse, 16, 0), 16, 1)[:rows, :columns]
        return np.clip(fine * 0.3 + random.integers(40, 160, 3) + random.integers(-20, 20, (rows, columns, 3)), 0, 255)

    frames = np.repeat(texture(height, width)[None], count, 0)
    for speed in (3, -2, 1):
        rows, columns = height // 3, width // 4
        shape, top, left = (
            texture(rows, columns),
            random.integers(0, height - rows),
            random.integers(0, width - columns),
        )
        for t in range(count):
            at = int(np.clip(left + speed * t, 0, width - columns))
            frames[t, top : top + rows, at : at + columns] = shape
    return frames.astype(np.uint8)


def _normal(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, std: torch.randn(shape, generator=generator) * std


def _norm(normal, name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + normal(DIM, std=0.1), f"{name}.bias": normal(DIM, std=0.1)}


def _layer(normal, *, gain: float) -> dict[str, Tensor]:
    thin, wide = DIM**-0.5, (4 * DIM) ** -0.5
    return {
        **_norm(normal, "norm1"),
        "attn.qkv.weight": normal(3 * DIM, DIM, std=gain * thin),
        "attn.qkv.bias": normal(3 * DIM, std=0.1),
        "attn.proj.weight": normal(DIM, DIM, std=0.5 * thin),
        "attn.proj.bias": normal(DIM, std=0.05),
        **_norm(normal, "norm2"),
        "mlp.fc1.weight": normal(4 * DIM, DIM, std=thin),
        "mlp.fc1.bias": normal(4 * DIM, std=0.05),
        "mlp.fc2.weight": normal(DIM, 4 * DIM, std=0.5 * wide),
        "mlp.fc2.bias": normal(DIM, std=0.05),
    }
