"""Operators of ONNX as torch modules and functions, over a value with one batch axis in front.

Each builder takes a node, the shapes that ONNX gives its values and its constants, and returns what
computes it. Shapes are those of the graph, for one point; the batch axis stands in front of them,
or in place of their first axis where that is a batch of one (`lead`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]
Compute: TypeAlias = Callable[..., Tensor]


class Refused(Exception):
    """A node that is not known as it is used; says why."""


class Operator(NamedTuple):
    """One node as a builder sees it.

    Attributes:
        shapes: of its inputs and then its first output, without the batch axis.
        constants: of its inputs; None where one depends on the input of the network.
        lead: axes of the graph that the batch axis stands for.
    """

    kind: str
    options: dict[str, Any]
    shapes: list[Shape]
    constants: list[Tensor | None]
    lead: int

    @property
    def result(self) -> Shape:
        return self.shapes[-1]

    def constant(self, place: int) -> Tensor | None:
        """Return a constant input, or None where it is left out."""
        return self.constants[place] if place < len(self.constants) else None

    def axis(self, axis: int, rank: int | None = None) -> int:
        """Turn an axis of the graph into one of torch."""
        rank = len(self.shapes[0]) + self.lead if rank is None else rank
        axis = axis % rank
        if axis < self.lead:
            raise Refused(f"it works on axis {axis}, that of the batch")
        return axis - self.lead + 1


def build(op: Operator) -> Compute:
    """Return what computes the inputs that are not constant -> the first output.

    Raises:
        Refused: for an operator that is not known, or not as it is used here.
    """
    if op.kind in _PLAIN:
        return _PLAIN[op.kind](op)
    if op.kind in ("Add", "Sub", "Mul", "Div"):
        return _arithmetic(op)
    if op.kind in _OTHERS:
        return _OTHERS[op.kind](op)
    raise Refused("it is not known")


def _arithmetic(op: Operator) -> Compute:
    first, second = op.constants[:2]
    for shape, constant in zip(op.shapes[:2], (first, second), strict=True):
        if constant is None and len(shape) < len(op.result):
            raise Refused("its inputs have several numbers of axes")
    kind = op.kind
    if first is None and second is None:
        return {"Add": _add, "Sub": _sub, "Mul": _mul, "Div": _div}[kind]
    held = _Held(_aligned(op, first if second is None else second), kind, second is None)
    return held


def _aligned(op: Operator, constant: Tensor | None) -> Tensor:
    """Return a constant without the axes that the batch axis stands for."""
    assert constant is not None
    rank = len(op.result) + op.lead
    full = constant.reshape((1,) * (rank - constant.ndim) + tuple(constant.shape))
    if op.lead and full.shape[0] != 1:
        raise Refused("a constant differs along the axis of the batch")
    if any(size > whole for size, whole in zip(full.shape[op.lead :], op.result, strict=True)):
        raise Refused("a constant widens its result")
    return full if op.lead else full[None]


def _add(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def _sub(a: Tensor, b: Tensor) -> Tensor:
    return a - b


def _mul(a: Tensor, b: Tensor) -> Tensor:
    return a * b


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b


class _Held(nn.Module):
    """Arithmetic with a constant on one side."""

    value: Tensor

    def __init__(self, value: Tensor, kind: str, in_front: bool) -> None:
        super().__init__()
        self.register_buffer("value", value)
        self.kind, self.in_front = kind, in_front

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.value, x) if self.in_front else (x, self.value)
        if self.kind == "Add":
            return a + b
        if self.kind == "Sub":
            return a - b
        return a * b if self.kind == "Mul" else a / b


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return x W^T + b for weight [out, in]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        full = bias.flatten().expand(weight.shape[0]).contiguous()
        layer.bias = nn.Parameter(full, requires_grad=False)
    return layer


def matrix(weight: Tensor, bias: Tensor, result: Shape) -> nn.Module:
    """Return [b, *f] -> [b, *result], affine in the flat numbers of a point."""
    parts: list[nn.Module] = [nn.Flatten(), _linear(weight, bias)]
    return nn.Sequential(*parts, *([nn.Unflatten(1, result)] if len(result) != 1 else []))


def _flat(op: Operator, layer: nn.Module) -> Compute:
    """Run a layer on [b, n] where ONNX has one more axis of size 1."""
    if len(op.shapes[0]) == 1:
        return layer
    if op.shapes[0][:-1] != (1,):
        raise Refused(f"expected one row a point, got {list(op.shapes[0])}")
    width = op.result[-1]
    return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, (1, width)))


def _matmul(op: Operator) -> Compute:
    weight = op.constants[1]
    if weight is None and op.constants[0] is None:
        return torch.matmul
    if weight is None or weight.ndim != 2:
        raise Refused("expected an input times a constant matrix")
    return _flat(op, _linear(weight.T, None))


def _gemm(op: Operator) -> Compute:
    weight, bias = op.constant(1), op.constant(2)
    if weight is None or op.options.get("transA") or op.constants[0] is not None:
        raise Refused("expected an input times a constant matrix")
    weight = weight if op.options.get("transB") else weight.T
    bias = None if bias is None else bias * float(op.options.get("beta", 1.0))
    return _flat(op, _linear(weight * float(op.options.get("alpha", 1.0)), bias))


def _images(op: Operator, layer: nn.Module) -> Compute:
    """Run a layer on [b, c, h, w], with the axis of a batch of one in front or without."""
    if op.lead:
        return layer
    if op.shapes[0][0] != 1:
        raise Refused(f"expected a batch of one, got {list(op.shapes[0])}")
    return nn.Sequential(nn.Flatten(0, 1), layer, nn.Unflatten(0, (-1, 1)))


def _padding(op: Operator) -> tuple[tuple[int, int], nn.Module | None]:
    """Return the padding that is alike on both sides, or a layer that pads each side apart."""
    kind = op.options.get("auto_pad", b"NOTSET")
    if kind in (b"SAME_UPPER", b"SAME_LOWER"):
        raise Refused("its padding follows from the size of the input: write `pads`")
    top, left, bottom, right = op.options.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return (top, left), None
    return (0, 0), nn.ZeroPad2d((left, right, top, bottom))


def _conv(op: Operator) -> Compute:
    weight, bias = op.constant(1), op.constant(2)
    if weight is None or weight.ndim != 4:
        raise Refused("expected a constant kernel of two dimensions")
    pad, before = _padding(op)
    groups = int(op.options.get("group", 1))
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=tuple(op.options.get("strides", (1, 1))),
        padding=pad,
        dilation=tuple(op.options.get("dilations", (1, 1))),
        groups=groups,
        bias=bias is not None,
    )
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return _images(op, layer if before is None else nn.Sequential(before, layer))


def _pool(op: Operator) -> Compute:
    kernel = tuple(op.options["kernel_shape"])
    if len(kernel) != 2:
        raise Refused("expected a kernel of two dimensions")
    pad, before = _padding(op)
    if before is not None or tuple(op.options.get("dilations", (1, 1))) != (1, 1):
        raise Refused("its padding differs by side, or it is dilated")
    stride, ceil = tuple(op.options.get("strides", (1, 1))), bool(op.options.get("ceil_mode", 0))
    if op.kind == "MaxPool":
        return _images(op, nn.MaxPool2d(kernel, stride, pad, ceil_mode=ceil))
    whole = bool(op.options.get("count_include_pad", 0))
    return _images(op, nn.AvgPool2d(kernel, stride, pad, ceil, whole))


def _batch_norm(op: Operator) -> Compute:
    scale, bias, mean, var = (op.constant(place) for place in (1, 2, 3, 4))
    if scale is None or bias is None or mean is None or var is None:
        raise Refused("expected constant statistics")
    rank = len(op.shapes[0]) + op.lead
    layer = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(
        len(mean), eps=float(op.options.get("epsilon", 1e-5))
    )
    layer.weight = nn.Parameter(scale, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    layer.running_mean, layer.running_var = mean, var
    if rank == 4:
        return _images(op, layer)
    if not op.lead or rank != 2:
        raise Refused(f"expected [n, c] or [n, c, h, w], got {list(op.shapes[0])}")
    return layer


def _reshape(op: Operator) -> Compute:
    result = op.result
    return lambda x: x.reshape(x.shape[0], *result)


def _concat(op: Operator) -> Compute:
    if any(constant is not None for constant in op.constants):
        raise Refused("it joins a constant to the input")
    axis = op.axis(int(op.options["axis"]))
    return lambda *parts: torch.cat(parts, axis)


def _clip(op: Operator) -> Compute:
    low, high = op.constant(1), op.constant(2)
    if None in op.constants[1:]:
        raise Refused("expected constant limits")
    bounds = [None if limit is None else float(limit) for limit in (low, high)]
    if bounds == [0.0, None]:
        return nn.ReLU()
    return lambda x: torch.clamp(x, bounds[0], bounds[1])


_PLAIN: dict[str, Callable[[Operator], Compute]] = {
    "Relu": lambda op: nn.ReLU(),
    "Sigmoid": lambda op: nn.Sigmoid(),
    "Tanh": lambda op: nn.Tanh(),
    "Softplus": lambda op: nn.Softplus(),
    "LeakyRelu": lambda op: nn.LeakyReLU(float(op.options.get("alpha", 0.01))),
    "Elu": lambda op: nn.ELU(float(op.options.get("alpha", 1.0))),
    "Softmax": lambda op: nn.Softmax(op.axis(int(op.options.get("axis", -1)))),
    "GlobalAveragePool": lambda op: _images(op, nn.AdaptiveAvgPool2d(1)),
    "Neg": lambda op: torch.neg,
    "Identity": lambda op: nn.Identity(),
    "Dropout": lambda op: nn.Identity(),
}
_OTHERS: dict[str, Callable[[Operator], Compute]] = {
    "MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "MaxPool": _pool, "AveragePool": _pool,
    "BatchNormalization": _batch_norm, "Reshape": _reshape, "Flatten": _reshape,
    "Squeeze": _reshape, "Unsqueeze": _reshape, "Concat": _concat,
    "Clip": _clip,
}  # fmt: skip
# Affine in one input where the others are constant; the reference implementation gives the matrix.
LINEAR = (
    "Slice", "Split", "Gather", "ReduceSum", "ReduceMean", "Expand", "Pad", "Concat", "Transpose",
)  # fmt: skip
KNOWN = (*_PLAIN, "Add", "Sub", "Mul", "Div", *_OTHERS, *LINEAR, "Constant", "ConstantOfShape")
