"""Layers written as functions, and layers that are several operations: read as modules are."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.activations import RELU, Activation
from robustkit.certify.affine import Affine, AverageOp, ConvOp, LinearOp, ScaleOp, Statistics
from robustkit.models.architectures import Normalize

_CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONV2D[:5], "output_padding", "groups", "dilation")
BATCH_STATISTICS: list[Statistics] = []  # innermost last; see graph.clean_statistics
Steps = list["Affine | Activation"]


def as_module(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
    """Return the module that a functional layer with constant weights stands for."""
    if name == "linear":
        options = given(("input", "weight", "bias"), args, kwargs)
        weight = options.get("weight")
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            return None
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        return with_tensors(linear, weight, options.get("bias"))
    if name == "conv2d":
        options = given(_CONV2D, args, kwargs)
        weight = options.get("weight")
        if not isinstance(weight, Tensor):
            return None
        groups, padding = int(options.get("groups", 1)), options.get("padding", 0)
        conv = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=options.get("stride", 1),
            padding=padding,
            dilation=options.get("dilation", 1),
            groups=groups,
            bias=False,
            device="meta",
        )
        return with_tensors(conv, weight, options.get("bias"))
    if name == "conv_transpose2d":
        options = given(_TRANSPOSED, args, kwargs)
        weight = options.get("weight")
        if not isinstance(weight, Tensor):
            return None
        rest = {key: options[key] for key in (*_TRANSPOSED[3:],) if key in options}
        groups = int(options.get("groups", 1))
        turned = nn.ConvTranspose2d(
            weight.shape[0],
            weight.shape[1] * groups,
            (weight.shape[2], weight.shape[3]),
            bias=False,
            device="meta",
            **rest,
        )
        return with_tensors(turned, weight, options.get("bias"))
    if name == "batch_norm":
        return _batch_norm(given(tuple(inspect.signature(F.batch_norm).parameters), args, kwargs))
    return None


def given(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def with_tensors(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Give a layer these very tensors: bounds follow the weights of a network in training."""
    for key, value in (("weight", weight), ("bias", bias)):
        layer._parameters.pop(key, None)
        object.__setattr__(layer, key, value)
    return layer


def _batch_norm(options: dict[str, Any]) -> nn.Module | None:
    mean, var = options.get("running_mean"), options.get("running_var")
    if options.get("training") or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return None
    weight, bias = options.get("weight"), options.get("bias")
    if (weight is None) != (bias is None):
        return None
    layer = nn.BatchNorm2d(
        len(mean), eps=float(options.get("eps", 1e-5)), affine=weight is not None, device="meta"
    )
    layer._buffers.update(running_mean=mean, running_var=var)
    return layer if weight is None else with_tensors(layer, weight, bias)


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
    with_tensors(bare, layer.weight, layer.bias)
    pad = AverageOp(lambda x: F.pad(x, widths, mode), shape)
    inner = tuple(F.pad(torch.empty(1, *shape, device="meta"), widths, mode).shape[1:])
    return [pad, ConvOp(bare, inner)]


def signal_convolution(
    layer: nn.Conv1d, shape: tuple[int, ...], result: tuple[int, ...]
) -> Steps | None:
    """Return a convolution of signals [c, t] as one of images of one row."""
    wide = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (1, layer.kernel_size[0]),
        stride=(1, layer.stride[0]),
        padding=layer.padding if isinstance(layer.padding, str) else (0, layer.padding[0]),
        dilation=(1, layer.dilation[0]),
        groups=layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    with_tensors(wide, layer.weight.detach()[:, :, None], layer.bias)
    steps = padded_convolution(wide, (shape[0], 1, *shape[1:]))
    if steps is None or len(shape) != 2:
        return None
    first = AverageOp(lambda x: x[:, :, None], shape)
    last = AverageOp(lambda x: x[:, :, 0], (result[0], 1, *result[1:]))
    return [first, *steps, last]


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
            options = given(("input", "min_val", "max_val"), args, kwargs)
            low, high = options.get("min_val", low), options.get("max_val", high)
    elif name in ("clamp", "clip", "clamp_min", "clamp_max"):
        names = {"clamp_min": ("input", "min"), "clamp_max": ("input", "max")}
        options = given(names.get(name, ("input", "min", "max")), args, kwargs)
        low, high = options.get("min"), options.get("max")
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


def layer(module: nn.Module | None, shape: tuple[int, ...]) -> Affine | None:
    """Return a linear layer, a batch normalization or a normalization; None for any other."""
    if isinstance(module, nn.Linear):
        return LinearOp(module)
    if isinstance(module, Normalize):
        return ScaleOp(lambda: (1 / module.std, -module.mean / module.std))
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.running_var is not None:
        return _batch_norm_op(module, len(shape))
    return None


def _batch_norm_op(layer: nn.BatchNorm1d | nn.BatchNorm2d, rank: int) -> ScaleOp:
    view = (1, -1, *[1] * (rank - 1))

    # y = scale x + (bias − scale mean): one affine map per channel, as in evaluation mode.
    def parts() -> tuple[Tensor, Tensor, Tensor]:
        mean, var = layer.running_mean, layer.running_var
        if layer.training and BATCH_STATISTICS and layer in BATCH_STATISTICS[-1]:
            mean, var = BATCH_STATISTICS[-1][layer]
        assert mean is not None
        assert var is not None
        scale = (var + layer.eps).rsqrt()
        if layer.affine:
            scale = scale * layer.weight
        bias = layer.bias if layer.affine else torch.zeros_like(mean)
        return scale.view(view), (mean * scale).view(view), bias.view(view)

    def read() -> tuple[Tensor, Tensor]:
        scale, center, bias = parts()
        return scale, bias - center

    def bulk() -> Tensor:
        # Not |bias − center|: the terms may cancel, their rounding errors do not.
        _, center, bias = parts()
        return center.abs() + bias.abs()

    return ScaleOp(read, terms=8, bulk=bulk)
