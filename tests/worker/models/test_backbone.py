"""Tokens of a backbone are those that a plain hook on timm's own model sees."""

import os
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uvos.models import MODELS, Facet, ModelEntry
from worker.models.backbone import Backbone, create_vit
from worker.models.weights import BlockWeights, Preprocessing, UnusableWeights
from worker.video.clip import PatchGrid

SEVERAL_PATCHES = (3, 5)  # rows, columns: no square, and no default of any model
SMALL = {"depth": 2}  # what is tested does not depend on how many layers there are


def seeded_vit(entry: ModelEntry, seed: int = 0, **options: object) -> nn.Module:
    """Random weights, large enough that attention is far from uniform and biases matter."""
    torch.manual_seed(seed)
    vit = create_vit(entry.timm_id, entry.timm_options | SMALL | options)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.endswith("bias") or "token" in name or "gamma" in name or "ls" in name:
                parameter.normal_(0, 0.3)
            elif parameter.ndim > 1:
                parameter.mul_(2)
    return vit


def seeded_frames(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def preprocessing(entry: ModelEntry) -> Preprocessing:
    return Preprocessing(entry.mean, entry.std)


@dataclass
class Hooked:
    """What hooks on timm's own model see in one run."""

    qkv: Tensor
    """What comes out of the last layer's projection, (B, prefix + N, 3 * D)."""
    attention: Tensor
    """The last layer's own attention, (B, heads, prefix + N, prefix + N)."""
    output: Tensor
    """After the last norm, (B, prefix + N, D)."""


def run_with_hooks(vit: nn.Module, pixels: Tensor) -> Hooked:
    seen = {}
    last = vit.blocks[-1].attn
    hooks = [
        last.qkv.register_forward_hook(lambda _module, _inputs, output: seen.update(qkv=output)),
        last.attn_drop.register_forward_hook(lambda _module, inputs, _output: seen.update(attention=inputs[0])),
    ]
    last.fused_attn = False  # else attention never exists as a matrix
    with torch.no_grad():
        output = vit.forward_features(pixels)
    last.fused_attn = True
    for hook in hooks:
        hook.remove()
    return Hooked(seen["qkv"], seen["attention"], output)


def pixels_of(frames: Tensor, entry: ModelEntry) -> Tensor:
    mean, std = torch.tensor(entry.mean), torch.tensor(entry.std)
    return ((frames / 255 - mean) / std).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", MODELS)
def test_tokens_queries_and_keys_are_what_hooks_on_timm_s_model_see(name):
    entry = MODELS[name]
    vit = seeded_vit(entry)
    rows, columns = SEVERAL_PATCHES
    frames = seeded_frames(2, rows * entry.patch, columns * entry.patch)
    seen = run_with_hooks(vit, pixels_of(frames, entry))
    prefix, dim = vit.num_prefix_tokens, vit.embed_dim
    by_facet = {Facet.key: seen.qkv[:, prefix:, dim : 2 * dim], Facet.token: seen.output[:, prefix:]}

    for facet, expected in by_facet.items():
        backbone = Backbone(vit, preprocessing=preprocessing(entry), facet=facet)
        tokens = backbone.patch_tokens(frames)
        assert tokens.shape == (2, rows * columns, dim)
        assert tokens.dtype == torch.float32
        assert backbone.grid(tuple(frames.shape[1:3])) == PatchGrid(rows, columns)
        torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)

    # Without the class token and registers, rows of the last layer's own attention sum to less than 1.
    expected = seen.attention[:, :, prefix:, prefix:]
    asked = backbone.project(frames)
    assert asked.queries.shape == (2, rows * columns, backbone.heads, backbone.head_dim)
    scores = torch.einsum("bnhd,bmhd->bhnm", asked.queries, asked.keys) / backbone.head_dim**0.5
    torch.testing.assert_close(scores.softmax(-1), expected / expected.sum(-1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_a_trained_block_asks_with_its_own_norm_q_and_k():
    entry = MODELS["dino-vits16"]
    vit = seeded_vit(entry)
    normal = torch.Generator().manual_seed(1)
    weight, bias, qk = (torch.randn(*shape, generator=normal) for shape in ((384,), (384,), (768, 384)))
    frames = seeded_frames(2, 48, 80)
    backbone = Backbone(vit, preprocessing=preprocessing(entry), block=BlockWeights(weight, bias, qk, heads=8))
    asked = backbone.project(frames)
    assert (backbone.heads, backbone.head_dim) == (8, 48)

    normed = F.layer_norm(backbone.patch_tokens(frames), (384,), weight, bias, eps=1e-5) @ qk.T
    torch.testing.assert_close(asked.queries.flatten(2), normed[..., :384], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(asked.keys.flatten(2), normed[..., 384:], atol=1e-4, rtol=1e-5)


def test_a_block_s_preprocessing_goes_before_the_backbone_s():
    entry = MODELS["dino-vits16"]
    ours = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "dino")
    block = BlockWeights(torch.ones(384), torch.zeros(384), torch.ones(768, 384), heads=8, preprocessing=ours)
    assert Backbone(seeded_vit(entry), preprocessing=preprocessing(entry), block=block).preprocessing == ours


def test_dino_s_positions_are_refused_for_a_vit_that_has_none():
    entry = MODELS["dinov3-vits16"]
    with pytest.raises(UnusableWeights, match="positions"):
        Backbone(seeded_vit(entry), preprocessing=Preprocessing(entry.mean, entry.std, "dino"))


@pytest.fixture(scope="module")
def small() -> Backbone:
    entry = MODELS["tiny"]
    return Backbone(seeded_vit(entry), preprocessing=preprocessing(entry))


def test_frames_of_another_size_are_resized_without_antialiasing(small):
    frames = seeded_frames(2, 90, 150)
    resized = F.interpolate(frames.permute(0, 3, 1, 2).double(), size=(24, 40), mode="bilinear").permute(0, 2, 3, 1)
    expected = small._tokens(pixels_of(resized.float(), MODELS["tiny"]))
    torch.testing.assert_close(small.patch_tokens(frames, size=(24, 40)), expected, atol=1e-4, rtol=1e-4)


def test_each_frame_is_looked_at_by_itself(small):
    frames = seeded_frames(5, 24, 40)
    together = small.patch_tokens(frames)
    apart = torch.cat([small.patch_tokens(frame[None]) for frame in frames])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(24, 41), (23, 40), (0, 40), (4, 40)])
def test_sizes_that_are_no_multiples_of_the_patch_are_refused(small, size):
    with pytest.raises(ValueError, match="multiples of 8"):
        small.grid(size)
    with pytest.raises(ValueError, match="multiples of 8"):
        small.patch_tokens(seeded_frames(1, 24, 40), size=size)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 24, 40, 3),
        torch.zeros(24, 40, 3, dtype=torch.uint8),
        torch.zeros(0, 24, 40, 3, dtype=torch.uint8),
    ],
    ids=["floats", "one frame bare", "none"],
)
def test_what_are_no_frames_is_refused(small, frames):
    with pytest.raises(ValueError, match="uint8 frames"):
        small.project(frames)


@pytest.mark.parametrize("name", ["tiny", "dinov2-vits14-reg4", "dinov3-vits16"])
def test_bfloat16_stays_near_float32(name):
    entry = MODELS[name]
    frames = seeded_frames(1, 4 * entry.patch, 4 * entry.patch)
    exact = Backbone(seeded_vit(entry), preprocessing=preprocessing(entry), facet=entry.facet)
    rough = Backbone(seeded_vit(entry), preprocessing=preprocessing(entry), facet=entry.facet, dtype=torch.bfloat16)
    assert (exact.dtype, rough.dtype) == (torch.float32, torch.bfloat16)
    for wanted, found in (
        (exact.patch_tokens(frames), rough.patch_tokens(frames)),
        (exact.project(frames).queries, rough.project(frames).queries),
    ):
        assert found.dtype == torch.float32
        assert 0 < (found - wanted).norm() / wanted.norm() < 0.03


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_projections_do_not_depend_on_the_number_of_threads(set_threads, dtype):
    entry, frames = MODELS["tiny"], seeded_frames(5, 24, 40)
    projections = []
    for threads in (1, 2, 3):
        set_threads(threads)
        backbone = Backbone(seeded_vit(entry), preprocessing=preprocessing(entry), dtype=dtype)
        assert backbone.batch_size((24, 40)) == threads
        projections.append(backbone.project(frames))
    for other in projections[1:]:
        assert torch.equal(other.queries, projections[0].queries)
        assert torch.equal(other.keys, projections[0].keys)


class NarrowBackbone(Backbone):
    """Runs out of memory with more than `most` frames at once."""

    most = 2

    def batch_size(self, _size: tuple[int, int]) -> int:
        return min(self.batch_limit or 16, 16)

    def _pixels(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        if len(frames) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super()._pixels(frames, size)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(small, set_threads):
    set_threads(1)  # as on a GPU, where a batch is not split between threads
    entry = MODELS["tiny"]
    narrow = NarrowBackbone(seeded_vit(entry), preprocessing=preprocessing(entry))
    frames = seeded_frames(11, 24, 40)
    torch.testing.assert_close(narrow.patch_tokens(frames), small.patch_tokens(frames), atol=1e-5, rtol=1e-5)
    assert narrow.batch_size((24, 40)) == 2, "the next clip starts where this one ended"


def test_a_single_frame_that_does_not_fit_is_an_error():
    entry = MODELS["tiny"]
    narrow = NarrowBackbone(seeded_vit(entry), preprocessing=preprocessing(entry))
    narrow.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        narrow.project(seeded_frames(3, 24, 40))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_gives_what_the_cpu_gives(dtype):
    if not torch.cuda.is_available():
        assert not os.environ.get("REQUIRE_GPU"), "REQUIRE_GPU is set and there is no GPU"
        pytest.skip("no GPU")
    entry = MODELS["dino-vits8"]
    frames = seeded_frames(3, 64, 96)
    cpu = Backbone(seeded_vit(entry), preprocessing=preprocessing(entry))
    gpu = Backbone(seeded_vit(entry), preprocessing=preprocessing(entry), dtype=dtype).cuda()
    wanted, found = cpu.patch_tokens(frames), gpu.patch_tokens(frames).cpu()
    assert (found - wanted).norm() / wanted.norm() < (1e-5 if dtype is torch.float32 else 0.02)
    assert gpu.batch_size((320, 480)) > 2


def test_object_cues_are_the_last_layers_keys_and_the_attention_of_the_class_token():
    entry = MODELS["dinov2-vits14-reg4"]
    vit, frames = seeded_vit(entry), seeded_frames(3, 42, 56)
    inputs: list[Tensor] = []
    with_cues = Backbone(vit, preprocessing=preprocessing(entry), facet=entry.facet, with_cues=True)
    hook = vit.blocks[-1].attn.qkv.register_forward_hook(
        lambda _module, arguments, _result: inputs.append(arguments[0])
    )
    found = with_cues.project(frames)
    with torch.no_grad():
        for frame in frames:  # one by one, since the frames of a batch run in parallel
            with_cues.patch_tokens(frame[None])  # runs the last layer, whose attention is compared
        hook.remove()
        assert found.cues is not None
        qkv = vit.blocks[-1].attn.qkv(torch.cat(inputs))
    heads, depth = vit.blocks[-1].attn.num_heads, qkv.shape[-1] // (3 * vit.blocks[-1].attn.num_heads)
    query, key, _ = qkv.double().reshape(3, -1, 3, heads, depth).unbind(2)
    prefix = vit.num_prefix_tokens
    for b in range(3):
        for head in range(heads):
            logits = key[b, :, head] @ query[b, 0, head] / depth**0.5
            expected = logits.exp() / logits.exp().sum()
            torch.testing.assert_close(
                found.cues.saliency[b, :, head].double(), expected[prefix:], atol=1e-5, rtol=1e-3
            )
    torch.testing.assert_close(found.cues.keys.double(), key[:, prefix:].flatten(2), atol=1e-4, rtol=1e-4)
    without = Backbone(vit, preprocessing=preprocessing(entry), facet=entry.facet).project(frames)
    assert without.cues is None
    torch.testing.assert_close(without.queries, found.queries)
