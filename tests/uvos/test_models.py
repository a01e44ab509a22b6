"""The model registry: names, defaults, licences, packaged weights."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import worker
from uvos.contract import Mode
from uvos.errors import UnknownModel
from uvos.models import MODELS, Facet, find_model

NAMES = [
    "tiny",
    "dino-vits16",
    "dino-vits8",
    "dino-vitb16",
    "dino-vitb8",
    "dinov2-vits14",
    "dinov2-vitb14",
    "dinov2-vits14-reg4",
    "dinov2-vitb14-reg4",
    "dinov3-vits16",
]


def test_the_registry_has_all_models_and_begins_with_the_packaged_one():
    assert list(MODELS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_complete(name):
    entry = find_model(name)
    assert entry.name == name
    assert entry.short_side % entry.patch == 0
    assert all(entry.tau[mode] > 0 for mode in Mode)
    if not entry.is_packaged:  # the packaged one is measured in docs/models/tiny.md
        assert entry.tau[Mode.single] >= entry.tau[Mode.multi], "single merges further than multi"
    assert entry.description
    assert entry.licence
    assert entry.version
    assert type(entry).model_validate_json(entry.model_dump_json()) == entry


def test_the_patch_matches_the_timm_name():
    for name in NAMES[1:]:
        assert f"patch{find_model(name).patch}" in find_model(name).timm_id


def test_the_model_of_the_paper_has_its_defaults():
    entry = find_model("dino-vits8")
    assert (entry.patch, entry.short_side, entry.facet, entry.block) == (8, 320, Facet.key, None)
    assert (entry.tau[Mode.multi], entry.tau[Mode.single]) == (1.0, 1.6)


def test_only_dinov3_is_gated():
    assert [entry.name for entry in MODELS.values() if entry.gated] == ["dinov3-vits16"]
    assert {entry.licence for entry in MODELS.values() if not entry.gated} == {"Apache-2.0"}


def test_packaged_weights_match_the_registry():
    packaged = [entry for entry in MODELS.values() if entry.is_packaged]
    assert [entry.name for entry in packaged] == ["tiny"]
    for entry in packaged:
        file = Path(worker.__path__[0]) / "models" / entry.weights
        assert hashlib.sha256(file.read_bytes()).hexdigest() == entry.sha256
        assert file.stat().st_size <= 12e6


def test_an_unknown_name_is_rejected_with_the_known_ones():
    with pytest.raises(UnknownModel, match="vits7") as caught:
        find_model("dino-vits7")
    assert "dino-vits8" in str(caught.value.limit)


def test_the_registry_imports_no_torch():
    code = "import uvos.models, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
