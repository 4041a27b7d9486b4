"""Activations: their range over an interval, and a linear bound below and above."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.affine import UNIT
from robustkit.certify.smooth import Lines, Smooth, smooth_lines

SOFTPLUS_STEP = 4e-9  # torch.nn.functional.softplus(x) is x above 20: a step down of 2.1e-9
Shape: TypeAlias = Literal["convex", "sigmoid", "dip"]


@dataclass(frozen=True)
class Activation:
    """An elementwise function of one of three shapes.

    "convex": convex and nondecreasing; "sigmoid": nondecreasing, its slope rises and then falls;
    "dip": falls to one minimum at `minimum`, then rises (SiLU, GELU).
    """

    name: str
    function: Callable[[Tensor], Tensor]
    shape: Shape
    minimum: float = 0.0
    rounding: float = 0.0
    smooth: Smooth | None = None  # of shapes that are not convex

    def slack(self, low: Tensor, high: Tensor) -> Tensor:
        """Bound the float32 rounding error where the result is in [low, high].

        Relative to 1 + |f|: 1 + erf in GELU and exp − 1 in ELU cancel for negative arguments.
        """
        return self.rounding * UNIT * (1 + torch.maximum(low.abs(), high.abs()))

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range over [low, high]: exact, but for less than 1e-8 in softplus."""
        below, above = self.function(low), self.function(high)
        if self.name == "softplus":
            return below - SOFTPLUS_STEP, above + SOFTPLUS_STEP
        if self.shape != "dip":
            return below, above
        bottom = self.function(torch.full_like(low, self.minimum))
        inside = (low <= self.minimum) & (high >= self.minimum)
        least = torch.where(inside, bottom - 1e-12, torch.minimum(below, above))
        return least, torch.maximum(below, above)

    def lines(self, low: Tensor, high: Tensor, slope: Tensor | None = None) -> Lines:
        """Return sound lines; `slope` in [0, 1] chooses the lower one of a ReLU.

        ReLU: the chord above; below, slope 0 or 1, whichever leaves the smaller area (Zhang et al.
        2018). Other convex functions: tangent at the middle and chord. Sigmoid, tanh, SiLU, GELU:
        see smooth.py.
        """
        if self.name == "relu":
            return _relu(low, high, slope)
        if self.smooth is not None:
            return smooth_lines(self.smooth, low, high)
        f_low, f_high = self.function(low), self.function(high)
        step = SOFTPLUS_STEP if self.name == "softplus" else 0.0
        wide = high - low > 1e-9  # the chord of a shorter interval would be 0 / 0
        chord = torch.where(wide, (f_high - f_low) / (high - low).clamp_min(1e-9), 0.0)
        middle = (low + high) / 2
        tangent = self._derivative(middle)
        return Lines(
            tangent,
            self.function(middle) - tangent * middle - step,
            chord,
            torch.where(wide, f_low - chord * low, f_high) + step,
        )

    def _derivative(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.function(point).sum(), point)
        return slope


def _relu(low: Tensor, high: Tensor, slope: Tensor | None) -> Lines:
    # Upper: u (x − l) / (u − l). Lower: α x, sound for any α in [0, 1].
    on, off = low >= 0, high <= 0
    unstable = ~(on | off)
    width = torch.where(unstable, high - low, 1.0)
    chord = torch.where(unstable, high / width, on.to(low.dtype))
    if slope is None:
        slope = (high > -low).to(low.dtype)
    below = torch.where(unstable, slope, on.to(low.dtype))
    zero = torch.zeros_like(low)
    return Lines(below, zero, chord, torch.where(unstable, -chord * low, zero))


def leaky(slope: float) -> Activation:
    """Leaky ReLU with 0 ≤ slope ≤ 1."""
    return Activation("leaky_relu", lambda x: F.leaky_relu(x, slope), "convex", rounding=1)


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _tanh_slope(x: Tensor) -> Tensor:
    return torch.cosh(x.clamp(-300, 300)).square().reciprocal()


def _silu_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    slope: Tensor = torch.special.ndtr(x) + x * density
    return slope


_SILU_BEND = 2.3993572805154668  # where its second derivative is zero; GELU's: sqrt(2)

RELU = Activation("relu", F.relu, "convex")
KNOWN = {
    "relu": RELU,
    "sigmoid": Activation(
        "sigmoid",
        torch.sigmoid,
        "sigmoid",
        rounding=8,
        smooth=Smooth(torch.sigmoid, _sigmoid_slope, (0.0,), True),
    ),
    "tanh": Activation(
        "tanh",
        torch.tanh,
        "sigmoid",
        rounding=8,
        smooth=Smooth(torch.tanh, _tanh_slope, (0.0,), True),
    ),
    "elu": Activation("elu", F.elu, "convex", rounding=8),
    "softplus": Activation("softplus", F.softplus, "convex", rounding=8),
    # Minimum points to 16 digits; the slack in `interval` covers the rest.
    "silu": Activation(
        "silu",
        F.silu,
        "dip",
        minimum=-1.2784645427610738,
        rounding=8,
        smooth=Smooth(F.silu, _silu_slope, (-_SILU_BEND, _SILU_BEND), False),
    ),
    "gelu": Activation(
        "gelu",
        F.gelu,
        "dip",
        minimum=-0.7517915246935645,
        rounding=32,
        smooth=Smooth(F.gelu, _gelu_slope, (-math.sqrt(2), math.sqrt(2)), False),
    ),
}
