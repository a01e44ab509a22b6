"""DINOv2 ViT-S/14 in an ONNX graph -> the tensors of timm's `vit_small_patch14_dinov2.lvd142m`.

The graph is read as data and never executed. Biases and norms keep the names of Hugging Face's `Dinov2Model`; the
weights of linear layers were renamed at export and are the constant inputs of the MatMul nodes, transposed; the
position embeddings were split into those of the class token and of the patches.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.models.weights import UnusableWeights

LAYERS = 12
DIM = 384
PRETRAINING_PATCHES = 37 * 37
PROJECTIONS = ("query", "key", "value")


def read_dinov2_onnx(content: bytes | Path) -> dict[str, Tensor]:
    """Read the backbone of a saliency model exported to ONNX.

    Args:
        content: The file or its bytes.

    Returns:
        All tensors of the timm architecture, float32.

    Raises:
        UnusableWeights: The package `onnx` is missing, or the graph has no such backbone.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise UnusableWeights("reading ONNX needs the package onnx: pip install 'uvos[weights]'") from error
    try:
        data = content if isinstance(content, bytes) else content.read_bytes()
        graph = onnx.load_model_from_string(data).graph
        return _timm_state(*_constants(graph, onnx.numpy_helper.to_array))
    except KeyError as error:
        raise UnusableWeights(f"the ONNX graph has no {error.args[0]}: not the expected DINOv2 backbone") from error
    except Exception as error:  # damaged protobuf raises the decoder's own classes
        if isinstance(error, OSError):
            raise
        raise UnusableWeights(f"the file is not a readable ONNX graph ({type(error).__name__})") from error


def _constants(graph: Any, to_array: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Constants by name, and the constant input of each MatMul node by the name of the node."""
    by_name = {constant.name: torch.from_numpy(to_array(constant).copy()) for constant in graph.initializer}
    by_node = {
        node.name: by_name[name]
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in by_name
    }
    return by_name, by_node


def _timm_state(by_name: Mapping[str, Tensor], by_node: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {
        "cls_token": by_name["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([_unnamed(by_name, 1), _unnamed(by_name, PRETRAINING_PATCHES)], 1),
        "patch_embed.proj.weight": by_name["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": by_name["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": by_name["backbone.layernorm.weight"],
        "norm.bias": by_name["backbone.layernorm.bias"],
    }
    for index in range(LAYERS):
        state |= {f"blocks.{index}.{name}": tensor for name, tensor in _layer(index, by_name, by_node).items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _layer(index: int, by_name: Mapping[str, Tensor], by_node: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix, node_prefix = f"backbone.encoder.layer.{index}.", f"/backbone/encoder/layer.{index}/"

    def weight(name: str) -> Tensor:
        return by_node[f"{node_prefix}{name}/MatMul"].T

    attention = "attention.attention"
    layer = {
        "attn.qkv.weight": torch.cat([weight(f"attention/attention/{part}") for part in PROJECTIONS]),
        "attn.qkv.bias": torch.cat([by_name[f"{prefix}{attention}.{part}.bias"] for part in PROJECTIONS]),
        "attn.proj.weight": weight("attention/output/dense"),
        "attn.proj.bias": by_name[f"{prefix}attention.output.dense.bias"],
    }
    for number in (1, 2):
        layer |= {
            f"norm{number}.weight": by_name[f"{prefix}norm{number}.weight"],
            f"norm{number}.bias": by_name[f"{prefix}norm{number}.bias"],
            f"ls{number}.gamma": by_name[f"{prefix}layer_scale{number}.lambda1"],
            f"mlp.fc{number}.weight": weight(f"mlp/fc{number}"),
            f"mlp.fc{number}.bias": by_name[f"{prefix}mlp.fc{number}.bias"],
        }
    return layer


def _unnamed(by_name: Mapping[str, Tensor], count: int) -> Tensor:
    """A constant without a name of its own, by its shape (1, count, DIM)."""
    for name, tensor in by_name.items():
        if name.startswith("onnx::") and tuple(tensor.shape) == (1, count, DIM):
            return tensor
    raise KeyError(f"constant of shape (1, {count}, {DIM})")
