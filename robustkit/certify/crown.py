"""CROWN: linear bounds carried backward from the margins to the input, with optimizable slopes."""

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


_KINKED = ("relu", "leaky_relu")  # linear on either side of zero


class _Scene(NamedTuple):
    """What every backward pass needs. `slopes`: lower slopes of ReLUs by node [b, *f]."""

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

    Zhang et al. 2018 (CROWN). With `iterations` > 0 the lower slopes of the ReLUs behind the
    margins are raised by Adam (alpha-CROWN, Xu et al. 2021; differs from the paper: the slopes
    behind intermediate bounds stay as they are, and one point's margins share theirs).

    Args:
        intermediate: what bounds the inputs of activations: intervals alone (CROWN-IBP), or
            backward passes too wherever intervals leave the sign open.
        rounding: hold for a float32 evaluation; give weights and x in float64.
        boxes: of `intervals`, where they are known.
    """
    if boxes is None:
        boxes = intervals(graph, input_box(x, threat), rounding=rounding, ball=(x, threat))
    scene = _Scene(graph, list(boxes), x, threat, rounding, {})
    if intermediate == "crown":
        _refine(scene)
    k = graph.nodes[-1].shape[0]
    eye = torch.eye(k, dtype=x.dtype, device=x.device)
    wanted = eye[y][:, None] - eye[None]
    lower = _chunked(scene, len(graph.nodes) - 1, wanted)
    if iterations:
        lower = _raise(scene, wanted, lower, iterations)
    return lower.masked_fill(eye[y].bool(), 0.0)


def _raise(scene: _Scene, wanted: Tensor, lower: Tensor, iterations: int) -> Tensor:
    """Climb on the worst margins by the slopes, keeping the best bound of each margin."""
    slopes = {}
    scene = scene._replace(boxes=[Box(low.detach(), high.detach()) for low, high in scene.boxes])
    for index in scene.graph.relu_inputs():
        low, high = scene.boxes[index]
        slopes[index] = (high > -low).to(low.dtype).requires_grad_(True)
    if not slopes:
        return lower
    optimizer = torch.optim.Adam(list(slopes.values()), lr=0.1)
    best = lower.detach()
    for _ in range(iterations):
        with torch.enable_grad():
            found = _bound(scene._replace(slopes=slopes), len(scene.graph.nodes) - 1, wanted)
            loss = -found.clamp_max(0).sum()
        if not loss.requires_grad:
            break
        gradients = torch.autograd.grad(loss, list(slopes.values()), allow_unused=True)
        for slope, gradient in zip(slopes.values(), gradients, strict=True):
            slope.grad = gradient  # and none for the weights
        best = torch.maximum(best, found.detach())
        if bool((best >= 0).all()):
            break
        optimizer.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return best


def _refine(scene: _Scene) -> None:
    """Tighten the boxes before activations by backward passes, and all boxes after them."""
    graph, boxes = scene.graph, scene.boxes
    targets = {n.inputs[0] for n in graph.nodes if isinstance(n.op, Activation)}
    before = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, Activation)]
    first = before[0] if before else 0
    for index in sorted(targets):
        if index < first and scene.threat.norm == "linf":
            continue  # with one affine layer behind it the interval is exact
        low, high = boxes[index]
        kinked = all(
            n.op.name in _KINKED
            for n in graph.nodes
            if index in n.inputs and isinstance(n.op, Activation)
        )
        loose = (low < 0) & (high > 0) if kinked else high > low
        open_units = loose.flatten(1).any(0).nonzero().flatten()
        if not len(open_units):
            continue
        b, features = len(low), low[0].numel()
        size = _room(scene, index)
        new_low, new_high = low.flatten(1).clone(), high.flatten(1).clone()
        for start in range(0, len(open_units), size):
            units = open_units[start : start + size]
            a = low.new_zeros(len(units), features)
            a[torch.arange(len(units)), units] = 1
            a = a.view(1, len(units), *low.shape[1:]).expand(b, *[-1] * low.ndim)
            new_low[:, units] = torch.maximum(new_low[:, units], _bound(scene, index, a))
            new_high[:, units] = torch.minimum(new_high[:, units], -_bound(scene, index, -a))
        boxes[index] = Box(new_low.view_as(low), new_high.view_as(high))
        _propagate(scene, index)


def _propagate(scene: _Scene, changed: int) -> None:
    """Recompute the intervals behind a tightened node, keeping what is tighter already."""
    fresh = intervals(
        scene.graph,
        input_box(scene.x, scene.threat),
        rounding=scene.rounding,
        ball=(scene.x, scene.threat),
        known=scene.boxes,
    )
    for index in range(changed + 1, len(fresh)):
        scene.boxes[index] = Box(
            torch.maximum(scene.boxes[index].low, fresh[index].low),
            torch.minimum(scene.boxes[index].high, fresh[index].high),
        )


def _room(scene: _Scene, index: int) -> int:
    """Return how many rows of coefficients to carry at once from node `index`."""
    largest = max(_product(n.shape) for n in scene.graph.nodes[: index + 1])
    return max(1, _CHUNK // (len(scene.x) * largest))


def _chunked(scene: _Scene, index: int, wanted: Tensor) -> Tensor:
    parts = wanted.split(_room(scene, index), dim=1)
    return torch.cat([_bound(scene, index, part) for part in parts], dim=1)


def _bound(scene: _Scene, index: int, wanted: Tensor) -> Tensor:
    """Return a lower bound of A · (value of node `index`) [b, s] for A = `wanted` [b, s, *f].

    Every node passes its coefficients to its inputs: exactly where it is affine, by the line that
    is below the product where it is not.
    """
    carried: dict[int, Tensor] = {index: wanted}
    total = wanted.new_zeros(wanted.shape[:2])
    for at in range(index, 0, -1):
        a = carried.pop(at, None)
        if a is None:
            continue
        node = scene.graph.nodes[at]
        boxes = [scene.boxes[i] for i in node.inputs]
        parts, shift = _through(scene, at, a, boxes)
        total = total + shift
        for source, part in zip(node.inputs, parts, strict=True):
            carried[source] = carried[source] + part if source in carried else part
    return total + _concretize(scene, carried[0]) if 0 in carried else total


def _through(scene: _Scene, at: int, a: Tensor, boxes: list[Box]) -> tuple[list[Tensor], Tensor]:
    """Return the coefficients of the inputs of a node, and the constant left over [b, s]."""
    node, none = scene.graph.nodes[at], a.new_zeros(a.shape[:2])
    op = node.op
    if isinstance(op, Activation):
        lines = op.lines(*boxes[0], scene.slopes.get(node.inputs[0]))
        up, down = a.clamp_min(0), a.clamp_max(0)
        low_slope, low_shift, high_slope, high_shift = (part[:, None] for part in lines)
        shift = (up * low_shift + down * high_shift).flatten(2).sum(2)
        if scene.rounding and op.rounding:
            low, high = scene.boxes[at]
            off = op.slack(low, high)
            shift = shift - (a.abs() * off[:, None]).flatten(2).sum(2)
        return [up * low_slope + down * high_slope], shift
    if isinstance(op, Sum):
        shift = none
        if scene.rounding:
            low, high = scene.boxes[at]
            off = 2 * UNIT * torch.maximum(low.abs(), high.abs())
            shift = -(a.abs() * off[:, None]).flatten(2).sum(2)
        return [a, op.sign * a], shift
    if isinstance(op, Join):
        sizes = [scene.graph.nodes[i].shape[op.axis - 1] for i in node.inputs]
        return list(a.split(sizes, dim=op.axis + 1)), none
    if isinstance(op, MaxPool):
        return _max_pool(op, a, boxes[0])
    assert not isinstance(op, Input)
    shift = op.offset(a)
    if scene.rounding:
        size = torch.maximum(boxes[0].low.abs(), boxes[0].high.abs())
        off = widening(op, size)
        if off.ndim:
            shift = shift - (a.abs() * off[:, None]).flatten(2).sum(2)
    return [op.pull(a)], shift


def _max_pool(op: MaxPool, a: Tensor, box: Box) -> tuple[list[Tensor], Tensor]:
    """Below: the input with the greatest lower bound. Above: it too where it dominates, else max.

    An input dominates where its lower bound is at least the upper bound of every other one.
    """
    low, index = F.max_pool2d(box.low, **op.options, return_indices=True)
    high = F.max_pool2d(box.high, **op.options)
    flat_high = box.high.flatten(2)
    masked = flat_high.scatter(2, index.flatten(2), -torch.inf).view_as(box.high)
    # An input that wins one window may lie in others: hiding it there too only loses tightness
    # where windows overlap, so dominance is asked for only without overlap.
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


def _concretize(scene: _Scene, a: Tensor) -> Tensor:
    """Return the minimum of A · x over the threat model, or a bound below it [b, s]."""
    low, high = scene.boxes[0]
    a, x = a.flatten(2), scene.x.flatten(1)
    center, radius = ((low + high) / 2).flatten(1), ((high - low) / 2).flatten(1)
    boxed = torch.einsum("bsd,bd->bs", a, center) - torch.einsum("bsd,bd->bs", a.abs(), radius)
    if scene.threat.norm == "linf":
        return boxed
    dual = a.norm(dim=2) if scene.threat.norm == "l2" else a.abs().amax(2)
    return torch.maximum(boxed, torch.einsum("bsd,bd->bs", a, x) - scene.threat.eps * dual)


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
