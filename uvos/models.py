"""Model registry: names, defaults, licences and weight sources. Imports no torch."""

from enum import StrEnum

from pydantic import Field

from uvos.contract import JobParams, Mode, Motion, SegmentParams, StrictSchema
from uvos.errors import UnknownModel

DINO_MEAN = (0.485, 0.456, 0.406)
DINO_STD = (0.229, 0.224, 0.225)


class Facet(StrEnum):
    """Features of the last layer that serve as patch tokens."""

    key = "key"
    """Keys of the last attention layer, heads concatenated."""
    token = "token"
    """Output tokens, after the last norm."""


class ModelEntry(StrictSchema):
    """A model of the registry."""

    name: str = Field(examples=["dino-vits8"])
    """Name in the job parameter `model`."""
    version: str = Field(examples=["dino"])
    """Version of the weights; changes whenever results may change."""
    description: str = Field(examples=["DINO ViT-S/8: the main backbone of the paper, fine outlines."])
    """One-sentence description."""
    timm_id: str = Field(examples=["vit_small_patch8_224.dino"])
    """timm architecture and weights tag; VisionTransformer: the timm class itself."""
    timm_options: dict[str, int | float | bool | str] = Field(default_factory=dict, examples=[{"img_size": 224}])
    """Constructor arguments of the architecture that differ from its defaults."""
    patch: int = Field(examples=[8])
    """Patch side, pixels."""
    mean: tuple[float, float, float] = Field(DINO_MEAN, examples=[[0.485, 0.456, 0.406]])
    """Mean of the normalisation, RGB in [0, 1]."""
    std: tuple[float, float, float] = Field(DINO_STD, examples=[[0.229, 0.224, 0.225]])
    """Standard deviation of the normalisation, RGB in [0, 1]."""
    short_side: int = Field(examples=[320])
    """Default resolution: short side of the frame in pixels; the aspect ratio is kept."""
    facet: Facet
    """Features that serve as patch tokens."""
    tau: dict[Mode, float]
    """Default merge threshold by mode, nats."""
    motion: Motion = Motion.off
    """Whether motion is added to the tokens by default."""
    weights: str = Field(examples=["timm/vit_small_patch8_224.dino"])
    """Source of the weights: a file in the package, or a repository on the hub."""
    sha256: str | None = Field(None, examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """SHA-256 of the weights file; None if this project has never verified the file."""
    block: str | None = Field(None, examples=["tiny-block.safetensors"])
    """Trained spatio-temporal block, a file in the package; None: training-free."""
    licence: str = Field(examples=["Apache-2.0"])
    """Licence of the weights."""
    gated: bool = False
    """Whether the hub requires the licence to be accepted first."""

    @property
    def is_packaged(self) -> bool:
        """Whether the weights are part of the package and need no hub."""
        return self.weights.endswith(".safetensors")

    def complete(self, params: SegmentParams) -> JobParams:
        """Fill in the defaults that depend on the model: name, tau and motion."""
        chosen = {
            "model": self.name,
            "tau": params.tau or [self.tau[params.mode]],
            "motion": params.motion or self.motion,
        }
        return JobParams.model_validate(params.model_dump() | chosen)


PAPER_TAU = {
    Mode.multi: 1.0,
    Mode.single: 1.6,
}  # sections 4.2 and 4.3 of the paper; also the default of other models


def _hub_model(
    name: str, timm_id: str, *, patch: int, short_side: int, facet: Facet, description: str, licence: str = "Apache-2.0"
) -> ModelEntry:
    return ModelEntry(
        name=name,
        version=timm_id.rpartition(".")[2],
        description=description,
        timm_id=timm_id,
        patch=patch,
        short_side=short_side,
        facet=facet,
        tau=PAPER_TAU,
        weights=f"timm/{timm_id}",
        licence=licence,
        gated=licence != "Apache-2.0",
    )


# The resolution of the paper is 320x480: a short side of 320 pixels, or the nearest multiple of the patch. The paper
# uses the key facet of DINO; for DINOv2 and DINOv3, output tokens are reported to work better.
_ENTRIES = (
    ModelEntry(
        name="tiny",
        version="3",
        description="Small ViT of this project, part of the package, trained without labels; uses motion.",
        timm_id="VisionTransformer",
        timm_options={"img_size": 192, "patch_size": 8, "embed_dim": 192, "depth": 8, "num_heads": 3},
        patch=8,
        short_side=192,
        facet=Facet.key,
        tau={Mode.multi: 1.4, Mode.single: 1.4},  # chosen by the rule in docs/models/tiny.md
        motion=Motion.on,
        weights="tiny.safetensors",
        sha256="94f03eedc370327ed757aa73bf8f1fb53f1b77d6c1cec5c561e5446462d0ef5d",
        licence="Apache-2.0",
    ),
    _hub_model(
        "dino-vits16",
        "vit_small_patch16_224.dino",
        patch=16,
        short_side=320,
        facet=Facet.key,
        description="DINO ViT-S/16: a quarter of the tokens of S/8, coarse outlines, fast enough for a CPU.",
    ),
    _hub_model(
        "dino-vits8",
        "vit_small_patch8_224.dino",
        patch=8,
        short_side=320,
        facet=Facet.key,
        description="DINO ViT-S/8: the main backbone of the paper, fine outlines.",
    ),
    _hub_model(
        "dino-vitb16",
        "vit_base_patch16_224.dino",
        patch=16,
        short_side=320,
        facet=Facet.key,
        description="DINO ViT-B/16: wider than S/16 on the same grid.",
    ),
    _hub_model(
        "dino-vitb8",
        "vit_base_patch8_224.dino",
        patch=8,
        short_side=320,
        facet=Facet.key,
        description="DINO ViT-B/8: the largest DINO model, for a GPU.",
    ),
    _hub_model(
        "dinov2-vits14",
        "vit_small_patch14_dinov2.lvd142m",
        patch=14,
        short_side=322,
        facet=Facet.token,
        description="DINOv2 ViT-S/14.",
    ),
    _hub_model(
        "dinov2-vitb14",
        "vit_base_patch14_dinov2.lvd142m",
        patch=14,
        short_side=322,
        facet=Facet.token,
        description="DINOv2 ViT-B/14: the highest FG-ARI among the backbones in the paper.",
    ),
    _hub_model(
        "dinov2-vits14-reg4",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        patch=14,
        short_side=322,
        facet=Facet.token,
        description="DINOv2 ViT-S/14 with four register tokens, which reduce artefacts in the patch tokens.",
    ),
    _hub_model(
        "dinov2-vitb14-reg4",
        "vit_base_patch14_reg4_dinov2.lvd142m",
        patch=14,
        short_side=322,
        facet=Facet.token,
        description="DINOv2 ViT-B/14 with four register tokens.",
    ),
    _hub_model(
        "dinov3-vits16",
        "vit_small_patch16_dinov3.lvd1689m",
        patch=16,
        short_side=320,
        facet=Facet.token,
        description="DINOv3 ViT-S/16 with rotary position embedding; its licence must be accepted on the hub.",
        licence="DINOv3 License",
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def find_model(name: str) -> ModelEntry:
    """The model called `name`.

    Raises:
        UnknownModel: the registry has no such model.
    """
    try:
        return MODELS[name]
    except KeyError:
        known = ", ".join(MODELS)
        raise UnknownModel(f"unknown model {name!r}; the models are {known}", limit=known, actual=name) from None
