"""Every format that people have is read for what it holds; nothing else is, and nothing in a file is run."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.worker.models import checkpoints
from worker.models.backbone import Backbone, create_vit
from worker.models.weights import (
    BlockWeights,
    Preprocessing,
    UnusableWeights,
    export_block,
    file_sha256,
    fits,
    load_into,
    read_weights,
    write_backbone,
    write_block,
)

LAYERS = 1
DINO = checkpoints.dino_state(layers=LAYERS)
RELEASED = checkpoints.released_checkpoint(layers=LAYERS)


def small_vit(patch: int = 8, *, random: bool = False):
    return create_vit(f"vit_small_patch{patch}_224.dino", {"depth": LAYERS}, random=random)


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in DINO.items()}


HEAD = {"head.mlp.0.weight": torch.zeros(3, 384), "head.last_layer.weight_v": torch.zeros(3, 3)}

WRAPPED = {
    "bare": DINO,
    "data-parallel": prefixed("module."),
    "DINO's student and teacher": {
        "student": prefixed("module.backbone."),
        "teacher": prefixed("backbone.") | {f"head.{name}": tensor for name, tensor in HEAD.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", patch_size=8),
    },
    "state_dict": {"state_dict": prefixed("module.") | HEAD, "epoch": 3},
    "timm with a head": DINO | {"head.weight": torch.zeros(1000, 384), "head.bias": torch.zeros(1000)},
    "compiled": {"model": prefixed("_orig_mod.")},
}


@pytest.mark.parametrize("content", WRAPPED.values(), ids=WRAPPED.keys())
def test_a_vit_is_found_in_whatever_it_is_wrapped_in(tmp_path, content):
    weights = read_weights(saved(content, tmp_path / "any-name.bin"))
    assert (weights.kind, weights.block) == ("timm", None)
    assert weights.vit.keys() == DINO.keys()
    assert all(torch.equal(weights.vit[name], tensor) for name, tensor in DINO.items())
    load_into(small_vit(), weights.vit)


def test_the_teacher_goes_before_the_student(tmp_path):
    student = {name: tensor + 1 for name, tensor in DINO.items()}
    weights = read_weights(saved({"student": student, "teacher": DINO}, tmp_path / "checkpoint.pth"))
    assert torch.equal(weights.vit["cls_token"], DINO["cls_token"])


def test_safetensors_are_known_by_their_first_bytes(tmp_path):
    safetensors.torch.save_file(DINO, tmp_path / "named.pth")
    weights = read_weights(tmp_path / "named.pth")
    assert weights.kind == "timm"
    assert weights.sha256 == file_sha256(tmp_path / "named.pth")


def test_a_released_checkpoint_has_a_vit_and_a_block(tmp_path):
    weights = read_weights(saved(RELEASED, tmp_path / "checkpoint.pth"))
    assert weights.kind == "released"
    assert weights.vit.keys() == DINO.keys()
    block = weights.block
    assert (block.heads, block.eps, block.preprocessing.positions) == (8, 1e-5, "dino")
    state = RELEASED["model_state_dict"]
    assert torch.equal(block.qk, state["temporal_transformer.0.attn.qkv.weight"][: 2 * 384])
    assert torch.equal(block.norm_weight, state["temporal_transformer.0.norm1.weight"])


def test_an_exported_block_is_small_and_the_same_to_half_precision(tmp_path):
    checkpoint = saved(RELEASED, tmp_path / "checkpoint.pth")
    export_block(checkpoint, tmp_path / "block.safetensors")
    assert 0.5e6 < (tmp_path / "block.safetensors").stat().st_size < 0.7e6
    exported, whole = read_weights(tmp_path / "block.safetensors"), read_weights(checkpoint)
    assert exported.kind == "block"
    assert exported.metadata["source_sha256"] == whole.sha256
    assert exported.block.preprocessing == whole.block.preprocessing
    assert (exported.block.heads, exported.block.eps) == (whole.block.heads, whole.block.eps)
    torch.testing.assert_close(exported.block.qk, whole.block.qk, rtol=1e-3, atol=1e-6)


def test_a_block_keeps_what_it_was_trained_behind(tmp_path):
    wanted = BlockWeights(
        torch.ones(6), torch.zeros(6), torch.ones(12, 6), heads=3, eps=1e-6,
        preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "timm"), backbone="tiny",
    )  # fmt: skip
    write_block(tmp_path / "block.safetensors", wanted, steps="20")
    found = read_weights(tmp_path / "block.safetensors")
    assert found.metadata["steps"] == "20"
    assert (found.block.preprocessing, found.block.backbone) == (wanted.preprocessing, "tiny")
    assert (found.block.heads, found.block.eps) == (3, 1e-6)


def test_our_own_file_holds_backbone_and_block(tmp_path):
    vit = small_vit(random=True)
    block = BlockWeights(torch.ones(384), torch.zeros(384), torch.ones(768, 384), heads=8)
    write_backbone(tmp_path / "own.safetensors", vit, model="tiny", version="3", block=block)
    weights = read_weights(tmp_path / "own.safetensors")
    assert weights.kind == "own"
    assert (weights.metadata["model"], weights.metadata["version"], weights.block.heads) == ("tiny", "3", 8)
    load_into(small_vit(), weights.vit)


def test_dinov2_s_own_names_become_timm_s(tmp_path):
    vit = create_vit("vit_small_patch14_reg4_dinov2.lvd142m", {"depth": LAYERS}, random=False)
    state = {name: torch.randn_like(tensor) for name, tensor in vit.state_dict().items()}
    theirs = {name: tensor for name, tensor in state.items() if name not in ("reg_token", "pos_embed")}
    # DINOv2 gives its class token a position of its own; timm adds the two up.
    position = torch.randn(1, 1, 384)
    theirs |= {
        "register_tokens": state["reg_token"],
        "cls_token": state["cls_token"] - position,
        "pos_embed": torch.cat((position, state["pos_embed"]), dim=1),
        "mask_token": torch.zeros(1, 384),
    }
    load_into(vit, read_weights(saved(theirs, tmp_path / "dinov2.pth")).vit)
    for name, tensor in vit.state_dict().items():
        torch.testing.assert_close(tensor, state[name])


def test_dinov3_s_own_names_become_timm_s(tmp_path):
    vit = create_vit("vit_small_patch16_dinov3.lvd1689m", {"depth": LAYERS}, random=False)
    state = {name: torch.randn_like(tensor) for name, tensor in vit.state_dict().items()}
    theirs = {
        name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens"): t
        for name, t in state.items()
    } | {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    theirs |= {"blocks.0.attn.qkv.bias": torch.zeros(3 * 384), "blocks.0.attn.qkv.bias_mask": torch.ones(3 * 384)}
    load_into(vit, read_weights(saved(theirs, tmp_path / "dinov3.pth")).vit)
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())

    theirs["blocks.0.attn.qkv.bias"] = torch.ones(3 * 384)
    with pytest.raises(UnusableWeights, match=r"qkv\.bias is not zero"):
        load_into(vit, read_weights(saved(theirs, tmp_path / "dinov3.pth")).vit)


FAULTS = {
    "missing": ({k: v for k, v in DINO.items() if k != "norm.weight"}, r"missing: norm\.weight"),
    "misshapen": (DINO | {"norm.bias": torch.zeros(5)}, r"of another shape: norm\.bias 5 instead of 384"),
    "unknown": (DINO | {"blocks.7.extra": torch.zeros(5)}, r"unknown: blocks\.7\.extra"),
    "not finite": (DINO | {"norm.bias": torch.full((384,), torch.nan)}, r"not finite: norm\.bias"),
}


@pytest.mark.parametrize(("state", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_does_not_fit_is_refused_whole_and_named(state, message):
    vit = small_vit(random=True)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    with pytest.raises(UnusableWeights, match=message):
        load_into(vit, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


def test_another_patch_size_is_refused_and_not_resampled():
    other = checkpoints.dino_state(layers=LAYERS, patch=16)
    assert not fits(small_vit(8), other)
    assert fits(small_vit(16), other)
    with pytest.raises(UnusableWeights, match=r"patch_embed\.proj\.weight 384x3x16x16 instead of 384x3x8x8"):
        load_into(small_vit(8), other)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_damaged_file_is_named_as_such(tmp_path):
    for path in (tmp_path / "half.pth", tmp_path / "half.safetensors"):
        if path.suffix == ".pth":
            torch.save(DINO, path)
        else:
            safetensors.torch.save_file(DINO, path)
        damaged(path)
        with pytest.raises(UnusableWeights, match="damaged"):
            read_weights(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x04N.", bytes(range(7, 250, 3))], ids=["empty", "text", "None", "noise"]
)
def test_what_is_no_file_of_weights_is_refused(tmp_path, content):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(UnusableWeights, match=r"file\.pth"):
        read_weights(tmp_path / "file.pth")


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(UnusableWeights, match="No such file"):
        read_weights(tmp_path / "nowhere.pth")


def test_weights_of_something_else_are_refused(tmp_path):
    with pytest.raises(UnusableWeights, match="no weights of a ViT"):
        read_weights(saved({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth"))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_in_a_file_is_run(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UnusableWeights, match=r"trap\.pth"):
        read_weights(tmp_path / "trap.pth")
    assert not (tmp_path / "trapped").exists()


def test_a_block_for_other_channels_is_refused():
    block = BlockWeights(torch.ones(96), torch.zeros(96), torch.ones(192, 96), heads=8)
    with pytest.raises(UnusableWeights, match="expects 96 channels, the ViT has 384"):
        Backbone(small_vit(), preprocessing=Preprocessing((0, 0, 0), (1, 1, 1)), block=block)


def test_a_block_whose_shapes_disagree_is_refused():
    with pytest.raises(UnusableWeights, match="norm weight"):
        BlockWeights(torch.ones(96), torch.zeros(95), torch.ones(192, 96), heads=8)
    with pytest.raises(UnusableWeights, match="heads"):
        BlockWeights(torch.ones(96), torch.zeros(96), torch.ones(192, 96), heads=7)
