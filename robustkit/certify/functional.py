"""Layers written as functions, and layers that are several operations: read as modules are."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.activations import RELU, Activation
from robustkit.certify.affine import Affine, AverageOp, ConvOp, ScaleOp

_CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
Steps = list["Affine | Activation"]


def as_module(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
    """Return the module that a functional layer with constant weights stands for."""
    if name == "linear":
        given = _given(("input", "weight", "bias"), args, kwargs)
        weight = given.get("weight")
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            return None
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        return _with(linear, weight, given.get("bias"))
    if name == "conv2d":
        given = _given(_CONV2D, args, kwargs)
        weight = given.get("weight")
        if not isinstance(weight, Tensor):
            return None
        groups, padding = int(given.get("groups", 1)), given.get("padding", 0)
        conv = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=given.get("stride", 1),
            padding=padding,
            dilation=given.get("dilation", 1),
            groups=groups,
            bias=False,
            device="meta",
        )
        return _with(conv, weight, given.get("bias"))
    if name == "batch_norm":
        return _batch_norm(_given(tuple(inspect.signature(F.batch_norm).parameters), args, kwargs))
    return None


def _given(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _with(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    # The tensors themselves: bounds follow the weights of a network in training.
    for key, value in (("weight", weight), ("bias", bias)):
        layer._parameters.pop(key, None)
        object.__setattr__(layer, key, value)
    return layer


def _batch_norm(given: dict[str, Any]) -> nn.Module | None:
    mean, var = given.get("running_mean"), given.get("running_var")
    if given.get("training") or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return None
    weight, bias = given.get("weight"), given.get("bias")
    if (weight is None) != (bias is None):
        return None
    layer = nn.BatchNorm2d(
        len(mean), eps=float(given.get("eps", 1e-5)), affine=weight is not None, device="meta"
    )
    layer._buffers.update(running_mean=mean, running_var=var)
    return layer if weight is None else _with(layer, weight, bias)


def padded_convolution(layer: nn.Conv2d, shape: tuple[int, ...]) -> Steps | None:
    """Return a convolution; padding other than equal zeros is an operation of its own."""
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return [ConvOp(layer, shape)]
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}
    mode = modes.get(layer.padding_mode, "circular")
    # PyTorch keeps the widths of "same" and of the other modes here, the last axis first.
    widths = tuple(int(width) for width in layer._reversed_padding_repeated_twice)
    bare = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size[0], layer.kernel_size[1]),
        stride=(layer.stride[0], layer.stride[1]),
        dilation=(layer.dilation[0], layer.dilation[1]),
        groups=layer.groups,
        bias=False,
        device="meta",
    )
    _with(bare, layer.weight, layer.bias)
    pad = AverageOp(lambda x: F.pad(x, widths, mode), shape)
    inner = tuple(F.pad(torch.empty(1, *shape, device="meta"), widths, mode).shape[1:])
    return [pad, ConvOp(bare, inner)]


def clamped(
    name: str, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Steps | None:
    """Return min(max(x, low), high) as ReLUs: high − relu(high − low − relu(x − low))."""
    low: Any
    high: Any
    if name in ("relu6", "hardtanh"):
        low, high = (0.0, 6.0) if name == "relu6" else (-1.0, 1.0)
        if module is not None:
            low, high = getattr(module, "min_val", low), getattr(module, "max_val", high)
        elif name == "hardtanh":
            given = _given(("input", "min_val", "max_val"), args, kwargs)
            low, high = given.get("min_val", low), given.get("max_val", high)
    elif name in ("clamp", "clip", "clamp_min", "clamp_max"):
        names = {"clamp_min": ("input", "min"), "clamp_max": ("input", "max")}
        given = _given(names.get(name, ("input", "min", "max")), args, kwargs)
        low, high = given.get("min"), given.get("max")
    else:
        return None
    if any(not isinstance(end, (int, float, type(None))) for end in (low, high)):
        return None
    if low is None or high is None:
        if low is None and high is None:
            return None
        if low is None:
            return [_scaled(-1.0, float(high)), RELU, _scaled(-1.0, float(high))]
        return [_scaled(1.0, -float(low)), RELU, _scaled(1.0, float(low))]
    span = float(high) - float(low)
    first = [_scaled(1.0, -float(low))] if low else []
    return [*first, RELU, _scaled(-1.0, span), RELU, _scaled(-1.0, float(high))]


def _scaled(scale: float, shift: float) -> ScaleOp:
    pair = torch.tensor(scale, dtype=torch.float64), torch.tensor(shift, dtype=torch.float64)
    return ScaleOp(lambda: pair)
