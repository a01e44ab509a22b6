"""An ONNX graph with the constants of the real one: names, transposed weights, split positions; random values."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

DIM, LAYERS = 384, 12


def write_graph(path: Path) -> dict[str, torch.Tensor]:
    """Write the graph; returns the tensors under timm's names."""
    rng = np.random.default_rng(0)
    constants, nodes, state = [], [], {}

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def constant(name: str, value: np.ndarray) -> None:
        constants.append(numpy_helper.from_array(value, name))

    def product(node: str, weight: np.ndarray) -> None:
        constant(f"onnx::MatMul_{len(nodes)}", np.ascontiguousarray(weight.T))
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{len(nodes)}"], [f"y{len(nodes)}"], name=node))

    def both(name: str, timm_name: str, *shape: int) -> None:
        value = draw(*shape)
        constant(name, value)
        state[timm_name] = value

    embeddings = "backbone.embeddings."
    both(f"{embeddings}cls_token", "cls_token", 1, 1, DIM)
    both(f"{embeddings}patch_embeddings.projection.weight", "patch_embed.proj.weight", DIM, 3, 14, 14)
    both(f"{embeddings}patch_embeddings.projection.bias", "patch_embed.proj.bias", DIM)
    both("backbone.layernorm.weight", "norm.weight", DIM)
    both("backbone.layernorm.bias", "norm.bias", DIM)
    positions = draw(1, 1370, DIM)
    state["pos_embed"] = positions
    constant("onnx::Concat_1", positions[:, :1])
    constant("onnx::Concat_2", positions[:, 1:])
    for index in range(LAYERS):
        hf, node, timm = f"backbone.encoder.layer.{index}.", f"/backbone/encoder/layer.{index}/", f"blocks.{index}."
        weights, biases = [draw(DIM, DIM) for _ in range(3)], [draw(DIM) for _ in range(3)]
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            product(f"{node}attention/attention/{part}/MatMul", weight)
            constant(f"{hf}attention.attention.{part}.bias", bias)
        state[f"{timm}attn.qkv.weight"], state[f"{timm}attn.qkv.bias"] = np.concatenate(weights), np.concatenate(biases)
        shapes = {"attention/output/dense": ("attn.proj", DIM, DIM), "mlp/fc1": ("mlp.fc1", 4 * DIM, DIM)}
        for place, (name, rows, columns) in (shapes | {"mlp/fc2": ("mlp.fc2", DIM, 4 * DIM)}).items():
            state[f"{timm}{name}.weight"] = draw(rows, columns)
            product(f"{node}{place}/MatMul", state[f"{timm}{name}.weight"])
            both(f"{hf}{place.replace('/', '.')}.bias", f"{timm}{name}.bias", rows)
        for number in (1, 2):
            both(f"{hf}norm{number}.weight", f"{timm}norm{number}.weight", DIM)
            both(f"{hf}norm{number}.bias", f"{timm}norm{number}.bias", DIM)
            both(f"{hf}layer_scale{number}.lambda1", f"{timm}ls{number}.gamma", DIM)
    graph = helper.make_graph(nodes, "backbone", [], [], constants)
    onnx.save(helper.make_model(graph), str(path))
    return {name: torch.from_numpy(value) for name, value in state.items()}
