"""From a node of torch.fx to the operation that bounds are known for.

An operation is accepted only where its bounds are known to be sound. What depends on the input in
any other way (a tuple, a number read from values, an argument that changes the function) is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.activations import KNOWN, Activation, leaky
from robustkit.certify.affine import Affine, AverageOp
from robustkit.certify.compound import Plan, Step, compound
from robustkit.certify.functional import (
    as_module,
    clamped,
    layer,
    padded_convolution,
    signal_convolution,
)
from robustkit.certify.nonlinear import Nonlinear, Product
from robustkit.certify.shapes import moved
from robustkit.certify.supported import SUPPORTED
from robustkit.certify.transposed_convolution import TransposedConvOp


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


Op: TypeAlias = "Input | Sum | Join | MaxPool | Activation | Nonlinear | Affine"

_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}
_ARITHMETIC = ("add", "sub", "mul", "truediv", "div", "neg")
_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


class Call(NamedTuple):
    """A node with its arguments filled in for an example of batch 1.

    `sources`: shapes of the arguments that depend on the input, in order; `first`: whether the
    first argument does; `same`: whether all sources are one value; `varying`: which
    items of a first argument that is a list do; `result`: shape of the outcome. Shapes are without
    the batch axis.
    """

    name: str
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: list[tuple[int, ...]]
    first: bool
    result: tuple[int, ...]
    same: bool = False
    varying: tuple[int, ...] = ()


def plain_name(name: str) -> str:
    """Return the name that functions, methods and modules of one operation share."""
    name = name.lower().strip("_")
    return _IN_PLACE.get(name, name)


_NEAREST = {
    "hardswish": "The nearest that is known is SiLU.",
    "mish": "The nearest that is known is SiLU.",
    "prelu": "The nearest that is known is LeakyReLU with a fixed slope.",
    "selu": "The nearest that is known is ELU with alpha 1.",
    "matmul": "Products of matrices are known with equal batch axes.",
    "div": "The nearest that is known is a product.",
    "truediv": "The nearest that is known is a product.",
    "pow": "The nearest that is known is the square.",
    "multiheadattention": "Known with batch_first=True, and without masks.",
    "scaled_dot_product_attention": "Known without a mask and dropout.",
    "stochastic_depth": "Put the network in evaluation mode.",
    "dropout": "Put the network in evaluation mode.",
    "half": "Bounds are of the float32 network: keep float32.",
    "bfloat16": "Bounds are of the float32 network: keep float32.",
}


def nearest(name: str) -> str:
    """Return what to use in place of an operation, or what is known."""
    return _NEAREST.get(
        name,
        f"Known: {', '.join(SUPPORTED)}.",
    )


def operations(call: Call) -> list[Step] | None:
    """Return what a node does, as one operation or several; None where no bounds are known."""
    name, single = plain_name(call.name), len(call.sources) == 1
    module = call.module
    if single and call.first and module is None:
        module = as_module(name, call.args, call.kwargs)
    if single and isinstance(module, nn.Conv2d):
        return _chain(padded_convolution(module, call.sources[0]))
    if single and isinstance(module, nn.Conv1d):
        return _chain(signal_convolution(module, call.sources[0], call.result))
    if single and isinstance(module, nn.ConvTranspose2d):
        sized = module is call.module and (len(call.args) > 1 or call.kwargs)
        return None if sized else _chain([TransposedConvOp(module, call.sources[0])])
    if single and call.first and (clamp := clamped(name, module, call.args, call.kwargs)):
        return _chain(clamp)
    call = call._replace(module=module)
    if name in ("cat", "concat"):
        return _join(call)
    if name in ("add", "sub", "mul") and len(call.sources) == 2:
        return _two(name, call)
    if steps := compound(name, call):
        return steps
    op = _operation(call)
    if op is None and single and name in _ARITHMETIC:
        return _constant(name, call)
    return None if op is None else _chain([op])


def _chain(ops: Sequence[Op] | None) -> list[Step] | None:
    return None if ops is None else [Step(op, (at,)) for at, op in enumerate(ops)]


def _join(call: Call) -> list[Step] | None:
    axis = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else 0)
    axis = int(axis) % (len(call.result) + 1)
    parts = call.args[0]
    if axis and len(parts) == len(call.sources):
        return [Step(Join(axis), tuple(range(len(parts))))]
    if not axis or len(call.varying) != 1:
        return None
    # Beside constants: the value among zeros, and the constants added.
    (at,), plan = call.varying, Plan(call.sources)
    zeros = [torch.zeros_like(part) for part in parts]
    fixed = torch.cat([*parts[:at], zeros[at], *parts[at + 1 :]], axis)

    def among(x: Tensor) -> Tensor:
        rest = [zero.to(x).expand(len(x), *zero.shape[1:]) for zero in zeros]
        return torch.cat([*rest[:at], x, *rest[at + 1 :]], axis)

    placed = plan.add(AverageOp(among, call.sources[0]), call.result, 0)
    plan.scale(placed, lambda: (torch.ones(()), fixed))
    return plan.steps


def _two(name: str, call: Call) -> list[Step] | None:
    """Sums and products of two values, broadcast to one shape first."""
    if call.kwargs or len(call.args) != 2:
        return None
    plan = Plan(call.sources)
    one, two = (plan.expand(at, call.result) for at in (0, 1))
    if name == "mul":
        plan.add(Product(square=call.same), call.result, one, two)
    else:
        plan.add(Sum(1 if name == "add" else -1), call.result, one, two)
    return plan.steps


def _operation(call: Call) -> Op | None:
    name = plain_name(call.name)
    if len(call.sources) != 1:
        return None
    if affine := layer(call.module, call.sources[0]):
        return affine
    if name in ("maxpool2d", "max_pool2d"):
        return _max_pool(call)
    return _activation(name, call) or _averaging(name, call)


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


def _constant(name: str, call: Call) -> list[Step] | None:
    """Sums and products with what does not depend on the input, broadcast where they must be."""
    if call.kwargs:
        return None
    plan = Plan(call.sources)
    at = plan.expand(0, call.result)
    if name == "neg":
        plan.scale(at, lambda: (-torch.ones(()), torch.zeros(())))
        return plan.steps
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

    plan.scale(at, read)
    return plan.steps


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
