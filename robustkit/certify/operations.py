"""From a node of torch.fx to the operation that bounds are known for.

An operation is accepted only where its bounds are known to be sound. What depends on the input in
any other way (a tuple, a number read from values, an argument that changes the function) is
refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.activations import KNOWN, Activation, leaky
from robustkit.certify.affine import Affine, AverageOp, LinearOp, ScaleOp, Statistics
from robustkit.certify.functional import as_module, clamped, padded_convolution
from robustkit.certify.shapes import moved
from robustkit.models.architectures import Normalize


class Input(NamedTuple):
    """The input of the network."""


class Sum(NamedTuple):
    """a + sign · b."""

    sign: int


class Join(NamedTuple):
    """Concatenation along a feature axis, counted with the batch axis."""

    axis: int


class MaxPool(NamedTuple):
    """Max pooling of [c, h, w]."""

    options: dict[str, Any]

    @property
    def overlaps(self) -> bool:
        """Whether an input may lie in more than one window."""
        return (
            self.options.get("stride") not in (None, self.options["kernel_size"])
            or bool(self.options.get("padding"))
            or self.options.get("dilation", 1) not in (1, (1, 1))
        )


Op: TypeAlias = "Input | Sum | Join | MaxPool | Activation | Affine"

BATCH_STATISTICS: list[Statistics] = []  # innermost last; see graph.clean_statistics
_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}
_ARITHMETIC = ("add", "sub", "mul", "truediv", "div", "neg")
_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


class Call(NamedTuple):
    """A node with its arguments filled in for an example of batch 1.

    `sources`: shapes of the arguments that depend on the input, in order; `first`: whether the
    first argument does; `result`: shape of the outcome. Shapes are without the batch axis.
    """

    name: str
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: list[tuple[int, ...]]
    first: bool
    result: tuple[int, ...]


def plain_name(name: str) -> str:
    """Return the name that functions, methods and modules of one operation share."""
    name = name.lower().strip("_")
    return _IN_PLACE.get(name, name)


_NEAREST = {
    "softmax": "Certify the logits before it: it changes no class.",
    "log_softmax": "Certify the logits before it: it changes no class.",
    "logsoftmax": "Certify the logits before it: it changes no class.",
    "hardswish": "The nearest that is known is SiLU.",
    "mish": "The nearest that is known is SiLU.",
    "prelu": "The nearest that is known is LeakyReLU with a fixed slope.",
    "selu": "The nearest that is known is ELU with alpha 1.",
    "layernorm": "The nearest that is known is batch normalization.",
    "layer_norm": "The nearest that is known is batch normalization.",
    "groupnorm": "The nearest that is known is batch normalization.",
    "instancenorm2d": "The nearest that is known is batch normalization.",
    "mul": "Products are known with a constant factor alone.",
    "matmul": "The nearest that is known is a linear layer.",
    "half": "Bounds are of the float32 network: keep float32.",
    "bfloat16": "Bounds are of the float32 network: keep float32.",
}


def nearest(name: str) -> str:
    """Return what to use in place of an operation, or what is known."""
    return _NEAREST.get(
        name,
        "Known: linear, convolution, batch normalization, pooling, padding, reshapes, slices, "
        "sums, concatenation, constants, clamp, and the usual activations.",
    )


def operations(call: Call) -> list[Op] | None:
    """Return what a node does, as one operation or several; None where no bounds are known."""
    name, single = plain_name(call.name), len(call.sources) == 1
    module = call.module
    if single and call.first and module is None:
        module = as_module(name, call.args, call.kwargs)
    if single and isinstance(module, nn.Conv2d):
        steps = padded_convolution(module, call.sources[0])
        return None if steps is None else list(steps)
    if single and call.first and (clamp := clamped(name, module, call.args, call.kwargs)):
        return list(clamp)
    op = _operation(call._replace(module=module))
    return None if op is None else [op]


def _operation(call: Call) -> Op | None:
    name = plain_name(call.name)
    if name in ("cat", "concat"):
        axis = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0)
        axis = int(axis) % (len(call.result) + 1)
        return Join(axis) if axis and len(call.args[0]) == len(call.sources) else None
    if name in ("add", "sub") and len(call.sources) == 2:
        same = call.sources == [call.result] * 2
        return Sum(1 if name == "add" else -1) if same and not call.kwargs else None
    if len(call.sources) != 1:
        return None
    if isinstance(call.module, (nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, Normalize)):
        return _layer(call.module, call.sources[0])
    if name in _ARITHMETIC:
        return _constant(name, call)
    if name in ("maxpool2d", "max_pool2d"):
        return _max_pool(call)
    return _activation(name, call) or _averaging(name, call)


def _layer(layer: nn.Module, shape: tuple[int, ...]) -> Affine | None:
    if isinstance(layer, nn.Linear):
        return LinearOp(layer)
    if isinstance(layer, Normalize):
        return ScaleOp(lambda: (1 / layer.std, -layer.mean / layer.std))
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.running_var is not None:
        return _batch_norm(layer, len(shape))
    return None


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, rank: int) -> ScaleOp:
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


def _activation(name: str, call: Call) -> Activation | None:
    module = call.module
    # An option that changes the function (beta, alpha, approximate) must be refused, not ignored.
    rest = [value for value in call.args[1:] if not isinstance(value, bool)]  # inplace
    options = {key: value for key, value in call.kwargs.items() if key != "inplace"}
    if name in ("leakyrelu", "leaky_relu"):
        slope = rest[0] if rest else options.get("negative_slope", 0.01)
        slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else slope
        return leaky(float(slope)) if 0 <= float(slope) <= 1 else None
    if rest or options:
        return None
    if isinstance(module, nn.ELU) and module.alpha != 1:
        return None
    if isinstance(module, nn.Softplus) and (module.beta != 1 or module.threshold != 20):
        return None
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return KNOWN.get(name)


def _max_pool(call: Call) -> MaxPool | None:
    module = call.module
    if isinstance(module, nn.MaxPool2d):
        return MaxPool({key: getattr(module, key) for key in _POOL})
    options = {**dict(zip(_POOL, call.args[1:], strict=False)), **call.kwargs}
    options.pop("return_indices", None)  # a tuple, refused before, where it is true
    return MaxPool(options) if set(options) <= set(_POOL) else None


def _constant(name: str, call: Call) -> ScaleOp | None:
    """Sums and products with what does not depend on the input."""
    if call.kwargs or call.result != call.sources[0]:
        return None
    if name == "neg":
        return ScaleOp(lambda: (-torch.ones(()), torch.zeros(())))
    if len(call.args) != 2 or (name in ("truediv", "div") and not call.first):
        return None
    other = call.args[1] if call.first else call.args[0]
    if not isinstance(other, (int, float, Tensor)):
        return None

    def read() -> tuple[Tensor, Tensor]:
        c = torch.as_tensor(other)
        one, zero = torch.ones_like(c), torch.zeros_like(c)
        if name == "add":
            return one, c
        if name == "sub":
            return (one, -c) if call.first else (-one, c)
        return (c, zero) if name == "mul" else (1 / c, zero)

    return ScaleOp(read)


def _averaging(name: str, call: Call) -> AverageOp | None:
    """Maps with weights between 0 and 1 and no bias."""
    shape, result, module = call.sources[0], call.result, call.module
    if call.first and (found := moved(name, module, call.args, call.kwargs, (shape, result))):
        return found
    rest, kwargs = call.args[1:], call.kwargs
    if name == "mean":
        given = kwargs.get("dim", rest[0] if rest else None)
        dims = [given] if isinstance(given, int) else given
        # A mean over the batch axis couples the points.
        if dims is None or any(d % (len(shape) + 1) == 0 for d in dims):
            return None
        keep = bool(kwargs.get("keepdim", rest[1] if len(rest) > 1 else False))
        return AverageOp(lambda x: x.mean(dims, keepdim=keep), shape, terms=_product(shape))
    terms = _product(shape[1:])
    if isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
        plain = getattr(module, "divisor_override", None) is None
        return AverageOp(lambda x: module(x), shape, terms=terms) if plain else None
    if name in ("avg_pool2d", "adaptive_avg_pool2d"):
        if len(rest) > 5 or kwargs.get("divisor_override") is not None:
            return None
        function: Any = getattr(F, name)
        return AverageOp(lambda x: function(x, *rest, **kwargs), shape, terms=terms)
    return None


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
