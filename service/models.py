"""The registry's data: what each model is, its defaults, its licence, where its weights come from. No torch."""

from enum import StrEnum

from pydantic import Field

from service.contract import Contract, Mode, Motion
from service.errors import UnknownModel

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

    name: str
    version: str
    """Of the weights; a new one whenever results may change."""
    description: str
    timm_id: str
    """The architecture in timm and the tag of its weights there."""
    timm_options: dict[str, int | float | bool | str] = Field(default_factory=dict)
    """What the architecture is made with beyond its defaults."""
    patch: int
    """Pixels a side."""
    mean: tuple[float, float, float] = DINO_MEAN
    std: tuple[float, float, float] = DINO_STD
    short_side: int
    """Default resolution: the frame's short side in pixels, aspect kept."""
    facet: Facet
    tau: dict[Mode, float]
    """Default merge threshold by mode, in nats."""
    motion: Motion = Motion.off
    weights: str
    """Where they come from: a package file, or the repository on the hub."""
    sha256: str | None = None
    """Of the weights' file; None where this project has never seen it."""
    block: str | None = None
    """A trained spatio-temporal block, as a package file; None: training-free."""
    licence: str
    gated: bool = False
    """The hub asks for an accepted licence first."""


MODELS: dict[str, ModelEntry] = {}


def find_model(name: str) -> ModelEntry:
    """The model of that name.

    Raises:
        UnknownModel: there is none.
    """
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownModel(f"there is no model {name!r}", limit=", ".join(MODELS), actual=name) from None
