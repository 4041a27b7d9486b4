"""How one operation of torch.fx is read: activations, pooling, constants, reshapes, batch norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robustkit.bounds.activations import KNOWN, Activation, leaky
from robustkit.bounds.affine import AverageOp, ScaleOp

_batch_norms: list[dict[nn.Module, tuple[Tensor, Tensor]]] = []


class MaxPool(NamedTuple):
    """Max pooling of [c, h, w]."""

    options: dict[str, Any]


def batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, rank: int) -> ScaleOp:
    """Read batch normalization as a scale, by the statistics that hold when it is called."""

    def read() -> tuple[Tensor, Tensor]:
        mean, var = layer.running_mean, layer.running_var
        if layer.training and _batch_norms and layer in _batch_norms[-1]:
            mean, var = _batch_norms[-1][layer]
        assert mean is not None
        assert var is not None
        scale = (var + layer.eps).rsqrt()
        if layer.affine:
            scale = scale * layer.weight
        shift = -mean * scale + (layer.bias if layer.affine else 0)
        view = (1, -1, *[1] * (rank - 1))
        return scale.view(view), shift.view(view)

    return ScaleOp(read, terms=4)


def activation(name: str, module: nn.Module | None, kwargs: Any) -> Activation | None:
    """Return the known activation, or None."""
    if name in ("leakyrelu", "leaky_relu"):
        slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else None
        slope = kwargs.get("negative_slope", 0.01) if slope is None else slope
        return leaky(float(slope)) if 0 <= float(slope) <= 1 else None
    if isinstance(module, nn.ELU) and module.alpha != 1:
        return None
    if isinstance(module, nn.Softplus) and (module.beta != 1 or module.threshold != 20):
        return None
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    if module is None and name in ("elu", "softplus", "gelu") and kwargs:
        return None
    return KNOWN.get(name)


def max_pool(module: nn.Module | None, args: Any, kwargs: Any) -> MaxPool | None:
    """Read max pooling."""
    if isinstance(module, nn.MaxPool2d):
        keys = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return MaxPool({key: getattr(module, key) for key in keys})
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    return MaxPool({key: value for key, value in given.items() if key in names})


def constant(name: str, node: fx.Node, args: Any, place: dict[fx.Node, int]) -> ScaleOp | None:
    """Sums and products with what does not depend on the input."""
    if name == "neg":
        return ScaleOp(lambda: (-torch.ones(()), torch.zeros(())))
    if name not in ("add", "sub", "mul", "truediv", "div") or len(args) != 2:
        return None
    left = isinstance(node.args[0], fx.Node) and node.args[0] in place
    other = args[1] if left else args[0]
    if name in ("truediv", "div") and not left:
        return None

    def read() -> tuple[Tensor, Tensor]:
        c = torch.as_tensor(other)
        one, zero = torch.ones_like(c), torch.zeros_like(c)
        if name == "add":
            return one, c
        if name == "sub":
            return (one, -c) if left else (-one, c)
        return (c, zero) if name == "mul" else (1 / c, zero)

    return ScaleOp(read)


def reshaping(
    name: str, module: nn.Module | None, args: Any, kwargs: Any, shape: tuple[int, ...]
) -> AverageOp | None:
    """Maps with weights between 0 and 1 and no bias."""
    function: Callable[[Tensor], Tensor]
    if isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
        return AverageOp(lambda x: x.flatten(1), shape)
    if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
        return AverageOp(lambda x: module(x), shape, terms=shape[1] * shape[2])
    if name == "flatten":
        start = kwargs.get("start_dim", args[1] if len(args) > 1 else 0)
        return AverageOp(lambda x: x.flatten(1), shape) if start == 1 else None
    if name in ("view", "reshape"):
        sizes = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        if sizes[0] not in (1, -1):
            return None
        return AverageOp(lambda x: x.reshape(len(x), *sizes[1:]), shape)
    if name == "mean":
        given = kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = [given] if isinstance(given, int) else given
        if dims is None or any(d % (len(shape) + 1) == 0 for d in dims):
            return None
        keep = bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))
        return AverageOp(lambda x: x.mean(dims, keepdim=keep), shape, terms=_product(shape))
    if name in ("avg_pool2d", "adaptive_avg_pool2d"):
        function = getattr(F, name)
        rest = args[1:]
        return AverageOp(lambda x: function(x, *rest, **kwargs), shape, terms=_product(shape[1:]))
    return None


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


@contextmanager
def clean_statistics(model: nn.Module) -> Iterator[None]:
    """Bound a network in training with the statistics of the next forward pass, gradient included.

    Inside, every pass of `model` records the batch mean and variance of its batch normalization
    layers, and bounds use those instead of the running statistics (the convention of CTBench).
    """
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training:
            x = inputs[0]
            axes = [axis for axis in range(x.ndim) if axis != 1]
            found[layer] = (x.mean(axes), x.var(axes, unbiased=False))

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    layers = [m for m in model.modules() if isinstance(m, kinds)]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    _batch_norms.append(found)
    try:
        yield
    finally:
        _batch_norms.remove(found)
        for hook in hooks:
            hook.remove()
