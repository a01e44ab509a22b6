"""Linear layers of 8-bit integers: equal to float64 loops, close to float32, used where a CPU has fast ones."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.worker.models.test_backbone import seeded_frames
from uvos.errors import InvalidParameters
from uvos.models import MODELS
from worker.models.backbone import Backbone, create_vit
from worker.models.int8 import Int8Linear, quantize_linear_layers
from worker.models.loading import choose_dtype, load_model
from worker.models.weights import Preprocessing


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_equals_its_formula_in_float64(bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(40, 24, bias=bias)
    x = torch.randn(2, 3, 40) * torch.logspace(-3, 3, 6).view(2, 3, 1)
    x[1, 2] = 0
    y = Int8Linear(linear)(x)
    assert (y.shape, y.dtype) == ((2, 3, 24), torch.float32)
    weight = linear.weight.detach().double().numpy()
    t = np.abs(weight).max(1) / 127
    for row, found in zip(x.double().numpy().reshape(6, 40), y.numpy().reshape(6, 24), strict=True):
        s = max(np.abs(row).max() / 127, 1e-30)
        expected = [s * t[o] * (np.rint(row / s) * np.rint(weight[o] / t[o])).sum() for o in range(24)]
        if bias:
            expected = np.array(expected) + linear.bias.detach().double().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def test_the_result_of_a_token_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(2)
    layer = Int8Linear(nn.Linear(64, 32))
    x = torch.randn(50, 64)
    assert torch.equal(layer(x)[7:9], layer(x[7:9]))


def test_a_vit_in_int8_has_nearly_the_keys_of_float32() -> None:
    torch.manual_seed(3)
    vit = create_vit(
        "VisionTransformer", {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 2}
    )
    preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    frames = seeded_frames(5, 64, 64)
    exact = Backbone(vit, preprocessing=preprocessing).project(frames).keys.flatten(2)
    quantize_linear_layers(vit)
    rounded = Backbone(vit, preprocessing=preprocessing).project(frames).keys.flatten(2)
    assert not torch.equal(rounded, exact)
    cosine = nn.functional.cosine_similarity(
        rounded - exact.mean(1, keepdim=True), exact - exact.mean(1, keepdim=True), -1
    )
    assert float(cosine.min()) > 0.99


def test_auto_is_int8_where_the_cpu_has_vnni_and_no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, allowed, expected in (
        ({"avx512_vnni": True}, True, torch.int8),
        ({"avx512_vnni": True}, False, torch.float32),
        ({"avx512_vnni": True, "amx_bf16": True}, True, torch.bfloat16),
        ({}, True, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_dtype("auto", device=cpu, exact=False, allow_int8=allowed) is expected
        assert choose_dtype("auto", device=cpu, exact=True, allow_int8=allowed) is torch.float32


def test_int8_is_for_a_cpu_and_is_stated() -> None:
    assert load_model(MODELS["tiny"], device="cpu", dtype="int8").dtype == "int8"
    with pytest.raises(InvalidParameters, match="dtype int8 is for a CPU, the device is cuda"):
        choose_dtype("int8", device=torch.device("cuda"), exact=False)
