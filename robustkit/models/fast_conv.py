"""A faster backward pass of the first convolution, for attacks on a CPU.

CPU kernels are slow at the input gradient of a convolution with few input channels: for a grayscale
first layer they take as long as for the rest of a small network. A matrix product and a fold
compute the same at a fraction of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FEW = 4  # input channels up to which the fold wins


class _Fold(torch.autograd.Function):
    """conv2d with zero padding; the input's gradient by matmul and fold, none for the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.size, ctx.dtype = layer, x.shape[2:], x.dtype
        padding: Any = layer.padding
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        # Under autocast the layer answers in 16 bits, while its weights and the input have 32.
        weights = layer.weight.to(gradients[0].dtype)
        columns = torch.matmul(weights.flatten(1).t(), gradients[0].flatten(2))
        shape = (ctx.size, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return F.fold(columns, *shape).to(ctx.dtype), None


class Stem(nn.Conv2d):
    """`nn.Conv2d` for frozen weights, with the faster input gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] -> [b, c', h', w']."""
        if x.requires_grad and x.ndim == 4 and not self.weight.requires_grad:
            answer: Tensor = _Fold.apply(x, self)
            return answer
        return super().forward(x)


def suits(layer: nn.Module) -> bool:
    """Whether a `Stem` can replace this layer and is faster."""
    return (
        type(layer) is nn.Conv2d
        and layer.in_channels <= _FEW
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def speed_up(model: nn.Module) -> int:
    """Turn the suitable layers of `model` into stems, in place; return their number."""
    found = [layer for layer in model.modules() if suits(layer)]
    for layer in found:
        layer.__class__ = Stem  # the same weights, hooks and names
    return len(found)
