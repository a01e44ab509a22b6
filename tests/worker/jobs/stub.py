"""A stub backbone: tokens of three numbers, the mean colour of each patch, in place of a ViT."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvos.models import MODELS
from worker.models.backbone import Projections
from worker.models.loading import LoadedModel
from worker.video.clip import PatchGrid

CONTRAST = 12.0  # of query and key: colours that differ visibly get different attention maps


class ColorBackbone(nn.Module):
    """Attention between patches of like colour: -|a - b|² written as a product of four numbers each."""

    patch = 8
    heads = 1
    head_dim = 5
    device = torch.device("cpu")
    dtype = torch.float32
    block = None

    def grid(self, size: tuple[int, int]) -> PatchGrid:
        return PatchGrid(size[0] // self.patch, size[1] // self.patch)

    def batch_size(self, size: tuple[int, int]) -> int:  # noqa: ARG002
        return 3

    def project(self, frames: Tensor, *, size: tuple[int, int] | None = None) -> Projections:
        pixels = frames.permute(0, 3, 1, 2).float() / 255
        if size is not None and pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        colors = F.avg_pool2d(pixels, self.patch).flatten(2).transpose(1, 2)  # (B, N, 3)
        length = (colors**2).sum(-1, keepdim=True)
        one = torch.ones_like(length)
        queries = torch.cat([2 * colors, -one, -length], -1) * CONTRAST * self.head_dim**0.5
        keys = torch.cat([colors, length, one], -1)
        return Projections(queries[:, :, None], keys[:, :, None])


def stub_model(**changes: Any) -> LoadedModel:
    """The stub as a loaded model; float32."""
    entry = MODELS["tiny"].model_copy(update={"name": "stub", "short_side": 96, "patch": 8})
    model = LoadedModel(
        backbone=ColorBackbone(),  # type: ignore[arg-type]  # stands in for it
        entry=entry,
        weights_source="none",
        sha256="0" * 64,
        version="1",
        dtype="float32",
    )
    return replace(model, **changes)
