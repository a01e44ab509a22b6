"""Weights on this machine: the file of a model, and the best model available. Imports no torch."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from uvos.models import MODELS, ModelEntry

SUFFIXES = (".safetensors", ".pth")  # of files in the weights folder, in order of preference
HUB_FILE = "model.safetensors"
PREFERRED_MODELS = ("dinov2-vits14",)
"""Default models in order of preference: the first one whose weights are available, else FALLBACK_MODEL."""
FALLBACK_MODEL = "tiny"


@dataclass(frozen=True)
class LocalWeights:
    """A file of weights on this machine.

    Attributes:
        path: The file.
        source: "file", "package" (a file of an installed distribution, still to be converted) or "hub" (its cache).
    """

    path: Path
    source: str


def find_local_weights(entry: ModelEntry, weights_dir: Path | None) -> LocalWeights | None:
    """The weights of a model that is not part of this package: weights folder, installed package, hub cache."""
    for suffix in SUFFIXES:
        if weights_dir is not None and _is_file(path := weights_dir / f"{entry.name}{suffix}"):
            return LocalWeights(path, "file")
    if (installed := installed_package_file(entry)) is not None and weights_dir is not None and find_spec("onnx"):
        return LocalWeights(installed, "package")
    if (cached := _hub_cache_file(entry)) is not None:
        return LocalWeights(cached, "hub")
    return None


def _is_file(path: Path) -> bool:
    """Whether a file exists in a folder that may be read."""
    try:
        return path.is_file()
    except PermissionError:
        return False


def is_installed(entry: ModelEntry, weights_dir: Path | None) -> bool:
    """Whether a model loads without a download."""
    return entry.is_packaged or find_local_weights(entry, weights_dir) is not None


def best_model(weights_dir: Path | None) -> str:
    """Name of the best model whose weights are on this machine."""
    for name in PREFERRED_MODELS:
        if find_local_weights(MODELS[name], weights_dir) is not None:
            return name
    return FALLBACK_MODEL


def installed_package_file(entry: ModelEntry) -> Path | None:
    """The weights in an installed distribution of the version that the registry names; its code is not imported."""
    if entry.package is None:
        return None
    try:
        installed = distribution(entry.package.distribution)
    except PackageNotFoundError:
        return None
    path = Path(str(installed.locate_file(entry.package.file)))
    return path if installed.version == entry.package.version and path.is_file() else None


def _hub_cache_file(entry: ModelEntry) -> Path | None:
    """The file in the cache of huggingface_hub, which only workers have installed."""
    if "/" not in entry.weights or not find_spec("huggingface_hub"):
        return None
    from huggingface_hub import try_to_load_from_cache

    for revision in (entry.revision, "main"):
        cached = try_to_load_from_cache(entry.weights, HUB_FILE, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    return None
