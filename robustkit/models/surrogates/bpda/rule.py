"""One call of an operation, and the pieces that backward rules are made of.

Scales are those of a row (the first axis), never of a batch: the gradient at one point must not
depend on the points that share its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from robustkit.models.surrogates.bpda.straight_through import InnerAutograd, with_proxies

# Of 71 points of `k_winners` in benchmarks/masks, `relay` through `bpda` leaves 1 with 1/16 to 1/4;
# with a sigmoid of width 1 it leaves 29.
WIDTH = 0.125


class BackwardPolicy(NamedTuple):
    """How far the backward pass departs from the true derivatives.

    Attributes:
        clamps: gradients pass through clamps that are saturated.
        spread: width over which a selected value shares its gradient with others, in units of the
            row's standard deviation; 0 leaves selection as it is.
        level: a maximum that keeps its axis is a constant: softmax and CrossMax subtract one.
        temper: squashing functions are as wide as their arguments, so that none is saturated.
    """

    clamps: bool = True
    spread: float = 0.0
    level: bool = False
    temper: bool = False


class Call(NamedTuple):
    """One call of an operation: its arguments as given, and how far its rule may go."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    policy: BackwardPolicy
    inner: InnerAutograd

    @property
    def soft(self) -> tuple[Any, ...]:
        """The positional arguments, each replaced by its proxy where it has one."""
        return tuple(with_proxies(value) for value in self.args)

    def get(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument, by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


Rule: TypeAlias = Callable[[Call, Any], "Tensor | None"]


def scale(values: Tensor) -> Tensor:
    """Mean size of a row's values, as a constant that broadcasts over them."""
    # A constant: with a gradient of its own, the scale would let values push each other.
    size = values.detach().abs()
    if size.ndim > 1:
        size = size.flatten(1).mean(1).view(-1, *[1] * (values.ndim - 1))
    return size.clamp_min(1e-12)


def step(margin: Tensor) -> Tensor:
    """A fast sigmoid, (1 + u / (1 + |u|)) / 2, of margins u in units of `WIDTH` mean margins.

    Its slope falls with the square of the margin, so that a comparison far from equality has one
    too, while those that may turn count for most. Zenke & Ganguli 2018 (arXiv:1705.11146).
    """
    u = margin / (WIDTH * scale(margin))
    return (1 + u / (1 + u.abs())) / 2


def straight(call: Call, out: Tensor) -> Tensor | None:
    """The identity on the first argument: the straight-through estimator."""
    first = call.soft[0]
    if not isinstance(first, Tensor):
        return None
    return first if first.is_floating_point() else None


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())
