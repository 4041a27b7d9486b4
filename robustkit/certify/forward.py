"""Boxes for networks of few inputs: every value as an affine function of them, and an error.

A value is held by what its affine function comes to at the center of the box and at the middle of
one face for each input, and by a bound on how far it may be off. An affine operation maps these
points as it maps any input, and spreads the error; a ReLU of unknown sign is replaced by a band of
its slope u/(u − l) (the zonotopes of Singh et al. 2018, without new symbols: what a ReLU adds is an
interval). Where the box has side h the error falls as h², an interval's width as h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certify.activations import Activation
from robustkit.certify.affine import UNIT, LinearOp, widening
from robustkit.certify.graph import Graph, Node
from robustkit.certify.ibp import Box, intervals, margins_of, node_box
from robustkit.certify.nonlinear import Nonlinear
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.core.types import Labels

_WIDE = 1e-12  # relative: what float64 itself may be off by


class _Value(NamedTuple):
    """An affine function of the p inputs by its values at p + 1 points [p + 1, b, *f]; its error.

    Attributes:
        at: at the center first, then at center + radius of one input after the other.
        off: not below 0 [b, *f].
    """

    at: Tensor
    off: Tensor

    @property
    def radius(self) -> Tensor:
        """How far it comes from its value at the center."""
        return (self.at[1:] - self.at[:1]).abs().sum(0) + self.off

    @property
    def box(self) -> Box:
        wide = self.radius * (1 + _WIDE) + _WIDE * self.at[0].abs()
        return Box(self.at[0] - wide, self.at[0] + wide)


def forward_bounds(graph: Graph, box: Box, y: Labels) -> tuple[Tensor, list[Box]]:
    """Return lower bounds of z_y − z_j over `box` [b, p], 0 at j = y, and a box for each node.

    Both hold for float32 evaluations. Give weights and box [b, p] in float64.
    """
    center, radius = (box.low + box.high) / 2, (box.high - box.low) / 2
    ends = torch.diag_embed(radius).transpose(0, 1) + center
    values = [_Value(torch.cat([center[None], ends]), torch.zeros_like(center))]
    boxes = [box]
    for node in graph.nodes[1:]:
        sources = [boxes[k] for k in node.inputs]
        value = _step(node, [values[k] for k in node.inputs], sources)
        # A bent operation is bounded by its range, too: an affine function may leave it.
        known = node_box(node, sources, True) if _bent(node) else None
        value = _plain(known, len(ends)) if value is None and known is not None else value
        assert value is not None
        if not bool(value.at.isfinite().all() and value.off.isfinite().all()):
            boxes = intervals(graph, box, rounding=True)  # which know what to do on overflow
            return margins_of(graph, boxes, y, rounding=True), boxes
        values.append(value)
        found = value.box
        if known is not None:
            found = Box(torch.maximum(found.low, known.low), torch.minimum(found.high, known.high))
        boxes.append(found)
    plain = margins_of(graph, boxes, y, rounding=True)
    return torch.maximum(plain, _margins(graph, values, boxes, y)), boxes


def _bent(node: Node) -> bool:
    return isinstance(node.op, (Activation, MaxPool, Nonlinear))


def _margins(graph: Graph, values: list[_Value], boxes: list[Box], y: Labels) -> Tensor:
    """Bound z_y − z_j from the last values; the rows of a last linear layer are subtracted first.

    The network computes z_y and z_j apart: both round, although the bound subtracts first.
    """
    last, value, rows = graph.nodes[-1], values[-1], torch.arange(len(y), device=y.device)
    apart = value.at[:, rows, y][..., None] - value.at
    off = value.off[rows, y][:, None] + value.off
    if isinstance(last.op, LinearOp):
        before, weight = last.inputs[0], last.op.layer.weight
        size = torch.maximum(boxes[before].low.abs(), boxes[before].high.abs())
        lost = widening(last.op, size)
        differ = (weight[y][:, None] - weight[None]).abs()
        off = torch.einsum("bkd,bd->bk", differ, values[before].off) * (1 + _WIDE)
        off = off + lost[rows, y][:, None] + lost
    spread = (apart[1:] - apart[:1]).abs().sum(0) + off
    lower = apart[0] - spread * (1 + _WIDE) - _WIDE * value.at.abs().amax((0, 2))[:, None]
    same = torch.arange(lower.shape[1], device=y.device) == y[:, None]
    return lower.masked_fill(same, 0.0)


def _plain(box: Box, inputs: int) -> _Value:
    """Forget what a value depends on."""
    center, radius = (box.low + box.high) / 2, (box.high - box.low) / 2
    off = radius * (1 + _WIDE) + _WIDE * center.abs()
    return _Value(center.expand(inputs + 1, *center.shape), off)


def _step(node: Node, sources: list[_Value], boxes: list[Box]) -> _Value | None:
    """Return the value of a node; None where only its box is known."""
    op = node.op
    if isinstance(op, Activation):
        return _relu(sources[0], boxes[0]) if op.name == "relu" else None
    if isinstance(op, Sum):
        at = sources[0].at + op.sign * sources[1].at
        off = sources[0].off + sources[1].off
        return _Value(at, off + 2 * UNIT * (at.abs().amax(0) + off))
    if isinstance(op, Join):
        at = torch.cat([source.at for source in sources], op.axis + 1)
        off = torch.cat([source.off for source in sources], op.axis)
        return _Value(at, off)
    if isinstance(op, (Input, MaxPool, Nonlinear)):
        return None
    value, size = sources[0], torch.maximum(boxes[0].low.abs(), boxes[0].high.abs())
    at = op.forward(value.at.flatten(0, 1)).unflatten(0, value.at.shape[:2])
    if not op.terms:  # a reshape rounds nothing
        return _Value(at, op.spread(value.off))
    # |W| once for both: what was off before, and what `widening` says that float32 may round.
    n = op.terms + 2
    share = n * UNIT / (1 - n * UNIT)
    off = op.spread(value.off * (1 + _WIDE) + share * size) + share * op.size()
    return _Value(at, off)


def _relu(value: _Value, box: Box) -> _Value:
    low, high = box
    slope = torch.where(high <= 0, 0.0, torch.where(low >= 0, 1.0, high / (high - low)))
    shift = torch.where((low < 0) & (high > 0), -slope * low / 2, 0.0)
    # relu(z) lies between slope · z and slope · (z − low), z within the box: ReLUs are exact in
    # float32, what float64 rounds here is far below.
    spare = _WIDE * torch.maximum(low.abs(), high.abs())
    return _Value(slope * value.at + shift, slope * value.off + shift + spare)
