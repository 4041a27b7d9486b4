"""Interval bound propagation, IBP (Gowal et al. 2018, arXiv:1810.12715): a box for every node."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.affine import UNIT, Affine, AverageOp, ConvOp, LinearOp, ScaleOp, widening
from robustkit.certify.dual import greatest
from robustkit.certify.graph import Graph, Node
from robustkit.certify.nonlinear import LogSoftmax, Nonlinear, Softmax
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels
from robustkit.errors import UsageError


class Box(NamedTuple):
    """Every value between low and high [b, *f]."""

    low: Tensor
    high: Tensor


def input_box(x: Images, threat: Threat) -> Box:
    """Return the smallest box around ball and box of the threat model, for any norm.

    Raises:
        UsageError: when a point lies outside the box: what holds on nothing would prove anything.
    """
    if bool(((x < threat.lower) | (x > threat.upper)).any()):
        raise UsageError(
            f"expected points in the box [{threat.lower:g}, {threat.upper:g}] of the threat model, "
            f"got values from {float(x.min()):g} to {float(x.max()):g}: no bounds. Scale the data, "
            "or give the threat model the range of the data."
        )
    return Box((x - threat.eps).clamp_min(threat.lower), (x + threat.eps).clamp_max(threat.upper))


def intervals(
    graph: Graph,
    box: Box,
    *,
    rounding: bool = False,
    ball: tuple[Images, Threat] | None = None,
    known: list[Box] | None = None,
    done: int = 0,
) -> list[Box]:
    """Return for each node a box that contains its value at every input of `box`.

    Args:
        box: of the inputs [b, *f].
        rounding: contain the values of a float32 evaluation too; give weights and box in float64.
        ball: the clean inputs and an l2 or l1 threat model: the first layer is bounded by the dual
            norms of its rows where that is tighter than the box.
        known: boxes that are sound already, of the first nodes or all; each result is intersected
            with its own.
        done: how many of the `known` boxes are taken as they are.
    """
    boxes: list[Box] = list(known[:done]) if known is not None else []
    for node in graph.nodes[len(boxes) :]:
        sources = [boxes[index] for index in node.inputs]
        found = box if isinstance(node.op, Input) else node_box(node, sources, rounding)
        boxes.append(_in_float32(found) if rounding else found)
        if ball is not None and ball[1].norm != "linf":
            _tighten(graph, boxes, ball, rounding)
        if known is not None and len(boxes) <= len(known):
            boxes[-1] = _cut(boxes[-1], known[len(boxes) - 1])
    return boxes


def lower_margins(graph: Graph, box: Box, y: Labels, *, rounding: bool = False) -> Tensor:
    """Return lower bounds of z_y − z_j over the box [b, k]; 0 at j = y."""
    return margins_of(graph, intervals(graph, box, rounding=rounding), y, rounding=rounding)


def margins_of(graph: Graph, boxes: list[Box], y: Labels, *, rounding: bool = False) -> Tensor:
    """Return lower bounds of z_y − z_j [b, k] from the boxes of `intervals`; 0 at j = y.

    A last linear layer is elided (Gowal et al. 2018): the rows of W that are compared are
    subtracted before they are bounded, (w_y − w_j) · h in place of two bounds apart.
    """
    last, out = graph.nodes[-1], boxes[len(graph.nodes) - 1]
    if isinstance(last.op, (Softmax, LogSoftmax)):  # of the same sign as the margins before it
        before = last.inputs[0]
        lower = margins_of(Graph(graph.nodes[: before + 1]), boxes, y, rounding=rounding)
        return last.op.margins(lower, boxes[before], rounding)
    rows = torch.arange(len(y), device=y.device)
    if not isinstance(last.op, LinearOp):
        lower = out.low[rows, y][:, None] - out.high
    else:
        low, high = boxes[last.inputs[0]]
        weight, bias = last.op.layer.weight, last.op.layer.bias
        rows_of = weight[y][:, None] - weight[None]
        center, radius = (low + high) / 2, (high - low) / 2
        lower = torch.einsum("bkd,bd->bk", rows_of, center) - torch.einsum(
            "bkd,bd->bk", rows_of.abs(), radius
        )
        if bias is not None:
            lower = lower + bias[y][:, None] - bias[None]
        if rounding:
            # The network computes z_y and z_j apart: both round, although the bound subtracts
            # first.
            off = widening(last.op, torch.maximum(low.abs(), high.abs()))
            lower = lower - off[rows, y][:, None] - off
    if rounding:
        lower = lower.where(~lower.isnan(), -torch.inf)  # of boxes without ends
    same = torch.arange(lower.shape[1], device=y.device) == y[:, None]
    return lower.masked_fill(same, 0.0)


def node_box(node: Node, sources: list[Box], rounding: bool) -> Box:
    """Return the box of a node's values from those of its inputs."""
    op = node.op
    if isinstance(op, Activation):
        # Rounding is added after every operation, so that each box contains float32 values too.
        low, high = op.interval(*sources[0])
        off = op.slack(low, high) if rounding else 0.0
        return Box(low - off, high + off)
    if isinstance(op, Sum):
        a, b = sources
        joined = (
            Box(a.low + b.low, a.high + b.high)
            if op.sign > 0
            else Box(a.low - b.high, a.high - b.low)
        )
        off = 2 * UNIT * torch.maximum(joined.low.abs(), joined.high.abs()) if rounding else 0.0
        return Box(joined.low - off, joined.high + off)
    if isinstance(op, Join):
        return Box(*(torch.cat(parts, op.axis) for parts in zip(*sources, strict=True)))
    if isinstance(op, MaxPool):
        return Box(*(F.max_pool2d(part, **op.options) for part in sources[0]))
    if isinstance(op, Nonlinear):
        low, high = op.interval(*sources)
        off = op.slack(list(sources), (low, high)) if rounding else 0.0
        return Box(low - off, high + off)
    assert not isinstance(op, Input)
    return _affine(op, sources[0], rounding)


def _affine(op: Affine, source: Box, rounding: bool) -> Box:
    low, high = source
    if isinstance(op, AverageOp):  # monotone: the ends map to the ends, for a reshape exactly
        size = torch.maximum(low.abs(), high.abs())
        off = widening(op, size) if rounding else 0.0
        return Box(op.forward(low) - off, op.forward(high) + off)
    # W c + b and |W| r: two passes in place of the four over W⁺, W⁻, low and high.
    center, radius = op.forward((low + high) / 2), op.spread((high - low) / 2)
    if rounding:
        # The bound itself is computed in float64, whose rounding 1e-12 of the radius covers.
        radius = radius * (1 + 1e-12) + widening(op, torch.maximum(low.abs(), high.abs()))
    return Box(center - radius, center + radius)


def _in_float32(box: Box) -> Box:
    """Return the box, without ends where a float32 evaluation may overflow, or the box itself has.

    What follows from infinite ends is not a number, and has none either.
    """
    most = torch.finfo(torch.float32).max
    known = (box.low >= -most) & (box.high <= most)
    if bool(known.all()):
        return box
    return Box(box.low.where(known, -torch.inf), box.high.where(known, torch.inf))


def _cut(a: Box, b: Box) -> Box:
    return Box(torch.maximum(a.low, b.low), torch.minimum(a.high, b.high))


def _tighten(graph: Graph, boxes: list[Box], ball: tuple[Images, Threat], rounding: bool) -> None:
    """Intersect the newest box with the ball's bound, if only scales and reshapes come before.

    |w · (x' − x)| ≤ ‖w‖₂ eps in l2, max |w| eps in l1 (Hölder), for every row w of the product of
    these operations.
    """
    index, chain = len(boxes) - 1, list[Affine]()
    while index:
        node = graph.nodes[index]
        allowed = (ScaleOp, AverageOp) if chain else (ConvOp, LinearOp)
        if not isinstance(node.op, allowed) or (isinstance(node.op, AverageOp) and node.op.terms):
            return
        chain.append(node.op)
        index = node.inputs[0]
    if not chain:
        return
    # sizes: ‖row‖₂² or max |row| of the product, exact since all factors but the last are diagonal
    # or reshapes.
    (x, threat), size = ball, torch.maximum(boxes[0].low.abs(), boxes[0].high.abs())
    center, sizes, flat = x, torch.ones_like(x[:1]), threat.norm == "l1"
    off = torch.zeros_like(x)
    for op in reversed(chain):
        if rounding:
            off = op.spread(off) + widening(op, size)
            size = op.spread(size) + op.size() + off
        center = op.forward(center)
        sizes = greatest(op, sizes) if flat else op.squares(sizes)
    radius = threat.eps * (sizes if flat else sizes.sqrt()) * (1 + 1e-12) + (
        off if rounding else 0.0
    )
    boxes[-1] = _cut(boxes[-1], Box(center - radius, center + radius))
