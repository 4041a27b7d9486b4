"""CROWN: linear bounds propagated backward from the margins to the input; alpha-CROWN's slopes.

Zhang et al. 2018 (arXiv:1811.00866); Xu et al. 2021 (arXiv:2011.13824). One bound is a lower bound
of A · (value of a node); A is carried back node by node, together with a constant, until the input,
where its minimum over the threat model is known in closed form. A bound above is minus one of −A.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.affine import UNIT, widening
from robustkit.certify.graph import Graph
from robustkit.certify.ibp import Box, input_box, intervals
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels

_CHUNK = 2**21  # numbers in one block of coefficients: 16 MiB of float64
_PIECEWISE = ("relu", "leaky_relu")  # linear on either side of zero


class _Problem(NamedTuple):
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


def crown_margins(
    graph: Graph,
    x: Images,
    y: Labels,
    threat: Threat,
    *,
    intermediate: Literal["ibp", "crown"] = "ibp",
    rounding: bool = False,
    iterations: int = 0,
    boxes: list[Box] | None = None,
) -> Tensor:
    """Return lower bounds of z_y − z_j over the threat model around x: [b, k], 0 at j = y.

    Sound for every input of the threat model, whatever the slopes and iterations; in float64 with
    `rounding`, also for what a float32 evaluation of the network returns. With `iterations` > 0 the
    lower slopes of the ReLUs behind the margins are optimized by Adam (alpha-CROWN).

    Differs from the paper: the slopes behind intermediate bounds are CROWN's, and the margins of
    one point share their slopes.

    Args:
        x: clean points [b, *f], in [lower, upper] of the threat model.
        intermediate: bounds on the inputs of activations: intervals alone (CROWN-IBP, Zhang et al.
            2020), or backward passes too wherever intervals leave the sign open.
        rounding: hold for a float32 evaluation; give weights and x in float64.
        boxes: the result of `intervals`, where it is known.
    """
    if boxes is None:
        boxes = intervals(graph, input_box(x, threat), rounding=rounding, ball=(x, threat))
    problem = _Problem(graph, list(boxes), x, threat, rounding, {})
    if intermediate == "crown":
        _tighten_intermediate(problem)
    k = graph.nodes[-1].shape[0]
    eye = torch.eye(k, dtype=x.dtype, device=x.device)
    wanted = eye[y][:, None] - eye[None]
    lower = _in_chunks(problem, len(graph.nodes) - 1, wanted)
    if iterations:
        lower = _optimize_slopes(problem, wanted, lower, iterations)
    return lower.masked_fill(eye[y].bool(), 0.0)


def _optimize_slopes(problem: _Problem, wanted: Tensor, lower: Tensor, iterations: int) -> Tensor:
    """Maximize the negative margins over the slopes; return the best bound of each margin.

    Every slope in [0, 1] gives a sound bound, so that the best of all iterations is one, and the
    result is never below the CROWN bound that it starts from.
    """
    slopes = {}
    problem = problem._replace(
        boxes=[Box(low.detach(), high.detach()) for low, high in problem.boxes]
    )
    for index in problem.graph.relu_inputs():
        low, high = problem.boxes[index]
        # CROWN's choice is the start: the first iteration repeats its bound.
        slopes[index] = (high > -low).to(low.dtype).requires_grad_(True)
    if not slopes:
        return lower
    optimizer = torch.optim.Adam(list(slopes.values()), lr=0.1)  # as in Xu et al. 2021
    best = lower.detach()
    for _ in range(iterations):
        with torch.enable_grad():
            found = _bound(problem._replace(slopes=slopes), len(problem.graph.nodes) - 1, wanted)
            loss = -found.clamp_max(0).sum()  # a margin that is proved needs no more
        if not loss.requires_grad:
            break
        gradients = torch.autograd.grad(loss, list(slopes.values()), allow_unused=True)
        for slope, gradient in zip(slopes.values(), gradients, strict=True):
            slope.grad = gradient  # autograd.grad, not backward(): the weights get none
        best = torch.maximum(best, found.detach())
        if bool((best >= 0).all()):
            break
        optimizer.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return best


def _tighten_intermediate(problem: _Problem) -> None:
    """Tighten the boxes before activations by backward passes, and all boxes behind them."""
    graph, boxes = problem.graph, problem.boxes
    targets = {n.inputs[0] for n in graph.nodes if isinstance(n.op, Activation)}
    before = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, Activation)]
    first = before[0] if before else 0
    for index in sorted(targets):
        if index < first and problem.threat.norm == "linf":
            continue  # affine in the input box alone: the interval is exact
        low, high = boxes[index]
        # A piecewise linear unit of known sign is exact already; others gain from any tightening.
        piecewise = all(
            n.op.name in _PIECEWISE
            for n in graph.nodes
            if index in n.inputs and isinstance(n.op, Activation)
        )
        loose = (low < 0) & (high > 0) if piecewise else high > low
        # Units that are loose at any point: the rows of A are shared by the batch.
        open_units = loose.flatten(1).any(0).nonzero().flatten()
        if not len(open_units):
            continue
        b, features = len(low), low[0].numel()
        size = _rows_at_once(problem, index)
        new_low, new_high = low.flatten(1).clone(), high.flatten(1).clone()
        for start in range(0, len(open_units), size):
            units = open_units[start : start + size]
            a = low.new_zeros(len(units), features)
            a[torch.arange(len(units)), units] = 1
            a = a.view(1, len(units), *low.shape[1:]).expand(b, *[-1] * low.ndim)
            new_low[:, units] = torch.maximum(new_low[:, units], _bound(problem, index, a))
            new_high[:, units] = torch.minimum(new_high[:, units], -_bound(problem, index, -a))
        boxes[index] = Box(new_low.view_as(low), new_high.view_as(high))
        _propagate(problem, index)


def _propagate(problem: _Problem, changed: int) -> None:
    """Recompute the intervals behind a tightened node; keep the tighter bound of each unit."""
    fresh = intervals(
        problem.graph,
        input_box(problem.x, problem.threat),
        rounding=problem.rounding,
        ball=(problem.x, problem.threat),
        known=problem.boxes,
    )
    for index in range(changed + 1, len(fresh)):
        problem.boxes[index] = Box(
            torch.maximum(problem.boxes[index].low, fresh[index].low),
            torch.minimum(problem.boxes[index].high, fresh[index].high),
        )


def _rows_at_once(problem: _Problem, index: int) -> int:
    """Return how many rows of coefficients to carry at once from node `index`."""
    largest = max(_product(n.shape) for n in problem.graph.nodes[: index + 1])
    return max(1, _CHUNK // (len(problem.x) * largest))


def _in_chunks(problem: _Problem, index: int, wanted: Tensor) -> Tensor:
    parts = wanted.split(_rows_at_once(problem, index), dim=1)
    return torch.cat([_bound(problem, index, part) for part in parts], dim=1)


def _bound(problem: _Problem, index: int, wanted: Tensor) -> Tensor:
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
    problem: _Problem, at: int, a: Tensor, boxes: list[Box]
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


def _concretize(problem: _Problem, a: Tensor) -> Tensor:
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
