"""Tokens of a backbone are those that a plain hook on timm's own model sees."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from service.models import MODELS, Facet, ModelEntry
from worker.backbone import Backbone, create_vit
from worker.weights import Preprocessing

SEVERAL_PATCHES = (3, 5)  # rows, columns: no square, and no default of any model
SMALL = {"depth": 3}  # what is tested does not depend on how many layers there are


def seeded_vit(entry: ModelEntry, seed: int = 0, **options: object) -> nn.Module:
    """Random weights, large enough that attention is far from uniform and biases matter."""
    torch.manual_seed(seed)
    vit = create_vit(entry.timm_id, entry.timm_options | SMALL | options)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.endswith("bias") or "token" in name or "gamma" in name or "ls" in name:
                parameter.normal_(0, 0.3)
            elif parameter.ndim > 1:
                parameter.mul_(2)
    return vit


def seeded_frames(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def preprocessing(entry: ModelEntry) -> Preprocessing:
    return Preprocessing(entry.mean, entry.std)


@dataclass
class Hooked:
    """What hooks on timm's own model see."""

    qkv: Tensor
    output: Tensor


def run_with_hooks(vit: nn.Module, pixels: Tensor) -> Hooked:
    seen = {}
    hook = vit.blocks[-1].attn.qkv.register_forward_hook(lambda _module, _input, output: seen.update(qkv=output))
    with torch.no_grad():
        output = vit.forward_features(pixels)
    hook.remove()
    return Hooked(seen["qkv"], output)


def pixels_of(frames: Tensor, entry: ModelEntry) -> Tensor:
    mean, std = torch.tensor(entry.mean), torch.tensor(entry.std)
    return ((frames / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("facet", Facet)
def test_tokens_are_what_a_hook_on_timm_s_model_sees(name, facet):
    entry = MODELS[name]
    vit = seeded_vit(entry)
    rows, columns = SEVERAL_PATCHES
    frames = seeded_frames(2, rows * entry.patch, columns * entry.patch)
    seen = run_with_hooks(vit, pixels_of(frames, entry))
    prefix, dim = vit.num_prefix_tokens, vit.embed_dim
    expected = seen.output[:, prefix:] if facet is Facet.token else seen.qkv[:, prefix:, dim : 2 * dim]

    backbone = Backbone(vit, preprocessing=preprocessing(entry), facet=facet)
    tokens = backbone.patch_tokens(frames)

    assert tokens.shape == (2, rows * columns, dim)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
