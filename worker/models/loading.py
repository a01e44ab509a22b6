"""Load a model of the registry: find its weights, build the backbone, choose device and dtype."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from uvos.contract import Affinity, Clustering
from uvos.errors import InvalidParameters, WeightsInvalid, WeightsUnavailable
from uvos.models import MODELS, ModelEntry
from uvos.weights import HUB_FILE, LocalWeights, find_local_weights
from worker.models.backbone import Backbone, create_vit
from worker.models.fetching import convert_package_file, fetch_from_hub
from worker.models.int8 import quantize_linear_layers
from worker.models.weights import BlockWeights, Preprocessing, UnusableWeights, Weights, fits, load_into, read_weights

Dtype = Literal["auto", "float32", "bfloat16", "int8"]

PACKAGED = Path(__file__).parent
INT8_MODELS = frozenset({"dinov2-vits14"})
"""Models that "auto" computes in int8 on CPUs with VNNI: their masks are as good (docs/method.md)."""
PAPER_MODEL = "dino-vits8"  # backbone of a block whose file names none: the only one with a released checkpoint


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory and the facts that the manifest states.

    Attributes:
        backbone: The ViT and its block.
        entry: Registry entry, updated by the metadata of the weights.
        weights_source: Origin of the weights: a package, a file (its name without folders), or the hub.
        sha256: SHA-256 of the file with the ViT.
        version: Version of the weights.
        dtype: dtype of the ViT's linear layers: "float32", "bfloat16" or "int8".
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

    def affinity(self, requested: Affinity) -> Affinity | None:
        """What attention compares: the requested affinity, or None where a trained block gives queries and keys."""
        return requested if self.backbone.block is None else None


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
    """Load a model; weights are searched in the order of `find_weights` and never replaced by others.

    Args:
        entry: Registry entry; None to recognise the model from `weights`.
        weights: A file to use instead of the entry's own weights, in any format of `worker.models.weights`. A file
            with only a block is combined with the entry's own weights.
        weights_dir: Folder of fetched weights.
        allow_hub: Whether weights may be downloaded from the hub.
        device: "auto" (CUDA where available), "cpu", "cuda", "cuda:1", ...
        dtype: "auto" is bfloat16 where the device computes it fast, int8 for models of `INT8_MODELS` on a CPU with
            fast products of integers, but float32 for the released checkpoint and for windowed clustering, which
            amplify rounding.
        clustering: The clustering that will use the features; affects only the dtype "auto".

    Raises:
        WeightsUnavailable: There are no weights and none could be downloaded; names the ways to get them.
        WeightsInvalid: The file cannot be read or does not fit; names the tensors at fault.
        InvalidParameters: int8 is requested on another device than a CPU.
    """
    try:
        found = _find(entry, weights, weights_dir=weights_dir, allow_hub=allow_hub)
        entry = found.entry
        vit = create_vit(entry.timm_id, entry.timm_options, random=False)
        load_into(vit, found.vit.vit)
        place = choose_device(device)
        exact = found.vit.kind == "released" or clustering is Clustering.windowed
        layers = choose_dtype(dtype, device=place, exact=exact, allow_int8=entry.name in INT8_MODELS)
        if layers is torch.int8:
            quantize_linear_layers(vit)
        preprocessing = Preprocessing(entry.mean, entry.std)
        backbone = Backbone(
            vit,
            preprocessing=preprocessing,
            facet=entry.facet,
            block=found.block,
            dtype=torch.float32 if layers is torch.int8 else layers,
            with_cues=entry.saliency,
        )
    except UnusableWeights as error:
        raise WeightsInvalid(str(error) if entry is None else f"for {entry.name}: {error}") from error
    return LoadedModel(
        backbone=backbone.to(place),
        entry=entry,
        weights_source=found.source,
        sha256=found.vit.sha256,
        version=found.version,
        dtype=str(layers).removeprefix("torch."),
    )


@dataclass(frozen=True)
class FoundWeights:
    """A model's own weights on this machine.

    Attributes:
        path: The file.
        source: Its origin as the manifest states it.
        sha256: Expected SHA-256; None where the file may be any that fits, as in the weights folder.
    """

    path: Path
    source: str
    sha256: str | None = None


def find_weights(entry: ModelEntry, *, weights_dir: Path | None, allow_hub: bool) -> FoundWeights:
    """Find a model's own weights; download or convert them where necessary.

    Order: this package; `weights_dir/<name>.safetensors` or `.pth`; an installed distribution with weights of the
    model, converted into `weights_dir` once; the hub's cache; the hub.

    Raises:
        WeightsUnavailable: There are none; names the ways to get them.
        WeightsInvalid: A download or an installed file has another SHA-256 than the registry's.
    """
    if entry.is_packaged:
        return FoundWeights(PACKAGED / entry.weights, f"package: {entry.weights}", entry.sha256)
    local = find_local_weights(entry, weights_dir)
    if local is not None and local.source == "package" and weights_dir is not None:
        local = LocalWeights(convert_package_file(entry, local.path, weights_dir), "file")
    if local is not None and local.source == "file":
        return FoundWeights(local.path, f"file: {local.path.name}")
    if local is not None:
        return FoundWeights(local.path, f"hub: {entry.weights}", entry.sha256)
    if not allow_hub:
        raise weights_unavailable(entry, weights_dir, "downloads from the hub are disabled (UVOS_ALLOW_HUB)")
    try:
        return FoundWeights(fetch_from_hub(entry), f"hub: {entry.weights}", entry.sha256)
    except WeightsUnavailable as error:
        raise weights_unavailable(entry, weights_dir, error.detail) from error


def weights_unavailable(entry: ModelEntry, weights_dir: Path | None, reason: str) -> WeightsUnavailable:
    """The error for missing weights: the reason and every way to get them."""
    path = weights_dir / f"{entry.name}.safetensors" if weights_dir else f"<weights folder>/{entry.name}.safetensors"
    gated = f" ({entry.licence}: accept it there first)" if entry.gated else ""
    package = f", or run `uvos-worker weights fetch {entry.name} --from package`" if entry.package else ""
    return WeightsUnavailable(
        f"the weights of {entry.name} are not on this machine and {reason}; download {HUB_FILE} of {entry.weights} "
        f"from the Hugging Face hub{gated} to {path}{package}"
    )


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Resolve a device name; "auto" is CUDA where available.

    Raises:
        ValueError: This machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"this machine has no device {str(device)!r}") from error
    return chosen


def choose_dtype(dtype: Dtype, *, device: torch.device, exact: bool, allow_int8: bool = False) -> torch.dtype:
    """Resolve a dtype name.

    Args:
        dtype: "auto" or the name of a torch dtype.
        device: Device of the ViT.
        exact: Whether "auto" is float32, for procedures that amplify rounding.
        allow_int8: Whether "auto" may be int8.

    Raises:
        InvalidParameters: int8 on another device than a CPU.
    """
    if dtype == "int8" and device.type != "cpu":
        raise InvalidParameters(f"dtype int8 is for a CPU, the device is {device}: choose float32 or bfloat16")
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if exact:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # A CPU without AMX computes bfloat16 products no faster than float32, some CPUs far slower.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("amx_bf16", False):
        return torch.bfloat16
    return torch.int8 if allow_int8 and capabilities.get("avx512_vnni", False) else torch.float32


@dataclass(frozen=True)
class _Found:
    """Parts of a model before assembly."""

    entry: ModelEntry
    vit: Weights
    block: BlockWeights | None
    source: str
    version: str


def _find(entry: ModelEntry | None, weights: Path | None, *, weights_dir: Path | None, allow_hub: bool) -> _Found:
    if weights is None:
        if entry is None:
            raise ValueError("expected a registry entry, or weights to recognise it from")
        own, source = _own_weights(entry, weights_dir=weights_dir, allow_hub=allow_hub)
        version = entry.version if entry.is_packaged else own.metadata.get("version", entry.version)
        return _Found(entry, own, own.block or _entry_block(entry, weights_dir), source, version)
    given = read_weights(weights)
    entry = _entry_of(entry, given)
    own, source = given, f"file: {weights.name}"
    if given.kind == "block":
        own, source = _own_weights(entry, weights_dir=weights_dir, allow_hub=allow_hub)
        source = f"{source}, block: {weights.name}"
    entry = _described_by(entry, given, own)
    return _Found(entry, own, given.block or _entry_block(entry, weights_dir), source, entry.version)


def _own_weights(entry: ModelEntry, *, weights_dir: Path | None, allow_hub: bool) -> tuple[Weights, str]:
    """A model's own weights and their source; the SHA-256 is checked where it is known."""
    found = find_weights(entry, weights_dir=weights_dir, allow_hub=allow_hub)
    weights = read_weights(found.path)
    if found.sha256 is not None and weights.sha256 != found.sha256:
        raise UnusableWeights(f"{found.path} has SHA-256 {weights.sha256}, expected {found.sha256}")
    return weights, weights.metadata.get("source", found.source)


def _entry_of(entry: ModelEntry | None, given: Weights) -> ModelEntry:
    """The entry of the model that a file belongs to; an error if another one was requested."""
    found = _recognise(given, first=entry)
    if entry is None:
        if found is None:
            raise UnusableWeights("the weights fit no model of the registry; name a model to see what differs")
        return found
    if found not in (None, entry):
        raise UnusableWeights(f"the weights are those of {found.name}")
    return entry


def _recognise(given: Weights, *, first: ModelEntry | None) -> ModelEntry | None:
    """The model of a file, from its metadata or its names and shapes; `first` is tried first."""
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
    """The model on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return create_vit(entry.timm_id, entry.timm_options)


def _described_by(entry: ModelEntry, given: Weights, own: Weights) -> ModelEntry:
    """The entry updated by a file of weights."""
    changes: dict[str, object] = {
        "version": given.metadata.get("version", f"file-{given.sha256[:12]}"),
        "weights": f"{given.kind} file",
        "sha256": own.sha256,
    }
    if given.block is not None and given.block.preprocessing is not None:
        changes |= {"mean": given.block.preprocessing.mean, "std": given.block.preprocessing.std}
    return entry.model_copy(update=changes)


def _entry_block(entry: ModelEntry, weights_dir: Path | None) -> BlockWeights | None:
    """The trained block named by the entry, from the package or the weights folder."""
    if entry.block is None:
        return None
    for folder in (PACKAGED, weights_dir):
        if folder is not None and (path := folder / entry.block).is_file():
            return read_weights(path).block
    place = weights_dir or "the weights folder"
    raise WeightsUnavailable(f"{entry.name} needs its block {entry.block}: copy it to {place}")
