"""Stand-ins for rounding, casts, signs, comparisons, clamps, remainders and buckets."""

from __future__ import annotations

from torch import Tensor

from robustkit.models.surrogates.bpda.rule import Call, scale, step, straight
from robustkit.models.surrogates.bpda.straight_through import floats, full

LEAK = 0.1  # slope beyond a one-sided clamp: it may be a ReLU, or a wall


def cast(call: Call, out: Tensor) -> Tensor | None:
    """The identity, where a cast loses the gradient or rounds it."""
    first = call.args[0]
    if out is first or not isinstance(first, Tensor):
        return None
    return None if full(out) and full(first) else straight(call, out)


def sign(call: Call, out: Tensor) -> Tensor | None:
    """A hyperbolic tangent."""
    first = straight(call, out)
    return None if first is None else (first / scale(first)).tanh()


def rises(call: Call, out: Tensor) -> Tensor | None:
    """A sigmoid of the difference."""
    a, b = call.soft[0], call.get(1, "other")
    margin: Tensor = a - floats(b)
    return step(margin) if margin.is_floating_point() else None


def falls(call: Call, out: Tensor) -> Tensor | None:
    """A sigmoid of the negative difference."""
    a, b = call.soft[0], call.get(1, "other")
    margin: Tensor = floats(b) - a
    return step(margin) if margin.is_floating_point() else None


def equal(call: Call, out: Tensor) -> Tensor | None:
    """A bump around equality."""
    distance: Tensor = call.soft[0] - floats(call.get(1, "other"))
    return (-((distance / scale(distance)) ** 2)).exp() if distance.is_floating_point() else None


def unequal(call: Call, out: Tensor) -> Tensor | None:
    """One less the bump around equality."""
    bump = equal(call, out)
    return None if bump is None else 1 - bump


def clamp(call: Call, out: Tensor) -> Tensor | None:
    """The identity between two bounds; beyond a single one, a small slope."""
    if not call.manner.clamps:
        return None
    first = straight(call, out)
    if first is None or (call.get(1, "min") is not None and call.get(2, "max") is not None):
        return first
    return LEAK * first + (1 - LEAK) * out


def wall(call: Call, out: Tensor) -> Tensor | None:
    """A small slope where a constant wins."""
    if not call.manner.clamps:
        return None
    a, b = call.soft[0], floats(call.get(1, "other", call.kwargs.get("min")))
    if isinstance(b, Tensor) and a.requires_grad and b.requires_grad:
        return None
    moving = a if a.requires_grad else b
    return LEAK * moving + (1 - LEAK) * out if moving.shape == out.shape else None


def tanh_wall(call: Call, out: Tensor) -> Tensor | None:
    """The identity: F.hardtanh has two bounds."""
    return straight(call, out) if call.manner.clamps else None


def periodic(call: Call, out: Tensor) -> Tensor | None:
    """Slope 1 where no value of the row wraps; else 0, the mean slope of a saw.

    A single value per row has slope 1: alone, it does not say whether it wrapped.
    """
    first = straight(call, out)
    if first is None or first.ndim < 2:
        return first
    wraps = (first - out).detach().flatten(1)
    still = (wraps == wraps[:, :1]).all(1)
    return first * still.view(-1, *[1] * (first.ndim - 1))


def ratio(call: Call, out: Tensor) -> Tensor | None:
    """Division without rounding."""
    a, b = floats(call.args[0]), floats(call.args[1])
    quotient: Tensor = a / b
    return quotient


def bucket(call: Call, out: Tensor) -> Tensor | None:
    """The line through the edges of the bucket that a value fell into."""
    return _bucket(floats(call.args[0]), call.get(1, "boundaries"), out)


def place(call: Call, out: Tensor) -> Tensor | None:
    """As `bucket`, with the edges first."""
    return _bucket(floats(call.get(1, "input")), call.args[0], out)


def _bucket(x: Tensor, edges: Tensor, out: Tensor) -> Tensor | None:
    if edges.ndim != 1 or len(edges) < 2:
        return None
    high = out.clamp(1, len(edges) - 1)
    width = edges[high] - edges[high - 1]
    return x / width.clamp_min(1e-12).to(x.dtype)
