"""Read and write weights in timm's, DINO's, the released code's and this project's own format.

The format is recognised by the names of the tensors, never by the file name. No code in a file is executed: pickles
are read with `weights_only=True`.
"""

import argparse
import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

Kind = Literal["timm", "released", "own", "block"]
Positions = Literal["timm", "dino"]

RELEASED_HEADS = 8  # of the released spatio-temporal block; its checkpoint does not state it
RELEASED_EPS = 1e-5  # of the block's norm1 (PyTorch's default); the norms of the ViT have 1e-6
RELEASED_MEAN = (0.43216, 0.394666, 0.37645)  # normalisation of the released code at inference
RELEASED_STD = (0.22803, 0.22145, 0.216989)

WRAPPERS = ("model_state_dict", "teacher", "student", "state_dict", "model_ema", "model")
"""Keys under which training scripts store the weights, in order of preference."""
HEADS = ("head.", "fc.", "fc_norm.", "projectors.", "local_cls_norm.", "dino_head.", "ibot_head.")
"""Parts of a checkpoint that do not contribute to the tokens."""


class UnusableWeights(ValueError):
    """The file cannot be read as weights, or does not fit the model."""


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation and position embeddings that weights were trained with.

    Attributes:
        mean: Mean of the normalisation, RGB in [0, 1].
        std: Standard deviation of the normalisation.
        positions: Interpolation of position embeddings: "timm" as timm (antialiased, to the exact size), "dino" as
            DINO and the released code (bicubic by factors ((h + 0.1) / side, (w + 0.1) / side), not antialiased).
            Confusing the two changes a fifth of the labels.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    positions: Positions = "timm"


@dataclass(frozen=True)
class BlockWeights:
    """Parameters of a spatio-temporal block that segmentation needs: its first norm and its q and k projections.

    Attributes:
        norm_weight: Shape (D,).
        norm_bias: Shape (D,).
        qk: Rows of q, then rows of k, shape (2 * D', D); no bias.
        heads: Number of heads; D' is heads times head dimension.
        eps: Epsilon of the norm.
        preprocessing: Preprocessing of its training, where it differs from the backbone's own.
        backbone: Registry name of its backbone, where known.
    """

    norm_weight: Tensor
    norm_bias: Tensor
    qk: Tensor
    heads: int
    eps: float = RELEASED_EPS
    preprocessing: Preprocessing | None = None
    backbone: str | None = None

    def __post_init__(self) -> None:
        dim = self.norm_weight.shape[0] if self.norm_weight.ndim == 1 else -1
        if self.norm_bias.shape != (dim,) or self.qk.ndim != 2 or self.qk.shape[1] != dim:
            shapes = f"{tuple(self.norm_weight.shape)}, {tuple(self.norm_bias.shape)}, {tuple(self.qk.shape)}"
            raise UnusableWeights(
                f"norm weight, norm bias and q, k of a block must have shapes (D), (D), (2D', D), got {shapes}"
            )
        if self.qk.shape[0] % (2 * self.heads):
            raise UnusableWeights(f"{self.qk.shape[0] // 2} rows of q cannot be divided into {self.heads} heads")


@dataclass(frozen=True)
class Weights:
    """Content of a file of weights.

    Attributes:
        kind: "timm" (also DINO's own files, whose names are the same), "released", "own", or "block" alone.
        vit: Tensors by their name in the ViT, prefixes removed; empty for a block alone.
        block: The spatio-temporal block, where there is one.
        metadata: Metadata of a file in this project's format.
        sha256: SHA-256 of the file.
    """

    kind: Kind
    vit: Mapping[str, Tensor]
    block: BlockWeights | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    sha256: str = ""


def read_weights(path: Path) -> Weights:
    """Read a file of weights in any supported format.

    Raises:
        UnusableWeights: The file is missing or damaged, or holds no weights of a ViT or a block.
    """
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise UnusableWeights(f"cannot read {path}: {error.strerror or error}") from error
    metadata: dict[str, str] = {}
    if is_safetensors(path):
        tensors, metadata = _read_safetensors(path)
    else:
        tensors = _tensors(_read_pickle(path), path)
    kind, vit, block = _recognised(tensors, metadata)
    if kind != "block" and "patch_embed.proj.weight" not in vit:
        first_names = ", ".join(list(tensors)[:3]) or "no tensors"
        raise UnusableWeights(
            f"{path} holds no weights of a ViT: patch_embed.proj.weight is missing; found {first_names}"
        )
    return Weights(kind, vit, block, metadata, sha256)


def load_into(vit: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights into a timm ViT, all of them or none.

    Tensor names of DINOv2's and DINOv3's own files are translated to timm's. Nothing is resampled: another shape
    means another model.

    Raises:
        UnusableWeights: Missing, unknown or misshapen tensors, or values that are not finite; names them.
    """
    state = _timm_names(state, vit)
    wanted = vit.state_dict()
    faults = _misfits(wanted, state)
    if not faults:
        faults = {"not finite": [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]}
    if any(faults.values()):
        raise UnusableWeights("; ".join(f"{fault}: {_listed(names)}" for fault, names in faults.items() if names))
    vit.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in state.items()})


def fits(vit: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether weights have the names and shapes of a timm ViT, which may be on the meta device."""
    try:
        return not _misfits(vit.state_dict(), _timm_names(state, vit))
    except UnusableWeights:
        return False


def export_block(checkpoint: Path, out: Path) -> None:
    """Write the spatio-temporal block of a checkpoint to a file of its own (0.6 MB for ViT-S, fp16).

    The file includes normalisation and position interpolation, without which its labels differ.

    Raises:
        UnusableWeights: The checkpoint holds no block.
    """
    weights = read_weights(checkpoint)
    if weights.block is None:
        raise UnusableWeights(f"{checkpoint} holds no spatio-temporal block")
    write_block(out, weights.block, source_sha256=weights.sha256)


def write_block(out: Path, block: BlockWeights, **metadata: str) -> None:
    """Write a block as safetensors in fp16, with `metadata` in the file's header."""
    head = {"format": "uvos-block", **_block_head(block), **metadata}
    safetensors.torch.save_file(_block_tensors(block), out, metadata=head)


def write_backbone(
    out: Path,
    vit: nn.Module,
    *,
    model: str,
    version: str,
    block: BlockWeights | None = None,
    dtype: torch.dtype = torch.float16,
    **metadata: str,
) -> None:
    """Write the weights of a model of the registry as safetensors, with its block where it has one."""
    tensors = {name: tensor.detach().to(dtype).contiguous().cpu() for name, tensor in vit.state_dict().items()}
    head = {"format": "uvos-backbone", "model": model, "version": version, **metadata}
    if block is not None:
        tensors |= {f"block.{name}": tensor for name, tensor in _block_tensors(block).items()}
        head |= _block_head(block)
    safetensors.torch.save_file(tensors, out, metadata=head)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like safetensors: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UnusableWeights(f"{path} is damaged: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        # DINO's full checkpoints contain their command line as a Namespace, a plain container of attributes.
        safe = torch.serialization.safe_globals([argparse.Namespace])
        # Opened here: given a path, torch decides by the file name.
        with path.open("rb") as file, warnings.catch_warnings(), safe:
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # old files; they load or they fail
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnusableWeights(f"{path} is not a file of weights, or reading it would execute code") from error
    except Exception as error:  # on other bytes the reader raises nearly any exception
        raise UnusableWeights(f"{path} is damaged, or not a file of weights ({type(error).__name__})") from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the dictionaries that training scripts wrap them in."""
    while isinstance(content, Mapping):
        wrapped = [content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if not wrapped:
            break
        content = wrapped[0]
    if not isinstance(content, Mapping):
        raise UnusableWeights(f"{path} holds a {type(content).__name__}, not named tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _recognised(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Kind, dict[str, Tensor], BlockWeights | None]:
    """The format of a file from its metadata or tensor names, with the tensors of ViT and block."""
    own_format = metadata.get("format")
    if own_format == "uvos-block":
        return "block", {}, _own_block(tensors, metadata)
    if own_format == "uvos-backbone":
        vit = {name: tensor for name, tensor in tensors.items() if not name.startswith("block.")}
        rest = {name.removeprefix("block."): tensor for name, tensor in tensors.items() if name not in vit}
        return "own", vit, _own_block(rest, metadata) if rest else None
    released = _without_prefix(tensors, "module.")
    if any(name.startswith("temporal_transformer.0.") for name in released):
        vit = {name.removeprefix("encoder."): t for name, t in released.items() if name.startswith("encoder.")}
        return "released" if vit else "block", vit, _released_block(released)
    return "timm", _vit(tensors), None


def _vit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ViT of a timm or DINO state dict, without the prefixes of data-parallel training and DINO's wrapper."""
    for prefix in ("module.", "_orig_mod.", "teacher.", "student.", "backbone.", "encoder."):
        tensors = _without_prefix(tensors, prefix)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS) and name != "mask_token"}


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors with the prefix, which is removed; all tensors where none has it."""
    if not any(name.startswith(prefix) for name in tensors):
        return dict(tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _timm_names(state: Mapping[str, Tensor], vit: nn.Module) -> dict[str, Tensor]:
    """Translate names and layouts of DINOv2's and DINOv3's own files to those of timm."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("rope") or name.endswith((".bias_mask", ".periods")):
            continue  # constants that timm computes
        if name in ("register_tokens", "storage_tokens"):
            name = "reg_token"
        renamed[name] = tensor
    if "storage_tokens" in state:
        renamed = {
            name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for name, t in renamed.items()
        }
        wanted = vit.state_dict()
        for name in [name for name in renamed if name.endswith("attn.qkv.bias") and name not in wanted]:
            query, _, value = renamed[name].chunk(3)
            if query.any() or value.any():
                raise UnusableWeights(f"{name} is not zero, but timm's architecture has no such bias")
            del renamed[name]
    positions = renamed.get("pos_embed")
    if "register_tokens" in state and positions is not None and getattr(vit, "no_embed_class", False):
        # DINOv2 gives the class token a position; timm's variant with registers adds it to the token itself.
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return renamed


def _misfits(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Reasons why a state dict cannot be loaded, with tensor names; empty where it fits."""
    shapes = [
        f"{name} {_shape(state[name])} instead of {_shape(tensor)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unknown": [name for name in state if name not in wanted],
        "of another shape": shapes,
    }
    return {fault: names for fault, names in faults.items() if names}


def _released_block(tensors: Mapping[str, Tensor]) -> BlockWeights:
    prefix = "temporal_transformer.0."
    names = [prefix + name for name in ("norm1.weight", "norm1.bias", "attn.qkv.weight")]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise UnusableWeights(f"missing: {_listed(missing)}")
    weight, bias, qkv = (tensors[name].float() for name in names)
    preprocessing = Preprocessing(RELEASED_MEAN, RELEASED_STD, "dino")
    return BlockWeights(weight, bias, qkv[: 2 * (qkv.shape[0] // 3)], RELEASED_HEADS, RELEASED_EPS, preprocessing)


def _own_block(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> BlockWeights:
    try:
        preprocessing = None
        if "mean" in metadata:
            mean, std = json.loads(metadata["mean"]), json.loads(metadata["std"])
            positions: Positions = "dino" if metadata.get("positions") == "dino" else "timm"
            preprocessing = Preprocessing(tuple(mean), tuple(std), positions)
        return BlockWeights(
            tensors["norm1.weight"].float(),
            tensors["norm1.bias"].float(),
            tensors["qk.weight"].float(),
            heads=int(metadata["heads"]),
            eps=float(metadata["eps"]),
            preprocessing=preprocessing,
            backbone=metadata.get("backbone"),
        )
    except KeyError as error:
        raise UnusableWeights(f"the block has no {error.args[0]}") from error


def _block_tensors(block: BlockWeights) -> dict[str, Tensor]:
    named = {"norm1.weight": block.norm_weight, "norm1.bias": block.norm_bias, "qk.weight": block.qk}
    return {name: tensor.detach().half().contiguous().cpu() for name, tensor in named.items()}


def _block_head(block: BlockWeights) -> dict[str, str]:
    head = {"heads": str(block.heads), "eps": repr(block.eps)}
    if block.preprocessing is not None:
        head["mean"] = json.dumps(block.preprocessing.mean)
        head["std"] = json.dumps(block.preprocessing.std)
        head["positions"] = block.preprocessing.positions
    if block.backbone is not None:
        head["backbone"] = block.backbone
    return head


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "()"
