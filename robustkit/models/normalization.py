"""Normalization inside the model: `--mean` and `--std`, and features in units of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from robustkit.core import arguments
from robustkit.core.types import Shape
from robustkit.data.dataset import Dataset
from robustkit.data.ranges import Ranges
from robustkit.errors import UsageError
from robustkit.models.architectures import Normalize
from robustkit.models.scores import Scores

Numbers: TypeAlias = "float | Sequence[float]"  # for all channels, or for each
_M = TypeVar("_M", bound=Callable[[Tensor], Tensor])


def normalized(
    model: nn.Module, shape: Shape, mean: Numbers | None, std: Numbers | None
) -> tuple[nn.Module, str]:
    """Return `model` with a layer before it that normalizes its inputs, and a note about it.

    Args:
        shape: of one input; its first axis is that of the channels, or the features of a vector.
        mean, std: one number for all of them, or one for each.

    Raises:
        UsageError: when it has such a layer already, or the numbers do not fit.
    """
    if any(isinstance(layer, Normalize) for layer in model.modules()):
        raise UsageError(
            "the model already normalizes its inputs (robustkit.models.architectures.Normalize); "
            "leave out --mean and --std."
        )
    center = _statistics("--mean", mean, 0.0, shape[0])
    scale = _statistics("--std", std, 1.0, shape[0])
    if min(scale) <= 0:
        raise UsageError(f"--std: expected positive numbers, got {_listed(scale)}.")
    layer = Normalize(center, scale, len(shape) - 1).eval()
    wrapped = nn.Sequential(layer, model)
    wrapped.training = model.training
    return wrapped, f"inputs are normalized: mean {_listed(center)}, std {_listed(scale)}"


def in_units(model: _M, data: Dataset) -> _M:
    """Return `model` for inputs that are shares of ranges, where `data` has a range a feature.

    The layer before it is affine, so that certificates hold for both together. It gives back what
    the data set was made of up to the rounding of float32: a whole number may be off by it.
    """
    found: Ranges | None = getattr(data, "ranges", None)
    if found is None or _is_in_units(model):  # one that was wrapped may come back, to be attacked
        return model
    layer = _InUnits(found).eval()
    if isinstance(model, Scores):
        return cast(_M, model.behind(layer, data.shape))
    if not isinstance(model, nn.Module):
        return cast(_M, _Ahead(layer, model))
    wrapped = nn.Sequential(layer, model)
    wrapped.training = model.training
    return cast(_M, wrapped)


def _is_in_units(model: object) -> bool:
    if isinstance(model, nn.Module):
        return any(isinstance(part, _InUnits) for part in model.modules())
    return isinstance(model, _Ahead)


class _Ahead(NamedTuple):
    """A function of what a layer makes of its inputs."""

    layer: nn.Module
    function: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(self.layer.to(x.device)(x))


class _InUnits(Normalize):
    """lower + x · (upper − lower), as (x − mean) / std: certificates know that one."""

    def __init__(self, known: Ranges) -> None:
        nn.Module.__init__(self)
        width = known.upper - known.lower
        for name, values in (("mean", -known.lower / width), ("std", 1 / width)):
            self.register_buffer(name, torch.from_numpy(values).float()[None])


def _statistics(
    option: str, values: Numbers | None, default: float, channels: int
) -> tuple[float, ...]:
    if isinstance(values, int | float):  # one for all channels
        values = (values,)
    given = (default,) if values is None else arguments.reals(option.strip("-"), values) or ()
    if len(given) not in (1, channels) or not all(map(math.isfinite, given)):
        expected = "1 finite number" if channels == 1 else f"1 or {channels} finite numbers"
        raise UsageError(
            f"{option}: expected {expected}, one for each channel, got {_listed(given) or 'none'}."
        )
    return given * channels if len(given) == 1 else given


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
