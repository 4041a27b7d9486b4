"""Linear bounds carried backward through a network: the pass that CROWN and alpha-CROWN share.

Zhang et al. 2018 (arXiv:1811.00866). One bound is a lower bound of A · (value of a node); A is
carried back node by node, together with a constant, until the input, where its minimum over the
threat model is known in closed form. A bound above is minus one of −A.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.affine import UNIT, Affine, ConvOp, ScaleOp, widening
from robustkit.certify.coefficients import (
    Coefficients,
    added,
    both_signs,
    dot,
    seen,
    values_of,
    with_values,
)
from robustkit.certify.graph import Graph
from robustkit.certify.ibp import Box
from robustkit.certify.nonlinear import Nonlinear
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.certify.patches import Patches, one_hot
from robustkit.certify.smooth import through_placed_lines
from robustkit.core.threat import Threat
from robustkit.core.types import Images

BLOCK = 2**18  # numbers in one block of coefficients: 1 or 2 MiB, so that caches hold it
_LOCAL = (ConvOp, ScaleOp, Activation, Sum)  # operations that windows pass through


class Problem(NamedTuple):
    """What every backward pass needs.

    Attributes:
        boxes: interval bounds of every node, tightened as backward passes find better ones.
        rounding: whether bounds hold for float32 evaluations too.
        slopes: by input node; CROWN's own where there is none. Lower slopes of ReLUs, [b, *f] or
            by row [b, s, *f]; of smooth functions, where between the least and the greatest slope
            the lower and the upper line lie, [b, s, 2, *f].
    """

    graph: Graph
    boxes: list[Box]
    x: Images
    threat: Threat
    rounding: bool
    slopes: dict[int, Tensor]

    def of(self, rows: Tensor) -> Problem:
        """Return the problem of some points only."""
        boxes = [Box(low[rows], high[rows]) for low, high in self.boxes]
        slopes = {index: slope[rows] for index, slope in self.slopes.items()}
        return self._replace(boxes=boxes, x=self.x[rows], slopes=slopes)


def rows_at_once(problem: Problem, index: int) -> int:
    """Return how many rows of coefficients to carry at once from node `index`."""
    largest = max(math.prod(n.shape) for n in problem.graph.nodes[: index + 1])
    return max(1, BLOCK // (len(problem.x) * largest))


def bound_in_chunks(problem: Problem, index: int, wanted: Tensor) -> Tensor:
    parts = wanted.split(rows_at_once(problem, index), dim=1)
    return torch.cat([bound(problem, index, part) for part in parts], dim=1)


def bound(problem: Problem, index: int, wanted: Tensor) -> Tensor:
    """Return a lower bound of A · (value of node `index`) [b, s] for A = `wanted` [b, s, *f].

    Every node passes its coefficients on to its inputs: exactly where it is affine, else by the
    line that is below a · f(v), which is the lower one where a > 0 and the upper one where a < 0.
    """
    return _Backward(problem, wanted.new_zeros(wanted.shape[:2])).run(index, wanted)


def bound_units(problem: Problem, index: int, units: Tensor, dtype: torch.dtype) -> tuple[Box, int]:
    """Return bounds below and above of units [b, s] of a node, counted over its features.

    Both signs share the way down to the first activation, and units of convolutions carry the
    windows that they see. The second result is the size of the largest row of coefficients.
    In float32, bounds with `rounding` are lowered by what the pass itself may lose.
    """
    shape = problem.graph.nodes[index].shape
    wanted: Coefficients
    if len(shape) == 3 and isinstance(problem.graph.nodes[index].op, (ConvOp, ScaleOp, Sum)):
        wanted = one_hot(units, (shape[0], shape[1], shape[2]), dtype)
    else:
        wanted = F.one_hot(units, math.prod(shape)).to(dtype)
        wanted = wanted.view(*units.shape, *shape)
    way = _Backward(problem, problem.x.new_zeros(units.shape), both=True)
    low, negative = way.run(index, wanted).chunk(2, dim=1)
    return Box(low, -negative), way.largest


class _Backward:
    """One backward pass: coefficients by node, and what has become a constant.

    With `both`, the rows stand for bounds below and above until the first operation that is not
    affine; from there on, for the bounds below of A and of −A one after the other.
    """

    def __init__(self, problem: Problem, zeros: Tensor, *, both: bool = False) -> None:
        self.problem, self.both, self.largest = problem, both, 1
        self.carried: dict[int, Coefficients] = {}
        # Rounding is lost for A and for −A: kept apart from what changes its sign.
        self.constant = self.lost = zeros

    def run(self, index: int, wanted: Coefficients) -> Tensor:
        # Nodes are in topological order: going down, all coefficients of a node have been added up
        # (residual connections) by the time it is reached.
        self.carried[index] = wanted
        for at in range(index, 0, -1):
            a = self.carried.pop(at, None)
            if a is None:
                continue
            node = self.problem.graph.nodes[at]
            if self.both and isinstance(node.op, (Activation, MaxPool, Nonlinear)):
                a = self._split(a)
            if isinstance(a, Patches) and (a.covers or not isinstance(node.op, _LOCAL)):
                a = a.dense()
            for source, part in zip(node.inputs, self._through(at, a), strict=True):
                self.largest = max(self.largest, values_of(part)[0, 0].numel())
                known = self.carried.get(source)
                if known is not None:
                    part = added(known, part)
                    if self._single(part):
                        self._lose(part, 2 * UNIT * _size(self.problem.boxes[source]))
                self.carried[source] = part
        a = self.carried.pop(0)
        if self.both:
            a = self._split(a)
        return self.constant - self.lost + _concretize(self.problem, a)

    def _split(self, a: Coefficients) -> Coefficients:
        self.both = False
        self.constant = torch.cat([self.constant, -self.constant], 1)
        self.lost = torch.cat([self.lost, self.lost], 1)
        self.carried = {at: both_signs(known) for at, known in self.carried.items()}
        return both_signs(a)

    def _through(self, at: int, a: Coefficients) -> list[Coefficients]:
        """Return the coefficients of the inputs of a node; add up the constant left over."""
        problem, node = self.problem, self.problem.graph.nodes[at]
        op, boxes = node.op, [problem.boxes[i] for i in node.inputs]
        if isinstance(op, Activation):
            part, shift = _activation(op, a, boxes[0], problem.slopes.get(node.inputs[0]))
            self.constant = self.constant + shift
            if problem.rounding and op.rounding:
                # The float32 value lies within `slack` of the exact one.
                self._lose(a, op.slack(*problem.boxes[at]))
            if self._single(a):
                self._lose(part, 5 * UNIT * _size(boxes[0]))
                if op.name == "relu":  # one sign only: the error is relative to the sum
                    self.lost = self.lost + 2 * _terms(a) * UNIT * shift.abs()
                else:
                    lines = op.lines(*boxes[0])
                    shifts = torch.maximum(lines.low_shift.abs(), lines.high_shift.abs())
                    self._lose(a, 2 * _terms(a) * UNIT * shifts)
            return [part]
        if isinstance(op, Sum):
            if problem.rounding:
                self._lose(a, 2 * UNIT * _size(problem.boxes[at]))
            return [a, a if op.sign > 0 else with_values(a, -values_of(a))]
        if isinstance(a, Tensor) and isinstance(op, Join):
            sizes = [problem.graph.nodes[i].shape[op.axis - 1] for i in node.inputs]
            return list(a.split(sizes, dim=op.axis + 1))
        if isinstance(a, Tensor) and isinstance(op, MaxPool):
            if self._single(a):  # windows that overlap add up
                most = _size(boxes[0]).flatten(1).amax(1)[:, None, None, None]
                terms = math.prod(tuple(a.shape[3:])) if op.overlaps else 2
                self._lose(a, (2 + terms) * UNIT * most.expand_as(problem.boxes[at].low))
            back, shift = _max_pool(op, a, boxes[0])
            self.constant = self.constant + shift
            return [back]
        if isinstance(a, Tensor) and isinstance(op, Nonlinear):
            a = a.to(boxes[0].low.dtype)  # exact enough from here on
            if problem.rounding:
                self._lose(a, op.slack(list(boxes), problem.boxes[at]))
            parts, shift = op.backward(a, list(boxes))
            self.constant = self.constant + shift
            return list(parts)
        assert not isinstance(op, (Input, Join, MaxPool, Nonlinear))
        return [self._affine(op, a, boxes[0])]

    def _affine(self, op: Affine, a: Coefficients, box: Box) -> Coefficients:
        if self.problem.rounding:
            more = op.back_terms + 4 if self._single(a) else 0
            off = widening(op, _size(box), more)
            if off.ndim:
                # The product with b is a sum in float32, too.
                wide = values_of(a)[0, 0].numel() * UNIT if self._single(a) else 0.0
                self._lose(a, off + wide * op.size())
        if isinstance(a, Tensor):
            self.constant = self.constant + op.offset(a)
            return op.pull(a)
        a = a.cleaned()
        if isinstance(op, ConvOp):
            if op.layer.bias is not None:
                weight = op.layer.bias.to(a.values.dtype)[:, None, None]
                weight = weight.expand(a.values.shape[2:]).flatten()
                self.constant = self.constant + a.values.flatten(2) @ weight
            return a.pull(op)
        assert isinstance(op, ScaleOp)
        scale, bias = (part.to(box.low.dtype).expand(1, *a.shape) for part in op.read())
        self.constant = self.constant + dot(a, bias)
        return with_values(a, a.values * seen(a, scale))

    def _single(self, a: Coefficients) -> bool:
        """Whether the pass itself rounds in float32, and has to answer for it."""
        return self.problem.rounding and values_of(a).dtype == torch.float32

    def _lose(self, a: Coefficients, off: Tensor) -> None:
        # The factor covers the rounding of this sum of positive numbers.
        values = values_of(a)
        factor = 1 + 2 * UNIT * values[0, 0].numel() + 1e-6
        size = with_values(a, values.abs())
        self.lost = self.lost + dot(size, (off * factor).to(values.dtype))


def _activation(
    op: Activation, a: Coefficients, box: Box, slope: Tensor | None
) -> tuple[Coefficients, Tensor]:
    """Return the coefficients of the input of an activation, and the constant left over [b, s]."""
    if op.smooth is not None and slope is not None:
        assert isinstance(a, Tensor)
        return through_placed_lines(op.smooth, a, box, slope)
    lines = op.lines(*box, slope if slope is None or slope.ndim == box.low.ndim else None)
    up, low_slope = values_of(a).clamp_min(0), seen(a, lines.low_slope)
    if slope is not None and slope.ndim > box.low.ndim:  # one for every row
        unstable = (box.low < 0) & (box.high > 0)
        low_slope = torch.where(unstable[:, None], slope.to(up.dtype), low_slope)
    down, high_slope = values_of(a) - up, seen(a, lines.high_slope)
    part = torch.addcmul(down * high_slope, up, low_slope)
    shift = dot(with_values(a, down), lines.high_shift)
    if op.name != "relu":  # both of its lower lines pass through zero
        shift = shift + dot(with_values(a, up), lines.low_shift)
    return with_values(a, part, clean=True), shift


def _terms(a: Coefficients) -> int:
    """Return how many summands `dot` adds up in the type of the coefficients, and a few more."""
    return a.values.shape[4] + 4 if isinstance(a, Patches) else 4


def _size(box: Box) -> Tensor:
    return torch.maximum(box.low.abs(), box.high.abs())


def _max_pool(op: MaxPool, a: Tensor, box: Box) -> tuple[Tensor, Tensor]:
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
    options, apart = op.options, not op.overlaps
    others = F.max_pool2d(masked, **options) if apart else torch.full_like(low, torch.inf)
    dominates = low >= others
    up, down = a.clamp_min(0), a.clamp_max(0)
    part = up + down * dominates[:, None].to(a.dtype)
    shift = dot(down, torch.where(dominates, 0.0, high))
    out = a.new_zeros(*a.shape[:3], box.low[0, 0].numel())
    where = index.flatten(2)[:, None].expand(-1, a.shape[1], -1, -1)
    back = out.scatter_add(3, where, part.flatten(3))
    return back.view(*a.shape[:2], *box.low.shape[1:]), shift


def _concretize(problem: Problem, a: Coefficients) -> Tensor:
    """Return the minimum of A · x over the threat model, or a bound below it [b, s].

    Hölder: the minimum over the ball is A · x − eps ‖A‖* with the dual norm (l1 for linf, l2 for
    l2, linf for l1). Over ball and box together it is at least the greater of both minima.
    """
    low, high = problem.boxes[0]
    a = with_values(a, values_of(a).to(low.dtype))
    a = a.cleaned() if isinstance(a, Patches) else a
    size = with_values(a, values_of(a).abs())
    boxed = dot(a, (low + high) / 2) - dot(size, (high - low) / 2)
    if problem.threat.norm == "linf":
        return boxed
    rows = values_of(a).flatten(2)
    dual = rows.norm(dim=2) if problem.threat.norm == "l2" else rows.abs().amax(2)
    return torch.maximum(boxed, dot(a, problem.x) - problem.threat.eps * dual)
