"""Linear layers with products of 8-bit integers, which CPUs with VNNI compute several times as fast as float32's.

Weights are quantized per output channel when the model is loaded, inputs per token when they are multiplied. The result
of a token does not depend on the others of its batch.
"""

import torch
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer on a CPU whose products are exact sums of 8-bit integers.

    y[i, o] = s[i] t[o] sum_c X[i, c] W[o, c] + b[o], where X = round(x / s) with s[i] = max_c |x[i, c]| / 127, and
    likewise W and t for the weights.

    Args:
        linear: The layer to replace.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        from worker.numerics import numba_ops

        self._ops = numba_ops
        rows = linear.weight.detach().float().contiguous()
        rounded, scale = self._quantize(rows)
        bias = torch.zeros(len(rows)) if linear.bias is None else linear.bias.detach().float().contiguous()
        self.register_buffer("weight", rounded.T)  # (in, out), as torch's product of integers takes it
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), float32."""
        rounded, scale = self._quantize(x.reshape(-1, x.shape[-1]).contiguous())
        products = torch._int_mm(rounded, self.weight)
        self._ops.scale_products(products.numpy(), scale.numpy(), self.scale.numpy(), self.bias.numpy())
        return products.view(torch.float32).view(*x.shape[:-1], -1)

    def _quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rounded, scale = torch.empty(rows.shape, dtype=torch.int8), torch.empty(len(rows))
        self._ops.quantize_rows(rows.numpy(), rounded.numpy(), scale.numpy())
        return rounded, scale


def quantize_linear_layers(vit: nn.Module) -> None:
    """Replace the linear layers of all transformer blocks but the last, whose keys and queries stay float32."""
    for block in list(vit.blocks)[:-1]:  # type: ignore[arg-type]
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8Linear(child))
