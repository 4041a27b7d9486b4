"""Backward rules of booleans, of what they select, and of operations on bits.

Booleans are probabilities in the backward pass, combined as those of independent events.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkit.models.surrogates.bpda.rule import Call, Rule, straight
from robustkit.models.surrogates.bpda.straight_through import proxy, with_gradient_of, with_proxies


def both(call: Call, out: Tensor) -> Tensor | None:
    """Product of probabilities, a · b; the identity for the bits of an integer."""
    if out.dtype != torch.bool:
        return straight(call, out)
    a, b = (_as_number(value) for value in call.args[:2])
    return a * b


def either(call: Call, out: Tensor) -> Tensor | None:
    """A + b − a · b; the identity for the bits of an integer."""
    if out.dtype != torch.bool:
        return straight(call, out)
    a, b = (_as_number(value) for value in call.args[:2])
    return a + b - a * b


def differ(call: Call, out: Tensor) -> Tensor | None:
    """A + b − 2 a · b; the identity for the bits of an integer."""
    if out.dtype != torch.bool:
        return straight(call, out)
    a, b = (_as_number(value) for value in call.args[:2])
    return a + b - 2 * a * b


def negate(call: Call, out: Tensor) -> Tensor | None:
    """1 − a; for the bits of an integer minus the identity, as ~n = −n − 1."""
    if out.dtype != torch.bool:
        first = straight(call, out)
        return None if first is None else -first
    return 1 - _as_number(call.args[0])


def power_of_two(up: int) -> Rule:
    """Return the rule of a bit shift: multiplication by 2^(up · shift)."""

    def shift(call: Call, out: Tensor) -> Tensor | None:
        first, by = straight(call, out), call.args[1]
        return None if first is None else first * 2.0 ** (up * by)

    return shift


def bits(call: Call, out: Tensor) -> Tensor | None:
    """The identity for bits that are read as another dtype; else the proxy in the same shape."""
    # view(dtype) reads the bits of a float as an integer, view(*shape) does not.
    if not isinstance(call.get(1, "dtype"), torch.dtype):
        held = proxy(call.args[0])
        return None if held is None else held.view(*call.args[1:], **call.kwargs)
    return straight(call, out)


def where(call: Call, out: Tensor) -> Tensor | None:
    """The selected branch, and the gradient of the condition times the difference of both.

    d where(p, a, b) / dp = a − b, with p the probability that the condition holds.
    """
    if len(call.args) < 3:  # where(condition) alone returns indices
        return None
    mask = proxy(call.args[0])
    return _blend(mask, call.args[0], with_proxies(call.args[1]), with_proxies(call.args[2]))


def masked_fill(call: Call, out: Tensor) -> Tensor | None:
    """As `where(mask, value, input)`."""
    mask = proxy(call.args[1])
    return _blend(mask, call.args[1], with_proxies(call.get(2, "value")), call.soft[0])


def _blend(mask: Tensor | None, condition: Tensor, a: Any, b: Any) -> Tensor | None:
    if mask is None and not any(isinstance(v, Tensor) and v.requires_grad for v in (a, b)):
        return None
    yes, no = (torch.as_tensor(v, device=condition.device) for v in (a, b))
    selected = torch.where(condition, yes, no)
    if mask is None:
        return selected
    # A branch of −inf, as attention masks use it, has no finite difference: no gradient across it.
    jump = (yes.detach() - no.detach()).nan_to_num(0, 0, 0)
    return selected + (mask - mask.detach()) * jump


def _as_number(value: Any) -> Tensor:
    """A boolean as a number: its proxy where it has one, else 0 or 1."""
    if not isinstance(value, Tensor):
        return torch.tensor(float(bool(value)))
    soft = proxy(value)
    return soft if soft is not None else value.float()


def with_approximation(call: Call, hard: Tensor, soft: Tensor | None) -> Tensor:
    """Return `hard` with the gradient of its approximation `soft`.

    The proxy of a boolean has the value 0 or 1, not the sigmoid's: products and `where` further on
    then scale gradients by what the model really selected.
    """
    if soft is not None and hard.dtype == torch.bool and soft.shape == hard.shape:
        soft = with_gradient_of(hard.to(soft.dtype), soft, call.inner)
    return with_gradient_of(hard, soft, call.inner)
