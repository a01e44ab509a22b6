"""A model is loaded from where it should come, or the failure says what to do; no other weights take its place."""

import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

from tests.worker.models import checkpoints
from tests.worker.models.hub import point_hub_at
from uvos.contract import Clustering
from uvos.errors import WeightsInvalid, WeightsUnavailable
from uvos.models import MODELS
from uvos.weights import is_installed
from worker.models import fetching, loading
from worker.models.backbone import create_vit
from worker.models.loading import choose_device, choose_dtype, load_model
from worker.models.weights import Preprocessing, export_block, file_sha256, write_backbone

CPU = torch.device("cpu")
PIXELS = torch.randint(0, 256, (1, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SHALLOW = MODELS["dino-vits8"].model_copy(update={"timm_options": {"depth": 2}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A weights folder with the DINO weights, and beside it what people may give as --weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(checkpoints.dino_state(layers=2), folder / "dino-vits8.pth")
    torch.save(checkpoints.released_checkpoint(layers=2), folder / "released.pth")
    export_block(folder / "released.pth", folder / "block.safetensors")
    return folder


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An empty cache of the hub, and a hub whose host does not exist."""
    point_hub_at(monkeypatch, "http://hub.invalid", tmp_path)


@pytest.mark.usefixtures("no_hub")
def test_the_packaged_model_needs_nothing_else():
    loaded = load_model(MODELS["tiny"], allow_hub=False, device="cpu")
    assert loaded.entry is MODELS["tiny"]
    assert loaded.weights_source == "package: tiny.safetensors"
    assert (loaded.sha256, loaded.version) == (MODELS["tiny"].sha256, MODELS["tiny"].version)
    assert loaded.backbone.patch == MODELS["tiny"].patch
    assert torch.isfinite(loaded.backbone.project(PIXELS).keys).all()
    assert is_installed(MODELS["tiny"], None)


def test_a_packaged_file_that_was_changed_is_refused(monkeypatch, tmp_path):
    entry = MODELS["tiny"]
    write_backbone(
        tmp_path / entry.weights, create_vit(entry.timm_id, entry.timm_options), model="tiny", version=entry.version
    )
    monkeypatch.setattr(loading, "PACKAGED", tmp_path)
    with pytest.raises(WeightsInvalid, match="SHA-256"):
        load_model(entry, device="cpu")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.usefixtures("no_hub")
def test_a_file_in_the_weights_folder_is_used(folder, tmp_path, suffix):
    path = tmp_path / f"dino-vits8{suffix}"
    shutil.copy(folder / "dino-vits8.pth", path)
    assert is_installed(SHALLOW, tmp_path)
    loaded = load_model(SHALLOW, weights_dir=tmp_path, device="cpu")
    assert loaded.weights_source == f"file: {path.name}"
    assert loaded.sha256 == file_sha256(path)
    assert loaded.backbone.preprocessing == Preprocessing(SHALLOW.mean, SHALLOW.std, "timm")
    assert loaded.backbone.block is None


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny"])
@pytest.mark.usefixtures("no_hub")
def test_every_model_without_weights_says_what_to_fetch_and_where_to_put_it(name, tmp_path):
    entry = MODELS[name]
    assert not is_installed(entry, tmp_path)
    with pytest.raises(WeightsUnavailable) as caught:
        load_model(entry, weights_dir=tmp_path, allow_hub=False, device="cpu")
    assert f"model.safetensors of {entry.weights}" in caught.value.detail
    assert str(tmp_path / f"{name}.safetensors") in caught.value.detail
    assert ("accept" in caught.value.detail) == entry.gated


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("no_hub")
def test_every_model_loads_from_a_file_in_timm_s_format(name, tmp_path):
    small = MODELS[name].timm_options | {"depth": 1, "embed_dim": 96, "num_heads": 3}
    shallow = MODELS[name].model_copy(update={"timm_options": small, "weights": f"timm/{name}", "sha256": None})
    vit = create_vit(shallow.timm_id, shallow.timm_options)
    torch.save(vit.state_dict(), tmp_path / f"{name}.pth")
    loaded = load_model(shallow, weights_dir=tmp_path, allow_hub=False, device="cpu", dtype="float32")
    rows = loaded.backbone.patch_tokens(PIXELS, size=(shallow.patch, 2 * shallow.patch))
    assert rows.shape == (1, 2, vit.embed_dim)
    assert (loaded.backbone.patch, loaded.backbone.facet) == (shallow.patch, shallow.facet)


@pytest.mark.usefixtures("no_hub")
def test_a_host_without_network_fails_within_seconds(tmp_path):
    begin = time.monotonic()
    with pytest.raises(WeightsUnavailable, match=r"the hub cannot be reached .*dino-vits8\.safetensors"):
        load_model(MODELS["dino-vits8"], weights_dir=tmp_path, device="cpu")
    assert time.monotonic() - begin < 10  # under load; alone 0.2 s


def test_a_hub_that_does_not_answer_fails_within_seconds(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_hub_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        monkeypatch.setattr(fetching, "HUB_TIMEOUT_S", 0.3)
        begin = time.monotonic()
        with pytest.raises(WeightsUnavailable, match="cannot be reached"):
            load_model(MODELS["dino-vits8"], device="cpu")
        assert time.monotonic() - begin < 10


def test_a_released_checkpoint_brings_its_block_its_preprocessing_and_float32(folder):
    loaded = load_model(SHALLOW, weights=folder / "released.pth", device="cpu")
    assert loaded.backbone.block is not None
    assert loaded.backbone.preprocessing.positions == "dino"
    assert loaded.entry.mean == loaded.backbone.preprocessing.mean
    assert (loaded.dtype, loaded.weights_source) == ("float32", "file: released.pth")
    assert loaded.version.startswith("file-")


@pytest.mark.usefixtures("no_hub")
def test_a_backbone_with_an_exported_block_is_the_paper_s_model(folder):
    whole = load_model(SHALLOW, weights=folder / "released.pth", device="cpu", dtype="float32").backbone
    for loaded in (
        load_model(SHALLOW, weights=folder / "block.safetensors", weights_dir=folder, device="cpu", dtype="float32"),
        load_model(
            SHALLOW.model_copy(update={"block": "block.safetensors"}),
            weights_dir=folder,
            device="cpu",
            dtype="float32",
        ),
    ):
        assert loaded.backbone.preprocessing == whole.preprocessing
        assert "dino-vits8.pth" in loaded.weights_source
        wanted, found = whole.project(PIXELS), loaded.backbone.project(PIXELS)
        torch.testing.assert_close(found.queries, wanted.queries, rtol=1e-2, atol=1e-2)  # fp16 weights


def test_an_entry_s_block_that_is_not_there_is_said_so(folder):
    entry = SHALLOW.model_copy(update={"block": "nowhere.safetensors"})
    with pytest.raises(WeightsUnavailable, match=r"nowhere\.safetensors"):
        load_model(entry, weights_dir=folder, device="cpu")


def test_the_model_of_a_file_is_recognised(tmp_path):
    for name in ("dinov2-vits14-reg4", "dinov3-vits16", "tiny"):
        entry = MODELS[name]
        vit = create_vit(entry.timm_id, entry.timm_options)
        torch.save(vit.state_dict(), tmp_path / "file.pth")
        loaded = load_model(None, weights=tmp_path / "file.pth", device="cpu")
        assert loaded.entry.name == name
        assert loaded.entry.sha256 == loaded.sha256


def test_a_file_for_another_model_is_refused(folder, tmp_path):
    with pytest.raises(WeightsInvalid, match=r"for dino-vits16: .*another shape: .*patch_embed\.proj\.weight"):
        load_model(MODELS["dino-vits16"], weights=folder / "dino-vits8.pth", device="cpu")
    vit = create_vit(MODELS["tiny"].timm_id, MODELS["tiny"].timm_options)
    write_backbone(tmp_path / "own.safetensors", vit, model="tiny", version="1")
    with pytest.raises(WeightsInvalid, match="the weights are those of tiny"):
        load_model(MODELS["dino-vits16"], weights=tmp_path / "own.safetensors", device="cpu")
    torch.save({"patch_embed.proj.weight": torch.zeros(5, 3, 8, 8)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsInvalid, match="fit no model"):
        load_model(None, weights=tmp_path / "odd.pth", device="cpu")


def test_a_damaged_file_is_refused_and_nothing_takes_its_place(folder, tmp_path):
    (tmp_path / "dino-vits8.safetensors").write_bytes(b"not weights")
    shutil.copy(folder / "dino-vits8.pth", tmp_path)
    with pytest.raises(WeightsInvalid, match=r"dino-vits8\.safetensors"):
        load_model(SHALLOW, weights_dir=tmp_path, device="cpu")


def test_auto_dtype_is_float32_for_what_amplifies_rounding(folder):
    fast = choose_dtype("auto", device=CPU, exact=False)
    assert load_model(MODELS["tiny"], device="cpu").dtype == str(fast).removeprefix("torch.")
    assert load_model(MODELS["tiny"], device="cpu", clustering=Clustering.windowed).dtype == "float32"
    for dtype in ("float32", "bfloat16"):
        loaded = load_model(SHALLOW, weights=folder / "released.pth", device="cpu", dtype=dtype)
        assert loaded.dtype == dtype
        assert loaded.backbone.dtype == getattr(torch, dtype)


def test_auto_device_is_the_gpu_where_there_is_one():
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU
    for unknown in ("cuda:99", "nonsense"):
        with pytest.raises(ValueError, match="no device"):
            choose_device(unknown)
