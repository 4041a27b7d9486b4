"""Skip gradients: the way back through residual branches is damped, that along the skips is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from robustkit.core.types import Model
from robustkit.errors import UsageError
from robustkit.models.surrogates.pre_squash import MIXES


def skipping(model: Model, gamma: float) -> Model:
    """Return the model, the gradient of each of its residual branches multiplied by `gamma`.

    Wu et al. 2020 (arXiv:2002.05990), equation 5: for z + f(z) the gradient is 1 + gamma f'(z).
    Branches are found in the graph of each pass, so that any way to write the sum will do.

    Differs from the paper: its code damps the ReLUs of known architectures; this the sum itself.

    The returned function raises a UsageError where the model has no residual branch.
    """

    def passed(x: Tensor) -> Tensor:
        start = x.view_as(x)  # a node of its own, where the search for branches ends
        logits = model(start)
        if logits.grad_fn is None or start.grad_fn is None:
            return logits
        found = list(residual_sums(logits.grad_fn, start.grad_fn))
        if not found:
            raise UsageError(
                f"gamma={gamma:g} damps residual branches (sums z + f(z)), and the model that the "
                "gradients are taken from has none that can be seen in its graph. Use gamma=1, or "
                "a residual source that is not compiled or scripted."
            )
        for node, branch in found:
            node.register_hook(_damping(branch, gamma))
        return logits

    return passed


def residual_sums(last: Node, first: Node) -> Iterator[tuple[Node, int]]:
    """Find the sums z + f(z) between two nodes of an autograd graph, and which operand is f(z).

    Both operands come from one value inside, and f(z) is the one that mixes features by weights
    more often on its longest way: the other is z, or a shortcut of it. Where both do equally often,
    as in members of an ensemble, none is a branch.
    """
    depths = _depths(last, first)
    for node in depths:
        if not node.name().startswith("AddBackward"):
            continue
        ends = _parents(node, depths)
        if len(ends) != 2:
            continue
        a, b = (depths[end] for end in ends)
        if a != b and _common(ends, depths) >= min(a, b, 1):
            yield node, int(b > a)


def _depths(last: Node, first: Node) -> dict[Node, int]:
    """Return how often features are mixed on the longest way from `first` to what it leads to.

    Nodes that do not depend on it, such as weights, are left out.
    """
    depths, seen, waiting = {first: 0}, {first}, [last]
    while waiting:
        node = waiting[-1]
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        open_ = [parent for parent in parents if parent not in seen]
        if node not in seen and open_:
            waiting += open_
            continue
        waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        before = [depths[parent] for parent in parents if parent in depths]
        if before:
            depths[node] = max(before) + any(word in node.name() for word in MIXES)
    return depths


def _parents(node: Node, among: dict[Node, int]) -> list[Node]:
    return [parent for parent, _ in node.next_functions if parent is not None and parent in among]


def _common(ends: list[Node], depths: dict[Node, int]) -> int:
    """Return the depth of the deepest node that all of `ends` come from."""
    return max(depths[node] for node in set.intersection(*(_sources(e, depths) for e in ends)))


def _sources(end: Node, depths: dict[Node, int]) -> set[Node]:
    found, waiting = {end}, [end]
    while waiting:
        fresh = set(_parents(waiting.pop(), depths)) - found
        waiting += fresh
        found |= fresh
    return found


def _damping(branch: int, gamma: float) -> Any:
    def damp(inputs: tuple[Tensor | None, ...], _: tuple[Tensor, ...]) -> Any:
        return tuple(
            gamma * slope if place == branch and slope is not None else slope
            for place, slope in enumerate(inputs)
        )

    return damp
