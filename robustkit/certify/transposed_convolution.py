"""Transposed convolutions, as bounds need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.affine import Convolution, positions_over


@dataclass
class TransposedConvOp(Convolution):
    """A transposed convolution. `shape` is that of its input [c, h, w]."""

    layer: nn.ConvTranspose2d
    shape: tuple[int, ...]

    @property
    def terms(self) -> int:
        c = self.layer
        return c.in_channels // c.groups * positions_over(c) + 1

    @property
    def back_terms(self) -> int:
        return int(self.layer.weight[0].numel())

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        c = self.layer
        padding: Any = c.padding
        more: Any = c.output_padding
        return F.conv_transpose2d(x, weight, bias, c.stride, padding, more, c.groups, c.dilation)

    def pull(self, a: Tensor) -> Tensor:
        c, flat = self.layer, a.flatten(0, 1)
        padding: Any = c.padding
        weight = c.weight.to(a.dtype)
        back = F.conv2d(flat, weight, None, c.stride, padding, c.dilation, c.groups)
        # Padding of the output may leave room for another position of the kernel.
        back = back[..., : self.shape[1], : self.shape[2]]
        return back.reshape(*a.shape[:2], *self.shape)
