"""One call of an operation, and what its stand-in is made of.

Scales are those of a row (the first axis), never of a batch: rows do not influence each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from robustkit.models.surrogates.bpda.straight_through import Inside, floats


class BackwardRule(NamedTuple):
    """How far the stand-ins go.

    Attributes:
        clamps: gradients pass through clamps that are saturated.
        spread: width over which a selected value shares its gradient with others, in units of the
            row's spread; 0 leaves selection as it is.
        level: a maximum that keeps its axis is a reference level, without gradient.
        temper: squashing functions are as wide as their arguments, so that none is saturated.
    """

    clamps: bool = True
    spread: float = 0.0
    level: bool = False
    temper: bool = False


class Call(NamedTuple):
    """One call of an operation: its arguments as given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    manner: BackwardRule
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
    if not isinstance(first, Tensor):
        return None
    return first if first.is_floating_point() else None


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())
