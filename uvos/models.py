"""The registry's data: what each model is, its defaults, its licence, where its weights come from. No torch."""

from enum import StrEnum

from pydantic import Field

from uvos.contract import Contract, Mode, Motion
from uvos.errors import UnknownModel

DINO_MEAN = (0.485, 0.456, 0.406)
DINO_STD = (0.229, 0.224, 0.225)


class Facet(StrEnum):
    """Which features of the last layer are the tokens."""

    key = "key"
    """The keys of the last attention layer, heads concatenated."""
    token = "token"
    """The output tokens, after the last norm."""


class ModelEntry(Contract):
    """One model of the registry."""

    name: str = Field(examples=["dino-vits8"])
    """What a job calls it."""
    version: str = Field(examples=["dino"])
    """Of the weights; a new one whenever results may change."""
    description: str = Field(examples=["DINO ViT-S/8: the paper's own backbone, fine outlines."])
    """In a sentence."""
    timm_id: str = Field(examples=["vit_small_patch8_224.dino"])
    """The architecture in timm and the tag of its weights there; VisionTransformer: timm's class itself."""
    timm_options: dict[str, int | float | bool | str] = Field(default_factory=dict, examples=[{"img_size": 224}])
    """What the architecture is made with beyond its defaults."""
    patch: int = Field(examples=[8])
    """Pixels a side."""
    mean: tuple[float, float, float] = Field(DINO_MEAN, examples=[[0.485, 0.456, 0.406]])
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float] = Field(DINO_STD, examples=[[0.229, 0.224, 0.225]])
    """RGB is divided by it."""
    short_side: int = Field(examples=[320])
    """Default resolution: the frame's short side in pixels, aspect kept."""
    facet: Facet
    """Its tokens."""
    tau: dict[Mode, float]
    """Default merge threshold by mode, in nats."""
    motion: Motion = Motion.off
    """Whether motion is joined to the tokens by default."""
    weights: str = Field(examples=["timm/vit_small_patch8_224.dino"])
    """Where they come from: a package file, or the repository on the hub."""
    sha256: str | None = Field(None, examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """Of the weights' file; None where this project has never seen it."""
    block: str | None = Field(None, examples=["tiny-block.safetensors"])
    """A trained spatio-temporal block, as a package file; None: training-free."""
    licence: str = Field(examples=["Apache-2.0"])
    """Of the weights."""
    gated: bool = False
    """The hub asks for an accepted licence first."""

    @property
    def is_packaged(self) -> bool:
        """Whether the weights lie in the package, and no hub is needed."""
        return self.weights.endswith(".safetensors")


PAPER_TAU = {Mode.multi: 1.0, Mode.single: 1.6}  # sections 4.2 and 4.3 of the paper; ours where nothing was measured


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


# The paper's resolution is 320x480: a short side of 320 pixels, or the nearest multiple of the patch. The key facet
# is the paper's choice for DINO; for DINOv2 and DINOv3 the output tokens are reported to be the better one.
_ENTRIES = (
    ModelEntry(
        name="tiny",
        version="3",
        description="A small ViT of this project's own, in the package, trained without labels; joins motion.",
        timm_id="VisionTransformer",
        timm_options={"img_size": 192, "patch_size": 8, "embed_dim": 192, "depth": 8, "num_heads": 3},
        patch=8,
        short_side=192,
        facet=Facet.key,
        tau={Mode.multi: 1.4, Mode.single: 1.4},  # by the rule of docs/models/tiny.md
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
        description="DINO ViT-S/16: four times fewer tokens than S/8, coarse outlines, quick even on a CPU.",
    ),
    _hub_model(
        "dino-vits8",
        "vit_small_patch8_224.dino",
        patch=8,
        short_side=320,
        facet=Facet.key,
        description="DINO ViT-S/8: the paper's own backbone, fine outlines.",
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
        description="DINO ViT-B/8: the largest of the DINO models, for a GPU.",
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
        description="DINOv2 ViT-B/14: the best FG-ARI of the paper's backbones.",
    ),
    _hub_model(
        "dinov2-vits14-reg4",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        patch=14,
        short_side=322,
        facet=Facet.token,
        description="DINOv2 ViT-S/14 with four registers, which keep artefacts out of the patch tokens.",
    ),
    _hub_model(
        "dinov2-vitb14-reg4",
        "vit_base_patch14_reg4_dinov2.lvd142m",
        patch=14,
        short_side=322,
        facet=Facet.token,
        description="DINOv2 ViT-B/14 with four registers.",
    ),
    _hub_model(
        "dinov3-vits16",
        "vit_small_patch16_dinov3.lvd1689m",
        patch=16,
        short_side=320,
        facet=Facet.token,
        description="DINOv3 ViT-S/16 with rotary positions; its licence must be accepted on the hub.",
        licence="DINOv3 License",
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _ENTRIES}


def find_model(name: str) -> ModelEntry:
    """The model of that name.

    Raises:
        UnknownModel: there is none.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownModel(f"there is no model {name!r}", limit=", ".join(MODELS), actual=name) from None
