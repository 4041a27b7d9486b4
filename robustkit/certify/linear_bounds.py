"""Linear bounds carried backward through a network: the pass that CROWN and alpha-CROWN share.

Zhang et al. 2018 (arXiv:1811.00866). One bound is a lower bound of A · (value of a node); A is
carried back node by node, together with a constant, until the input, where its minimum over the
threat model is known in closed form. A bound above is minus one of −A.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.affine import UNIT, widening
from robustkit.certify.graph import Graph
from robustkit.certify.ibp import Box
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.core.threat import Threat
from robustkit.core.types import Images

_CHUNK = 2**21  # numbers in one block of coefficients: 16 MiB of float64


class Problem(NamedTuple):
    """What every backward pass needs.

    Attributes:
        boxes: interval bounds of every node, tightened as backward passes find better ones.
        rounding: whether bounds hold for float32 evaluations too.
        slopes: lower slopes of ReLUs by input node [b, *f]; CROWN's own where there is none.
    """

    graph: Graph
    boxes: list[Box]
    x: Images
    threat: Threat
    rounding: bool
    slopes: dict[int, Tensor]


def rows_at_once(problem: Problem, index: int) -> int:
    """Return how many rows of coefficients to carry at once from node `index`."""
    largest = max(_product(n.shape) for n in problem.graph.nodes[: index + 1])
    return max(1, _CHUNK // (len(problem.x) * largest))


def bound_in_chunks(problem: Problem, index: int, wanted: Tensor) -> Tensor:
    parts = wanted.split(rows_at_once(problem, index), dim=1)
    return torch.cat([bound(problem, index, part) for part in parts], dim=1)


def bound(problem: Problem, index: int, wanted: Tensor) -> Tensor:
    """Return a lower bound of A · (value of node `index`) [b, s] for A = `wanted` [b, s, *f].

    Every node passes its coefficients on to its inputs: exactly where it is affine, else by the
    line that is below a · f(v), which is the lower one where a > 0 and the upper one where a < 0.
    """
    # Nodes are in topological order: going down, all coefficients of a node have been added up
    # (residual connections) by the time it is reached.
    carried: dict[int, Tensor] = {index: wanted}
    total = wanted.new_zeros(wanted.shape[:2])
    for at in range(index, 0, -1):
        a = carried.pop(at, None)
        if a is None:
            continue
        node = problem.graph.nodes[at]
        boxes = [problem.boxes[i] for i in node.inputs]
        parts, shift = _through_node(problem, at, a, boxes)
        total = total + shift
        for source, part in zip(node.inputs, parts, strict=True):
            carried[source] = carried[source] + part if source in carried else part
    return total + _concretize(problem, carried[0]) if 0 in carried else total


def _through_node(
    problem: Problem, at: int, a: Tensor, boxes: list[Box]
) -> tuple[list[Tensor], Tensor]:
    """Return the coefficients of the inputs of a node, and the constant left over [b, s]."""
    node, none = problem.graph.nodes[at], a.new_zeros(a.shape[:2])
    op = node.op
    if isinstance(op, Activation):
        lines = op.lines(*boxes[0], problem.slopes.get(node.inputs[0]))
        up, down = a.clamp_min(0), a.clamp_max(0)
        low_slope, low_shift, high_slope, high_shift = (part[:, None] for part in lines)
        shift = (up * low_shift + down * high_shift).flatten(2).sum(2)
        if problem.rounding and op.rounding:
            low, high = problem.boxes[at]
            # The float32 value lies within `off` of the exact one: at most |a| off is lost.
            off = op.slack(low, high)
            shift = shift - (a.abs() * off[:, None]).flatten(2).sum(2)
        return [up * low_slope + down * high_slope], shift
    if isinstance(op, Sum):
        shift = none
        if problem.rounding:
            low, high = problem.boxes[at]
            off = 2 * UNIT * torch.maximum(low.abs(), high.abs())
            shift = -(a.abs() * off[:, None]).flatten(2).sum(2)
        return [a, op.sign * a], shift
    if isinstance(op, Join):
        sizes = [problem.graph.nodes[i].shape[op.axis - 1] for i in node.inputs]
        return list(a.split(sizes, dim=op.axis + 1)), none
    if isinstance(op, MaxPool):
        return _max_pool(op, a, boxes[0])
    assert not isinstance(op, Input)
    shift = op.offset(a)
    if problem.rounding:
        size = torch.maximum(boxes[0].low.abs(), boxes[0].high.abs())
        off = widening(op, size)
        if off.ndim:
            shift = shift - (a.abs() * off[:, None]).flatten(2).sum(2)
    return [op.pull(a)], shift


def _max_pool(op: MaxPool, a: Tensor, box: Box) -> tuple[list[Tensor], Tensor]:
    """Bound max pooling: the linear bound below is one input, above it is a constant.

    Below, max ≥ the input with the greatest lower bound. Above, max = that input where its lower
    bound is at least the upper bound of every other one; else max ≤ the greatest upper bound.
    """
    low, index = F.max_pool2d(box.low, **op.options, return_indices=True)
    high = F.max_pool2d(box.high, **op.options)
    flat_high = box.high.flatten(2)
    masked = flat_high.scatter(2, index.flatten(2), -torch.inf).view_as(box.high)
    # Masked with −inf for its own window, an input would be missing from the others that it lies
    # in, whose upper bound would then be too low: unsound where windows overlap.
    options = op.options
    apart = (
        options.get("stride") in (None, options["kernel_size"])
        and not options.get("padding")
        and options.get("dilation", 1) in (1, (1, 1))
    )
    others = F.max_pool2d(masked, **options) if apart else torch.full_like(low, torch.inf)
    dominates = low >= others
    up, down = a.clamp_min(0), a.clamp_max(0)
    part = up + down * dominates[:, None].to(a.dtype)
    shift = (down * torch.where(dominates, 0.0, high)[:, None]).flatten(2).sum(2)
    out = a.new_zeros(*a.shape[:3], box.low[0, 0].numel())
    where = index.flatten(2)[:, None].expand(-1, a.shape[1], -1, -1)
    back = out.scatter_add(3, where, part.flatten(3))
    return [back.view(*a.shape[:2], *box.low.shape[1:])], shift


def _concretize(problem: Problem, a: Tensor) -> Tensor:
    """Return the minimum of A · x over the threat model, or a bound below it [b, s].

    Hölder: the minimum over the ball is A · x − eps ‖A‖* with the dual norm (l1 for linf, l2 for
    l2, linf for l1). Over ball and box together it is at least the greater of both minima.
    """
    low, high = problem.boxes[0]
    a, x = a.flatten(2), problem.x.flatten(1)
    center, radius = ((low + high) / 2).flatten(1), ((high - low) / 2).flatten(1)
    boxed = torch.einsum("bsd,bd->bs", a, center) - torch.einsum("bsd,bd->bs", a.abs(), radius)
    if problem.threat.norm == "linf":
        return boxed
    dual = a.norm(dim=2) if problem.threat.norm == "l2" else a.abs().amax(2)
    return torch.maximum(boxed, torch.einsum("bsd,bd->bs", a, x) - problem.threat.eps * dual)


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
