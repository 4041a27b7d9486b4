"""Affine operations as bounds need them: W x + b, |W| r, A W and A b, without a matrix.

Every operation reads its weights when it is called, so that bounds follow a network in training.
`terms` is the number of summands behind one output, for the bound on float32's rounding error.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Statistics = dict[nn.Module, tuple[Tensor, Tensor]]  # of a batch: mean and variance per layer
UNIT = 2.0**-24  # unit roundoff u of float32


class Affine(Protocol):
    """y = W x + b over one example; tensors carry leading axes before the features."""

    @property
    def terms(self) -> int:
        """Summands of one output."""
        ...

    def forward(self, x: Tensor) -> Tensor:
        """W x + b for x [b, *f]."""
        ...

    def spread(self, r: Tensor) -> Tensor:
        """|W| r for r ≥ 0 [b, *f]."""
        ...

    def squares(self, r: Tensor) -> Tensor:
        """W² r, elementwise square, for r ≥ 0 [b, *f]."""
        ...

    def pull(self, a: Tensor) -> Tensor:
        """A W for A [b, s, *out] -> [b, s, *in]."""
        ...

    def offset(self, a: Tensor) -> Tensor:
        """A b for A [b, s, *out] -> [b, s]."""
        ...

    def size(self) -> Tensor:
        """|b|, broadcastable to an output [1, *out]."""
        ...

    @property
    def back_terms(self) -> int:
        """Summands of one element of A W."""
        ...


def _bias(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    bias: Tensor | None = layer.bias
    if bias is not None:
        return bias
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return layer.weight.new_zeros(outputs)


def positions_over(layer: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """Return how many positions of the kernel may meet one value of the map it is spread over.

    Value p meets position j of an output where p − j · dilation is a multiple of the stride: one j
    in every stride / gcd(stride, dilation).
    """
    sizes = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    return math.prod(-(-k // (step // math.gcd(step, apart))) for k, step, apart in sizes)


@dataclass
class LinearOp:
    """A fully connected layer."""

    layer: nn.Linear

    @property
    def terms(self) -> int:
        return self.layer.in_features + 1

    @property
    def back_terms(self) -> int:
        return self.layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)

    def spread(self, r: Tensor) -> Tensor:
        return F.linear(r, self.layer.weight.abs())

    def squares(self, r: Tensor) -> Tensor:
        return F.linear(r, self.layer.weight.square())

    def pull(self, a: Tensor) -> Tensor:
        return torch.matmul(a, self.layer.weight.to(a.dtype))

    def offset(self, a: Tensor) -> Tensor:
        found = torch.matmul(a, _bias(self.layer).to(a.dtype))
        return found if found.ndim == 2 else found.flatten(2).sum(2)  # tokens [n, d]

    def size(self) -> Tensor:
        return _bias(self.layer).abs()[None]


class Convolution(ABC):
    """What convolutions and transposed ones share: all but how they run and are pulled back."""

    layer: nn.Conv2d | nn.ConvTranspose2d

    @abstractmethod
    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's operation on x [b, c, h, w] with other weights."""

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.layer.weight, self.layer.bias)

    def spread(self, r: Tensor) -> Tensor:
        return self.run(r, self.layer.weight.abs(), None)

    def squares(self, r: Tensor) -> Tensor:
        return self.run(r, self.layer.weight.square(), None)

    def offset(self, a: Tensor) -> Tensor:
        bias = _bias(self.layer)
        rows = bias.to(a.dtype)[:, None, None].expand(a.shape[2:]).flatten()
        return torch.matmul(a.flatten(2), rows)

    def size(self) -> Tensor:
        return _bias(self.layer).abs().view(1, -1, 1, 1)


@dataclass
class ConvOp(Convolution):
    """A convolution with zero padding. `shape` is that of its input [c, h, w]."""

    layer: nn.Conv2d
    shape: tuple[int, ...]

    @property
    def terms(self) -> int:
        return int(self.layer.weight[0].numel()) + 1

    @property
    def back_terms(self) -> int:
        return self.layer.out_channels // self.layer.groups * positions_over(self.layer)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        c = self.layer
        padding: Any = c.padding
        return F.conv2d(x, weight, bias, c.stride, padding, c.dilation, c.groups)

    def pull(self, a: Tensor) -> Tensor:
        padding = [int(p) for p in self.layer.padding]
        back = self.transposed(a.flatten(0, 1), (padding[0], padding[1]), self.shape[1:])
        return back.view(*a.shape[:2], *self.shape)

    def transposed(self, a: Tensor, padding: tuple[int, int], size: Sequence[int]) -> Tensor:
        """A W, the transposed convolution, of A [n, *out]: [n, c, *size].

        Channels lie side by side in float32's result on a CPU, whose convolutions are 2.5 times
        as fast that way.
        """
        c, weight = self.layer, self.layer.weight.to(a.dtype)
        if a.dtype == torch.float32 and weight.device.type == "cpu":
            a = a.contiguous(memory_format=torch.channels_last)
        if self._by_phases(a.dtype):
            return self._by_phase(a, weight, padding, size)
        # The output size is ambiguous where the stride does not divide: `rest` is what the forward
        # pass left over at the end of each axis.
        rest = [
            whole - ((out - 1) * stride - 2 * pad + dilation * (kernel - 1) + 1)
            for whole, out, stride, pad, dilation, kernel in zip(
                size, a.shape[2:], c.stride, padding, c.dilation, c.kernel_size, strict=True
            )
        ]
        return F.conv_transpose2d(a, weight, None, c.stride, padding, rest, c.groups, c.dilation)

    def _by_phases(self, dtype: torch.dtype) -> bool:
        """Whether the transposed convolution is faster as a convolution for each phase.

        Measured on a CPU: 1.2 to 3 times in float32; in float64 only with several channels.
        """
        c = self.layer
        step = c.stride[0]
        plain = c.groups == 1 and c.dilation == (1, 1) and c.stride == (step, step)
        pays = dtype == torch.float32 or self.shape[0] >= 8
        return step > 1 and plain and pays and c.weight.device.type == "cpu"

    def _by_phase(
        self, a: Tensor, weight: Tensor, padding: tuple[int, int], size: Sequence[int]
    ) -> Tensor:
        """Transpose a convolution of stride s: s² convolutions of the kernel's every s-th element.

        Position q s + r of the padded input meets the outputs q − d at the kernel's elements
        r + s d, where there are any.
        """
        (step, _), (out, into, kh, kw) = self.layer.stride, weight.shape
        mh, mw = -(-kh // step), -(-kw // step)
        weight = F.pad(weight, (0, mw * step - kw, 0, mh * step - kh))
        phases = weight.view(out, into, mh, step, mw, step).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
        kernel = phases.reshape(into * step * step, out, mh, mw)
        back = F.pixel_shuffle(F.conv2d(a, kernel, None, 1, (mh - 1, mw - 1)), step)
        (top, left), (h, w) = padding, size
        short = (0, max(0, left + w - back.shape[3]), 0, max(0, top + h - back.shape[2]))
        back = F.pad(back, short) if any(short) else back
        return back[:, :, top : top + h, left : left + w]


@dataclass
class ScaleOp:
    """w · x + b with w and b broadcast over an example; both are read by `read`."""

    read: Callable[[], tuple[Tensor, Tensor]]
    terms: int = 3
    bulk: Callable[[], Tensor] | None = None  # |b| before anything cancels in it
    back_terms: int = 2

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.read()
        return x * w + b

    def spread(self, r: Tensor) -> Tensor:
        return r * self.read()[0].abs()

    def squares(self, r: Tensor) -> Tensor:
        return r * self.read()[0].square()

    def pull(self, a: Tensor) -> Tensor:
        return a * self.read()[0].to(a.dtype)

    def offset(self, a: Tensor) -> Tensor:
        bias = self.read()[1]
        return torch.matmul(a.flatten(2), bias.to(a.dtype).expand(1, *a.shape[2:]).flatten())

    def size(self) -> Tensor:
        return self.read()[1].abs() if self.bulk is None else self.bulk()


@dataclass
class AverageOp:
    """A linear map with weights that are not negative and no bias: reshapes, average pooling."""

    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    terms: int = 0

    @property
    def back_terms(self) -> int:
        return self.terms  # windows overlap at most so often

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def spread(self, r: Tensor) -> Tensor:
        return self.function(r)

    def squares(self, r: Tensor) -> Tensor:
        # sum w² r ≤ max w · sum w r, and weights of an average are at most 1.
        return self.function(r)

    def pull(self, a: Tensor) -> Tensor:
        # The vector-Jacobian product of a linear map is A W at any point: autograd transposes every
        # pooling and reshape, with a graph only where slopes are optimized.
        flat = a.flatten(0, 1)
        point = flat.new_zeros(len(flat), *self.shape, requires_grad=True)
        with torch.enable_grad():
            (back,) = torch.autograd.grad(
                self.function(point), point, flat, create_graph=flat.requires_grad
            )
        return back.view(*a.shape[:2], *self.shape)

    def offset(self, a: Tensor) -> Tensor:
        return a.new_zeros(a.shape[:2])

    def size(self) -> Tensor:
        return torch.zeros(())


def widening(op: Affine, size: Tensor, more: int = 0) -> Tensor:
    """Bound the error of a float32 evaluation of `op` at |x| ≤ `size` [b, *in]: [b, *out].

    gamma_n (|W| |x| + |b|), gamma_n = n u / (1 − n u). Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1: sums in any order, with or without fused operations. Not covered:
    Winograd and FFT convolutions, TF32. `more` summands are added to the count: Σ |A| |W| |x| is
    what the rounding of A W may change of a bound, too.
    """
    if not op.terms:  # a reshape rounds nothing
        return torch.zeros((), dtype=size.dtype, device=size.device)
    n = op.terms + 2 + more
    return (n * UNIT / (1 - n * UNIT)) * (op.spread(size) + op.size())
