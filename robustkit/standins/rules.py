"""What takes the place of operations on the way back: for each, a differentiable stand-in.

A rule gets a call and its true result, and returns a tensor of the result's shape whose gradient is
used; None leaves the result as it is. Scales are those of a row (the first axis), never of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from robustkit.standins.graft import Inside, finish, floats, full, shadow

LEAK = 0.1  # slope beyond a one-sided clamp: it may be a ReLU, or a wall


class Manner(NamedTuple):
    """How far the stand-ins go.

    Attributes:
        clamps: gradients pass through clamps that are saturated.
        spread: width over which a selected value shares its gradient with others, in units of the
            row's spread; 0 leaves selection as it is.
        level: a maximum that keeps its axis is a reference level, without gradient.
    """

    clamps: bool = True
    spread: float = 0.0
    level: bool = False


class Call(NamedTuple):
    """One call of an operation: its arguments as given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    manner: Manner
    inside: Inside

    @property
    def soft(self) -> tuple[Any, ...]:
        """The arguments with shadows in place of what carries them."""
        return tuple(floats(value) for value in self.args)

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument, by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Rule: TypeAlias = Callable[[Call, Any], "Tensor | None"]


def scale(values: Tensor) -> Tensor:
    """Mean size of a row's values, as a constant that broadcasts over them."""
    size = values.detach().abs()
    if size.ndim > 1:
        size = size.flatten(1).mean(1).view(-1, *[1] * (values.ndim - 1))
    return size.clamp_min(1e-12)


def step(margin: Tensor) -> Tensor:
    """0 below zero and 1 above, rising over the scale of the row's margins."""
    return (margin / scale(margin)).sigmoid()


def straight(call: Call, out: Tensor) -> Tensor | None:
    """The identity."""
    first = call.soft[0]
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def cast(call: Call, out: Tensor) -> Tensor | None:
    """The identity, where a cast loses the gradient or rounds it."""
    first = call.args[0]
    if not isinstance(out, Tensor) or out is first or not isinstance(first, Tensor):
        return None
    return None if full(out) and full(first) else straight(call, out)


def sign(call: Call, out: Tensor) -> Tensor | None:
    """A hyperbolic tangent."""
    first = straight(call, out)
    return None if first is None else (first / scale(first)).tanh()


def rises(call: Call, out: Tensor) -> Tensor | None:
    """A sigmoid of the difference."""
    a, b = call.soft[0], call.get(1, "other")
    margin = a - floats(b)
    return step(margin) if margin.is_floating_point() else None


def falls(call: Call, out: Tensor) -> Tensor | None:
    """A sigmoid of the negative difference."""
    a, b = call.soft[0], call.get(1, "other")
    margin = floats(b) - a
    return step(margin) if margin.is_floating_point() else None


def equal(call: Call, out: Tensor) -> Tensor | None:
    """A bump around equality."""
    distance = call.soft[0] - floats(call.get(1, "other"))
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
    low, high = call.get(1, "min", call.kwargs.get("min_val", -1)), call.get(2, "max", None)
    if first is None or (low is not None and high is not None):
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
    """Slope 1 where no value of the row wraps; else 0, the mean slope of a saw."""
    first = straight(call, out)
    if first is None:
        return None
    wraps = (first - out).detach().flatten(1) if first.ndim > 1 else (first - out).detach()[None]
    still = (wraps == wraps[:, :1]).all(1)
    return first * still.view(-1, *[1] * (first.ndim - 1)) if first.ndim > 1 else first * still


def ratio(call: Call, out: Tensor) -> Tensor | None:
    """Division without rounding."""
    mode = call.kwargs.get("rounding_mode", "floor")
    if mode is None and full(out):
        return None
    a, b = floats(call.args[0]), floats(call.args[1])
    quotient: Tensor = a / b
    return quotient


def power_of_two(up: int) -> Rule:
    """Return the rule of a shift of bits: a factor."""

    def shift(call: Call, out: Tensor) -> Tensor | None:
        first, by = straight(call, out), call.args[1]
        return None if first is None else first * 2.0 ** (up * by)

    return shift


def both(call: Call, out: Tensor) -> Tensor | None:
    """Product of truth values; the identity for the bits of a number."""
    if out.dtype != torch.bool:
        return straight(call, out)
    a, b = (_truth(value) for value in call.args[:2])
    return a * b


def either(call: Call, out: Tensor) -> Tensor | None:
    """Sum less product of truth values; the identity for the bits of a number."""
    if out.dtype != torch.bool:
        return straight(call, out)
    a, b = (_truth(value) for value in call.args[:2])
    return a + b - a * b


def differ(call: Call, out: Tensor) -> Tensor | None:
    """Exactly one of two truth values; the identity for the bits of a number."""
    if out.dtype != torch.bool:
        return straight(call, out)
    a, b = (_truth(value) for value in call.args[:2])
    return a + b - 2 * a * b


def negate(call: Call, out: Tensor) -> Tensor | None:
    """One less a truth value; the identity's negative for the bits of a number."""
    if out.dtype != torch.bool:
        first = straight(call, out)
        return None if first is None else -first
    return 1 - _truth(call.args[0])


def where(call: Call, out: Tensor) -> Tensor | None:
    """The branch taken, and across the condition by the difference of the branches."""
    if len(call.args) < 3:
        return None
    mask = shadow(call.args[0])
    return _crossed(mask, call.args[0], floats(call.args[1]), floats(call.args[2]))


def masked_fill(call: Call, out: Tensor) -> Tensor | None:
    """As `where`, with the value under the mask."""
    mask = shadow(call.args[1])
    return _crossed(mask, call.args[1], floats(call.get(2, "value")), call.soft[0])


def _crossed(mask: Tensor | None, condition: Tensor, a: Any, b: Any) -> Tensor | None:
    if mask is None and not any(isinstance(v, Tensor) and v.requires_grad for v in (a, b)):
        return None
    like = next((v for v in (a, b) if isinstance(v, Tensor)), mask)
    a, b = (torch.as_tensor(v, device=condition.device) for v in (a, b))
    taken = torch.where(condition, a, b)
    if mask is None or like is None:
        return taken
    jump = (a.detach() - b.detach()).nan_to_num(0, 0, 0)
    return taken + (mask - mask.detach()) * jump


def _truth(value: Any) -> Any:
    """A truth value as a number: its shadow where it has one."""
    if not isinstance(value, Tensor):
        return float(bool(value))
    soft = shadow(value)
    return soft if soft is not None else value.float()


def settled(call: Call, hard: Tensor, soft: Tensor | None) -> Tensor:
    """Return a result with its stand-in; truth values keep theirs 0 or 1 in value."""
    if soft is not None and hard.dtype == torch.bool and soft.shape == hard.shape:
        soft = finish(hard.to(soft.dtype), soft, call.inside)
    return finish(hard, soft, call.inside)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "round floor ceil trunc fix detach quantize_per_tensor quantize_per_channel dequantize "
        "fake_quantize_per_tensor_affine fake_quantize_per_channel_affine".split(),
        straight,
    ),
    **dict.fromkeys(
        "to type type_as int long short byte char bool half bfloat16 float double".split(), cast
    ),
    **dict.fromkeys("sign sgn".split(), sign),
    **dict.fromkeys("gt ge greater greater_equal __gt__ __ge__".split(), rises),
    **dict.fromkeys("lt le less less_equal __lt__ __le__".split(), falls),
    **dict.fromkeys("clamp clip clamp_min clamp_max".split(), clamp),
    **dict.fromkeys("minimum maximum".split(), wall),
    **dict.fromkeys("remainder fmod __mod__ frac".split(), periodic),
    **dict.fromkeys("floor_divide __floordiv__ div divide".split(), ratio),
    **dict.fromkeys("__rshift__ bitwise_right_shift".split(), power_of_two(-1)),
    **dict.fromkeys("__lshift__ bitwise_left_shift".split(), power_of_two(1)),
    **dict.fromkeys("__and__ bitwise_and logical_and __rand__".split(), both),
    **dict.fromkeys("__or__ bitwise_or logical_or __ror__".split(), either),
    **dict.fromkeys("__xor__ bitwise_xor logical_xor __rxor__".split(), differ),
    **dict.fromkeys("__invert__ bitwise_not logical_not".split(), negate),
    "eq": equal,
    "ne": unequal,
    "hardtanh": tanh_wall,
    "heaviside": lambda call, out: None if (x := straight(call, out)) is None else step(x),
    "where": where,
    "masked_fill": masked_fill,
}
