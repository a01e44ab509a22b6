"""A registry entry and a worker's settings -> a model ready to run; bare errors become expected failures here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from uvos.contract import Clustering
from uvos.errors import WeightsInvalid, WeightsUnavailable
from uvos.models import MODELS, ModelEntry
from worker.models.backbone import Backbone, create_vit
from worker.models.weights import BlockWeights, Preprocessing, UnusableWeights, Weights, fits, load_into, read_weights

Dtype = Literal["auto", "float32", "bfloat16"]

PACKAGED = Path(__file__).parent
SUFFIXES = (".safetensors", ".pth")  # of files in the weights folder, the one to prefer first
HUB_FILE = "model.safetensors"
HUB_TIMEOUT_S = 3.0  # to answer at all; the hub's own client would try for 23 s where there is no network
# The hub's library has changed its HTTP client before: what its own error descends from covers the client's errors.
HUB_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    *(error for error in HfHubHTTPError.__mro__ if issubclass(error, Exception) and error is not Exception),
)
PAPER_MODEL = "dino-vits8"  # what a block belongs to whose file does not say: none was ever released for another


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and what a manifest says of it.

    Attributes:
        entry: Of the registry, with what the weights' own metadata changes in it.
        weights_source: Where they came from: the package, a file (by name, clients read this), or the hub.
        sha256: Of the file with the ViT.
        version: Of the weights.
        dtype: Of the ViT's layers, as "float32" or "bfloat16"; never "auto".
    """

    backbone: Backbone
    entry: ModelEntry
    weights_source: str
    sha256: str
    version: str
    dtype: str

    @property
    def device(self) -> torch.device:
        return self.backbone.device


def load_model(
    entry: ModelEntry | None,
    *,
    weights: Path | None = None,
    weights_dir: Path | None = None,
    allow_hub: bool = True,
    device: str | torch.device = "auto",
    dtype: Dtype = "auto",
    clustering: Clustering = Clustering.algorithm1,
) -> LoadedModel:
    """Load a model: once, in the process that keeps it warm.

    Weights are looked for in this order: `weights`; the package; `weights_dir/<name>.safetensors` or `.pth`; the
    hub's cache; the hub. Other weights never take their place.

    Args:
        entry: Of the registry; None to recognise it from `weights`.
        weights: A file to use instead of the entry's own weights, in any format of `worker.models.weights`. One that
            holds a block alone goes behind the entry's own weights.
        weights_dir: Where weights lie that were fetched by hand.
        allow_hub: Whether the hub may be asked.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
        dtype: "auto" is bfloat16 where the device multiplies it fast, but float32 for the released checkpoint and
            for the windowed clustering, which amplify rounding.
        clustering: What the tokens are for; decides "auto" alone.

    Raises:
        WeightsUnavailable: They are not here and the hub does not give them; names the file to fetch and its place.
        WeightsInvalid: The file cannot be read or does not fit; names the tensors at fault.
    """
    try:
        found = _find(entry, weights, weights_dir=weights_dir, allow_hub=allow_hub)
        entry = found.entry
        vit = create_vit(entry.timm_id, entry.timm_options, random=False)
        load_into(vit, found.vit.vit)
        place = choose_device(device)
        exact = found.vit.kind == "released" or clustering is Clustering.windowed
        layers = choose_dtype(dtype, device=place, exact=exact)
        preprocessing = Preprocessing(entry.mean, entry.std)
        backbone = Backbone(vit, preprocessing=preprocessing, facet=entry.facet, block=found.block, dtype=layers)
    except UnusableWeights as error:
        raise WeightsInvalid(str(error) if entry is None else f"for {entry.name}: {error}") from error
    return LoadedModel(
        backbone=backbone.to(place),
        entry=entry,
        weights_source=found.source,
        sha256=found.vit.sha256,
        version=entry.version,
        dtype=str(layers).removeprefix("torch."),
    )


def find_weights(entry: ModelEntry, *, weights_dir: Path | None, allow_hub: bool) -> tuple[Path, str]:
    """The file with a model's own weights, and its source in words; fetched from the hub where need be.

    Raises:
        WeightsUnavailable: There is none, or not within seconds.
    """
    if entry.is_packaged:
        return PACKAGED / entry.weights, f"package: {entry.weights}"
    for suffix in SUFFIXES:
        if weights_dir is not None and (path := weights_dir / f"{entry.name}{suffix}").is_file():
            return path, f"file: {path.name}"
    cached = try_to_load_from_cache(entry.weights, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached), f"hub: {entry.weights}"
    if not allow_hub:
        raise _unavailable(entry, weights_dir, "the hub may not be asked")
    return _fetch(entry, weights_dir), f"hub: {entry.weights}"


def has_weights(entry: ModelEntry, weights_dir: Path | None) -> bool:
    """Whether a model's weights are here, so that loading it asks no hub."""
    try:
        return find_weights(entry, weights_dir=weights_dir, allow_hub=False)[0].is_file()
    except WeightsUnavailable:
        return False


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device that is meant; "auto" is CUDA where there is one.

    Raises:
        ValueError: There is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {str(device)!r} here") from error
    return chosen


def choose_dtype(dtype: Dtype, *, device: torch.device, exact: bool) -> torch.dtype:
    """The dtype that is meant; `exact` is for what amplifies rounding."""
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    if exact:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # A CPU without tiles for it multiplies bfloat16 no faster, and some far slower.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if capabilities.get("amx_bf16", False) else torch.float32


@dataclass(frozen=True)
class _Found:
    """All that a model is made of, read but not yet put together."""

    entry: ModelEntry
    vit: Weights
    block: BlockWeights | None
    source: str


def _find(entry: ModelEntry | None, weights: Path | None, *, weights_dir: Path | None, allow_hub: bool) -> _Found:
    if weights is None:
        if entry is None:
            raise ValueError("expected a registry entry, or weights to recognise it from")
        own, source = _own_weights(entry, weights_dir=weights_dir, allow_hub=allow_hub)
        return _Found(entry, own, own.block or _entry_block(entry, weights_dir), source)
    given = read_weights(weights)
    entry = _entry_for(entry, given)
    own, source = given, f"file: {weights.name}"
    if given.kind == "block":
        own, source = _own_weights(entry, weights_dir=weights_dir, allow_hub=allow_hub)
        source = f"{source}, block: {weights.name}"
    return _Found(_described_by(entry, given, own), own, given.block or _entry_block(entry, weights_dir), source)


def _own_weights(entry: ModelEntry, *, weights_dir: Path | None, allow_hub: bool) -> tuple[Weights, str]:
    """A model's own weights and their source, checked against the registry where it knows them."""
    path, source = find_weights(entry, weights_dir=weights_dir, allow_hub=allow_hub)
    weights = read_weights(path)
    if entry.sha256 is not None and weights.sha256 != entry.sha256:
        raise UnusableWeights(f"{path} is not the file of version {entry.version}: its sha256 is {weights.sha256}")
    return weights, source


def _entry_for(entry: ModelEntry | None, given: Weights) -> ModelEntry:
    """The entry that a file of weights belongs to; it must be the one asked for, if any was."""
    found = _recognise(given, first=entry)
    if entry is None:
        if found is None:
            raise UnusableWeights("the weights fit no model of the registry; name a model to see what differs")
        return found
    if found not in (None, entry):
        raise UnusableWeights(f"the weights are those of {found.name}")
    return entry


def _recognise(given: Weights, *, first: ModelEntry | None) -> ModelEntry | None:
    """The model that a file is for: by what it says of itself, else by names and shapes, `first` tried first."""
    if given.kind == "block":
        named = given.block.backbone if given.block is not None else None
        return MODELS.get(named) if named is not None else first or MODELS[PAPER_MODEL]
    if given.metadata.get("model") in MODELS:
        return MODELS[given.metadata["model"]]
    patch = given.vit["patch_embed.proj.weight"].shape[-1]
    candidates = [first] if first is not None else []
    candidates += [entry for entry in MODELS.values() if entry.patch == patch]
    return next((entry for entry in candidates if fits(_shapes_of(entry), given.vit)), None)


def _shapes_of(entry: ModelEntry) -> torch.nn.Module:
    """The model without memory for its weights: enough to compare names and shapes."""
    with torch.device("meta"):
        return create_vit(entry.timm_id, entry.timm_options)


def _described_by(entry: ModelEntry, given: Weights, own: Weights) -> ModelEntry:
    """The entry with what a file of weights changes in it."""
    changes: dict[str, object] = {
        "version": given.metadata.get("version", f"file-{given.sha256[:12]}"),
        "weights": f"{given.kind} file",
        "sha256": own.sha256,
    }
    if given.block is not None and given.block.preprocessing is not None:
        changes |= {"mean": given.block.preprocessing.mean, "std": given.block.preprocessing.std}
    return entry.model_copy(update=changes)


def _entry_block(entry: ModelEntry, weights_dir: Path | None) -> BlockWeights | None:
    """The trained block that the entry names, from the package or the weights folder."""
    if entry.block is None:
        return None
    for folder in (PACKAGED, weights_dir):
        if folder is not None and (path := folder / entry.block).is_file():
            return read_weights(path).block
    place = weights_dir or "the weights folder"
    raise WeightsUnavailable(f"{entry.name} needs its block {entry.block}: put it into {place}")


def _fetch(entry: ModelEntry, weights_dir: Path | None) -> Path:
    """Download a model's weights into the hub's cache."""
    try:
        # Asked once and briefly before the download, whose client would try for 23 s where there is no network.
        get_hf_file_metadata(hf_hub_url(entry.weights, HUB_FILE), timeout=HUB_TIMEOUT_S)
        return Path(hf_hub_download(entry.weights, HUB_FILE))
    except HUB_ERRORS as error:
        answer = getattr(error, "response", None)
        if answer is not None and entry.gated and answer.status_code in (401, 403):
            why = "the hub wants its licence accepted and a token (HF_TOKEN) first"
        elif answer is not None:
            why = f"the hub answered {answer.status_code}"
        else:
            why = f"the hub cannot be reached ({type(error).__name__})"
        raise _unavailable(entry, weights_dir, why) from error


def _unavailable(entry: ModelEntry, weights_dir: Path | None, why: str) -> WeightsUnavailable:
    place = weights_dir / f"{entry.name}.safetensors" if weights_dir else f"<weights folder>/{entry.name}.safetensors"
    gated = f" ({entry.licence}: accept it there first)" if entry.gated else ""
    return WeightsUnavailable(
        f"the weights of {entry.name} are not here and {why}; "
        f"fetch {HUB_FILE} of {entry.weights} from the Hugging Face hub{gated} and put it at {place}"
    )
