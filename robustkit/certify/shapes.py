"""Linear maps that move, repeat, drop or add up values: reshapes, slices, padding, upsampling.

All have weights from 0 to 1 and no bias, so that one operation bounds them (`AverageOp`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.certify.affine import AverageOp

Shape = tuple[int, ...]
_DROPS = ("dropout", "dropout2d", "stochastic_depth", "stochasticdepth")
_RESHAPES = (
    "flatten", "view", "reshape", "identity", "contiguous", "squeeze",
    "unsqueeze", "unflatten", "clone", "detach",
)  # fmt: skip
_TO = ("to", "double", "float", "type_as")
_PARTS = ("chunk", "split", "unbind", "tensor_split")
_PADS = {"zeropad2d": "constant", "reflectionpad2d": "reflect", "replicationpad2d": "replicate"}
_UPSAMPLE = ("nearest", "bilinear")


class ReshapeOp(AverageOp):
    """Values in their order under another shape: its transpose is known without autograd."""

    def pull(self, a: Tensor) -> Tensor:
        return a.reshape(*a.shape[:2], *self.shape)


def returns_parts(name: str) -> bool:
    """Whether the operation returns several slices of its input."""
    return name in _PARTS


def moved(
    name: str,
    module: nn.Module | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: tuple[Shape, Shape],
) -> AverageOp | None:
    """Return the operation of a call whose first argument alone depends on the input.

    Args:
        shapes: of that argument and of the result, without the batch axis.
    """
    shape, result = shapes
    drops = name in _DROPS and not _trains(name, module, args, kwargs)
    if drops or name in _RESHAPES or (name in _TO and _keeps_type(args, kwargs)):
        if math.prod(shape) != math.prod(result):
            return None
        return ReshapeOp(lambda x: x.reshape(len(x), *result), shape)
    rest = args[1:]
    if name in ("permute", "transpose", "swapaxes", "movedim"):
        axes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        if kwargs or not all(isinstance(axis, int) for axis in axes):
            return None
        rank = len(shape) + 1
        fixed = [axis % rank for axis in axes]
        if name == "permute":
            return AverageOp(lambda x: x.permute(*fixed), shape) if fixed[0] == 0 else None
        return AverageOp(lambda x: x.transpose(*fixed), shape) if 0 not in fixed else None
    if name == "getitem":
        index = rest[0] if isinstance(rest[0], tuple) else rest
        whole = index[0] is Ellipsis or index[0] == slice(None)
        plain = all(isinstance(part, (int, slice, type(...))) or part is None for part in index)
        return AverageOp(lambda x: x[index], shape) if whole and plain else None
    if name == "sum":
        return _sum(rest, kwargs, shape)
    if name in _PADS or name == "pad":
        return _pad(name, module, rest, kwargs, shape)
    if name in ("upsample", "interpolate", "upsamplingnearest2d", "upsamplingbilinear2d"):
        return _upsampled(module, rest, kwargs, shapes)
    return None


def part_of(call: Callable[[Tensor], Any], index: int, shape: Shape) -> AverageOp:
    """Return the operation that takes one of the slices that `call` returns."""
    return AverageOp(lambda x: call(x)[index], shape)


def _trains(
    name: str, module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether dropout drops: modules do not in evaluation mode, in which the network is traced."""
    if module is not None:
        return False
    deep = name == "stochastic_depth"
    names = ("input", "p", "mode", "training") if deep else ("input", "p", "training")
    return bool({**dict(zip(names, args, strict=False)), **kwargs}.get("training", True))


def _keeps_type(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a cast leaves precision as it is: a type that is narrower rounds every value.

    `.float()` is the identity in the float32 network that is certified, and does not depend on the
    copy in float64 that bounds are computed with.
    """
    types = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)]
    return all(dtype in (torch.float32, torch.float64) for dtype in types)


def _sum(rest: tuple[Any, ...], kwargs: dict[str, Any], shape: Shape) -> AverageOp | None:
    given = kwargs.get("dim", rest[0] if rest else None)
    dims = [given] if isinstance(given, int) else given
    if dims is None or any(d % (len(shape) + 1) == 0 for d in dims):
        return None  # a sum over the batch axis couples the points
    keep = bool(kwargs.get("keepdim", rest[1] if len(rest) > 1 else False))
    return AverageOp(lambda x: x.sum(dims, keepdim=keep), shape, terms=math.prod(shape))


def _pad(
    name: str, module: nn.Module | None, rest: tuple[Any, ...], kwargs: dict[str, Any], shape: Shape
) -> AverageOp | None:
    options = {**dict(zip(("pad", "mode", "value"), rest, strict=False)), **kwargs}
    if name in _PADS:
        options = {"pad": getattr(module, "padding", None), "mode": _PADS[name]}
    mode, widths = options.get("mode", "constant"), options.get("pad")
    if widths is None or options.get("value") not in (None, 0, 0.0):
        return None
    sizes = tuple(int(width) for width in widths)
    if len(sizes) > 2 * len(shape):  # the batch axis
        return None
    return AverageOp(lambda x: F.pad(x, sizes, mode), shape)


def _upsampled(
    module: nn.Module | None,
    rest: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: tuple[Shape, Shape],
) -> AverageOp | None:
    names = ("size", "scale_factor", "mode", "align_corners")
    if module is not None:
        options = {key: getattr(module, key, None) for key in names}
    else:
        options = {**dict(zip(names, rest, strict=False)), **kwargs}
    mode, corners = options.get("mode", "nearest"), options.get("align_corners")
    shape, result = shapes
    if mode not in _UPSAMPLE or options.get("antialias") or len(shape) != 3:
        return None
    if any(out % size for out, size in zip(result[1:], shape[1:], strict=True)):
        return None  # `scale_factor` that is not whole may sample elsewhere than `size` does
    size = result[1:]
    return AverageOp(
        lambda x: F.interpolate(x, size, mode=mode, align_corners=corners),
        shape,
        terms=0 if mode == "nearest" else 4 * math.ceil(result[1] / shape[1]) ** 2,
    )
