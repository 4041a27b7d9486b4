"""Normalization inside the model: `--mean` and `--std`, so that eps stays in units of the input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from torch import nn

from robustkit.core import arguments
from robustkit.errors import UsageError
from robustkit.models.architectures import Normalize

Numbers: TypeAlias = "float | Sequence[float]"  # for all channels, or for each


def normalized(
    model: nn.Module, channels: int, mean: Numbers | None, std: Numbers | None
) -> tuple[nn.Module, str]:
    """Return `model` with a layer before it that normalizes its inputs, and a note about it.

    Raises:
        UsageError: when it has such a layer already, or the numbers do not fit.
    """
    if any(isinstance(layer, Normalize) for layer in model.modules()):
        raise UsageError(
            "the model already normalizes its inputs (robustkit.models.architectures.Normalize); "
            "leave out --mean and --std."
        )
    center = _statistics("--mean", mean, 0.0, channels)
    scale = _statistics("--std", std, 1.0, channels)
    if min(scale) <= 0:
        raise UsageError(f"--std: expected positive numbers, got {_listed(scale)}.")
    layer = Normalize(center, scale).eval()
    wrapped = nn.Sequential(layer, model)
    wrapped.training = model.training
    return wrapped, f"inputs are normalized: mean {_listed(center)}, std {_listed(scale)}"


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
