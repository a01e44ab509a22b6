"""Untrained baselines for the evaluation of trained models; they use the same pipeline, motion included."""

from pathlib import Path
from typing import cast, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.settings import Settings
from uvos.contract import Clustering
from uvos.errors import InvalidParameters
from uvos.models import ModelEntry, find_model
from worker.models.backbone import Backbone, Projections, create_vit
from worker.models.loading import Dtype, LoadedModel, choose_device, choose_dtype, load_model
from worker.models.weights import Preprocessing
from worker.video.clip import PatchGrid

TRAINED = "tiny"  # the model whose size, patch and defaults the baselines share
COLOUR_POSITION, RANDOM = "colour-position", "random"
SEED = 0

COLOUR_SCALE = 10.0  # CIELAB distance at which attention falls to exp(-1/2)
POSITION_SCALE = 0.25  # the same for positions, relative to the frame's height
BATCH = 16  # frames


class ColourPosition:
    """Attention by colour and position without training: the logit of patches i and j is -|x_i - x_j|² / 2.

    x is the mean colour of the patch in CIELAB and its position, each divided by its scale. As a product, up to a
    constant of i that softmax ignores: (x_i, 1)·(x_j, -|x_j|² / 2).
    """

    block = None

    def __init__(self, patch: int, device: torch.device) -> None:
        self.patch = patch
        self.device = device

    def grid(self, size: tuple[int, int]) -> PatchGrid:
        """The patch grid of frames of (H, W) pixels."""
        return PatchGrid(size[0] // self.patch, size[1] // self.patch)

    def batch_size(self, _size: tuple[int, int]) -> int:
        return BATCH

    def project(self, frames: Tensor, *, size: tuple[int, int] | None = None) -> Projections:
        """Queries and keys of every patch; arguments and result as `Backbone.project`."""
        size = size or (frames.shape[1], frames.shape[2])
        grid = self.grid(size)
        x = torch.from_numpy(np.stack([self._features(frame, grid) for frame in frames.cpu().numpy()]))  # (B, N, 5)
        x = x.to(self.device)
        one = torch.ones_like(x[..., :1])
        queries, keys = torch.cat([x, one], -1), torch.cat([x, -0.5 * (x**2).sum(-1, keepdim=True)], -1)
        depth = queries.shape[-1]
        return Projections(queries[:, :, None] * depth**0.5, keys[:, :, None])  # attention divides by sqrt(d)

    def _features(self, frame: NDArray[np.uint8], grid: PatchGrid) -> NDArray[np.float32]:
        small = cv2.resize(frame, (grid.width, grid.height), interpolation=cv2.INTER_AREA)
        colour = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / COLOUR_SCALE
        y, x = np.mgrid[: grid.height, : grid.width].astype(np.float32) / (grid.height * POSITION_SCALE)
        return np.dstack([colour, y, x]).reshape(grid.tokens, 5).astype(np.float32)


def load(
    name: str | None, *, weights: Path | None, settings: Settings, dtype: str, clustering: Clustering
) -> LoadedModel:
    """A model to evaluate: an untrained baseline by its name, else a model of the registry.

    Raises:
        InvalidParameters: The dtype is unknown, or weights are given for a baseline.
        UvosError: As `load_model`.
    """
    if dtype not in get_args(Dtype):
        raise InvalidParameters(f"--dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")
    kind = cast(Dtype, dtype)
    if name in (COLOUR_POSITION, RANDOM):
        if weights is not None:
            raise InvalidParameters(f"--weights: the baseline {name} has no weights; leave it out")
        if name == COLOUR_POSITION:
            return colour_position_model(device=settings.device)
        return random_model(device=settings.device, dtype=kind)
    return load_model(
        find_model(name or settings.default_model) if name or weights is None else None,
        weights=weights,
        weights_dir=settings.weights_folder,
        allow_hub=settings.allow_hub,
        device=settings.device,
        dtype=kind,
        clustering=clustering,
    )


def colour_position_model(*, device: str = "auto") -> LoadedModel:
    """The baseline of colour and position."""
    entry = _entry(COLOUR_POSITION, "Mean colour and position of each patch; untrained.")
    backbone = ColourPosition(entry.patch, choose_device(device))
    return LoadedModel(
        backbone=cast(Backbone, backbone),  # it has every attribute that the pipeline uses
        entry=entry,
        weights_source="none",
        sha256="none",
        version=entry.version,
        dtype="float32",
    )


def random_model(*, device: str = "auto", dtype: Dtype = "auto") -> LoadedModel:
    """The baseline of random weights: the architecture of the packaged model, from a fixed seed."""
    entry = _entry(RANDOM, "The packaged architecture with random weights.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        vit = create_vit(entry.timm_id, entry.timm_options)
    place = choose_device(device)
    layers = choose_dtype(dtype, device=place, exact=False)
    preprocessing = Preprocessing(entry.mean, entry.std)
    return LoadedModel(
        backbone=Backbone(vit, preprocessing=preprocessing, facet=entry.facet, dtype=layers).to(place),
        entry=entry,
        weights_source=f"random, seed {SEED}",
        sha256="none",
        version=entry.version,
        dtype=str(layers).removeprefix("torch."),
    )


def _entry(name: str, description: str) -> ModelEntry:
    changes = {"name": name, "version": "0", "description": description, "block": None, "sha256": None}
    return find_model(TRAINED).model_copy(update=changes)
