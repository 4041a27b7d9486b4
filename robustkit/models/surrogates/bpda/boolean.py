"""Stand-ins for truth values, for what they choose, and for the bits of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkit.models.surrogates.bpda.rule import Call, Rule, straight
from robustkit.models.surrogates.bpda.straight_through import finish, floats, shadow


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


def power_of_two(up: int) -> Rule:
    """Return the rule of a shift of bits: a factor."""

    def shift(call: Call, out: Tensor) -> Tensor | None:
        first, by = straight(call, out), call.args[1]
        return None if first is None else first * 2.0 ** (up * by)

    return shift


def bits(call: Call, out: Tensor) -> Tensor | None:
    """The identity for the bits of a number read as one of another kind; else, the same view."""
    if not isinstance(call.get(1, "dtype"), torch.dtype):
        held = shadow(call.args[0])
        return None if held is None else held.view(*call.args[1:], **call.kwargs)
    return straight(call, out)


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
    yes, no = (torch.as_tensor(v, device=condition.device) for v in (a, b))
    taken = torch.where(condition, yes, no)
    if mask is None:
        return taken
    jump = (yes.detach() - no.detach()).nan_to_num(0, 0, 0)
    return taken + (mask - mask.detach()) * jump


def _truth(value: Any) -> Tensor:
    """A truth value as a number: its shadow where it has one."""
    if not isinstance(value, Tensor):
        return torch.tensor(float(bool(value)))
    soft = shadow(value)
    return soft if soft is not None else value.float()


def settled(call: Call, hard: Tensor, soft: Tensor | None) -> Tensor:
    """Return a result with its stand-in; truth values keep theirs 0 or 1 in value."""
    if soft is not None and hard.dtype == torch.bool and soft.shape == hard.shape:
        soft = finish(hard.to(soft.dtype), soft, call.inside)
    return finish(hard, soft, call.inside)
