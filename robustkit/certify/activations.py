"""Activations: their range over an interval, and a linear bound below and above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.affine import UNIT

_GRID = 32  # pieces of an interval at whose ends a smooth function is evaluated
_TIE = 1e-9
SOFTPLUS_STEP = 4e-9  # torch.nn.functional.softplus(x) is x above 20: a step down of 2.1e-9
Shape: TypeAlias = Literal["convex", "sigmoid", "dip"]


class Lines(NamedTuple):
    """low_slope · x + low_shift ≤ f(x) ≤ high_slope · x + high_shift on the interval."""

    low_slope: Tensor
    low_shift: Tensor
    high_slope: Tensor
    high_shift: Tensor


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
    curvature: float = 0.0  # the greatest |f″|, of shapes that are not convex

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
        the best of some slopes, each with its shift (`_smooth`).
        """
        if self.name == "relu":
            return _relu(low, high, slope)
        f_low, f_high = self.function(low), self.function(high)
        step = SOFTPLUS_STEP if self.name == "softplus" else 0.0
        if self.shape != "convex":
            return self._smooth(low, high)
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

    def _smooth(self, low: Tensor, high: Tensor) -> Lines:
        """Return, of several slopes, the lines that are closest at the middle of the interval.

        The shift of slope s is the least of g = f − s x. Between points h apart, g lies within
        h² / 8 · max |f″| of its chords, so that the least value at these points, less that, is
        below all of g. Constants, and parallels with the smaller slope of the ends of a sigmoid,
        have shifts that are exact, for intervals too wide for that.
        """
        least, most = self.interval(low, high)
        f_low, f_high = self.function(low), self.function(high)
        middle, width = (low + high) / 2, high - low
        if self.shape == "sigmoid":
            # The slope rises and then falls: inside it is nowhere below the smaller one of the
            # ends, so that f minus this line is nondecreasing, least at low and greatest at high.
            steep = torch.minimum(self._derivative(low), self._derivative(high))
            best = Lines(steep, f_low - steep * low, steep, f_high - steep * high)
        else:
            best = Lines(torch.zeros_like(low), least, torch.zeros_like(low), most)
        slopes = [self._derivative(at) for at in (low, middle, high)]
        slopes.append((f_high - f_low) / width.clamp_min(1e-9))
        lowest = [torch.full_like(low, torch.inf) for _ in slopes]
        highest = [torch.full_like(low, -torch.inf) for _ in slopes]
        for step in range(_GRID + 1):
            at = low + width * (step / _GRID)
            value = self.function(at)
            for index, slope in enumerate(slopes):
                rest = value - slope * at
                lowest[index] = torch.minimum(lowest[index], rest)
                highest[index] = torch.maximum(highest[index], rest)
        # The second term covers the rounding of these values in float64.
        off = (width / _GRID).square() / 8 * self.curvature + 1e-13 * (1 + low.abs() + high.abs())
        for slope, bottom, top in zip(slopes, lowest, highest, strict=True):
            bottom, top = bottom - off, top + off
            # Lines that touch at the middle tie: rounding, and so the batch, must not decide.
            closer = slope * middle + bottom > best.low_slope * middle + best.low_shift + _TIE
            under = slope * middle + top < best.high_slope * middle + best.high_shift - _TIE
            best = Lines(
                torch.where(closer, slope, best.low_slope),
                torch.where(closer, bottom, best.low_shift),
                torch.where(under, slope, best.high_slope),
                torch.where(under, top, best.high_shift),
            )
        return best

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


RELU = Activation("relu", F.relu, "convex")
KNOWN = {
    "relu": RELU,
    "sigmoid": Activation("sigmoid", torch.sigmoid, "sigmoid", rounding=8, curvature=0.0963),
    "tanh": Activation("tanh", torch.tanh, "sigmoid", rounding=8, curvature=0.77),
    "elu": Activation("elu", F.elu, "convex", rounding=8),
    "softplus": Activation("softplus", F.softplus, "convex", rounding=8),
    # Minimum points to 16 digits; the slack in `interval` covers the rest.
    "silu": Activation(
        "silu", F.silu, "dip", minimum=-1.2784645427610738, rounding=8, curvature=0.5
    ),
    "gelu": Activation(
        "gelu", F.gelu, "dip", minimum=-0.7517915246935645, rounding=32, curvature=0.798
    ),
}
