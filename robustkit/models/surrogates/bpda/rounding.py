"""Backward rules of rounding, casts, signs, comparisons, clamps, remainders and buckets."""

from __future__ import annotations

from torch import Tensor

from robustkit.models.surrogates.bpda.rule import Call, scale, step, straight
from robustkit.models.surrogates.bpda.straight_through import is_full_float, with_proxies

# Slope beyond a one-sided clamp. Such a clamp may be a ReLU, whose zeros carry meaning, or the edge
# of a range that a defense has put in the way: 1 would undo every ReLU, 0 would stop at the edge.
LEAK = 0.1


def cast(call: Call, out: Tensor) -> Tensor | None:
    """The identity, where a cast loses the gradient or rounds it."""
    first = call.args[0]
    if out is first or not isinstance(first, Tensor):
        return None
    # float32 to float64 and back has its derivative; through 16 bits or integers it is lost.
    return None if is_full_float(out) and is_full_float(first) else straight(call, out)


def sign(call: Call, out: Tensor) -> Tensor | None:
    """A hyperbolic tangent as wide as the row's values."""
    first = straight(call, out)
    return None if first is None else (first / scale(first)).tanh()


def greater(call: Call, out: Tensor) -> Tensor | None:
    """A smooth step of the difference."""
    a, b = call.soft[0], call.get(1, "other")
    margin: Tensor = a - with_proxies(b)
    return step(margin) if margin.is_floating_point() else None


def less(call: Call, out: Tensor) -> Tensor | None:
    """A smooth step of the negative difference."""
    a, b = call.soft[0], call.get(1, "other")
    margin: Tensor = with_proxies(b) - a
    return step(margin) if margin.is_floating_point() else None


def equal(call: Call, out: Tensor) -> Tensor | None:
    """exp(−d²) of the difference d, in units of the row's differences."""
    distance: Tensor = call.soft[0] - with_proxies(call.get(1, "other"))
    return (-((distance / scale(distance)) ** 2)).exp() if distance.is_floating_point() else None


def unequal(call: Call, out: Tensor) -> Tensor | None:
    """One minus `equal`."""
    same = equal(call, out)
    return None if same is None else 1 - same


def clamp(call: Call, out: Tensor) -> Tensor | None:
    """The identity for two bounds; beyond a single one, the slope `LEAK`.

    Two bounds are the range of pixels or of quantization: a point on its edge must still move
    inward.
    """
    if not call.policy.clamps:
        return None
    first = straight(call, out)
    if first is None or (call.get(1, "min") is not None and call.get(2, "max") is not None):
        return first
    # `out` brings its own derivative, 1 on one side of the bound and 0 on the other.
    return LEAK * first + (1 - LEAK) * out


def one_sided(call: Call, out: Tensor) -> Tensor | None:
    """The slope `LEAK` where the constant wins: a clamp by another name."""
    if not call.policy.clamps:
        return None
    a, b = call.soft[0], with_proxies(call.get(1, "other", call.kwargs.get("min")))
    # Between two results of the model it is a selection, whose derivative is right.
    if isinstance(b, Tensor) and a.requires_grad and b.requires_grad:
        return None
    moving = a if a.requires_grad else b
    return LEAK * moving + (1 - LEAK) * out if moving.shape == out.shape else None


def hardtanh(call: Call, out: Tensor) -> Tensor | None:
    """The identity, as in `clamp`: hardtanh has two bounds."""
    return straight(call, out) if call.policy.clamps else None


def periodic(call: Call, out: Tensor) -> Tensor | None:
    """Slope 1 where no value of the row wraps around; else 0, the mean slope of a sawtooth.

    A single value per row has slope 1: alone, it does not show whether it wrapped.
    """
    first = straight(call, out)
    if first is None or first.ndim < 2:
        return first
    # x − (x mod m) counts the wraps: where it is the same everywhere, the row lies in one period.
    wraps = (first - out).detach().flatten(1)
    still = (wraps == wraps[:, :1]).all(1)
    return first * still.view(-1, *[1] * (first.ndim - 1))


def ratio(call: Call, out: Tensor) -> Tensor | None:
    """The quotient before rounding."""
    a, b = with_proxies(call.args[0]), with_proxies(call.args[1])
    quotient: Tensor = a / b
    return quotient


def bucket(call: Call, out: Tensor) -> Tensor | None:
    """The line through the edges of a value's bucket: slope 1 / width."""
    return _bucket(with_proxies(call.args[0]), call.get(1, "boundaries"), out)


def place(call: Call, out: Tensor) -> Tensor | None:
    """As `bucket`, with the edges first."""
    return _bucket(with_proxies(call.get(1, "input")), call.args[0], out)


def _bucket(x: Tensor, edges: Tensor, out: Tensor) -> Tensor | None:
    if edges.ndim != 1 or len(edges) < 2:
        return None
    high = out.clamp(1, len(edges) - 1)
    width = edges[high] - edges[high - 1]
    return x / width.clamp_min(1e-12).to(x.dtype)
