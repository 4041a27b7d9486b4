"""Linear bounds carried backward through a network: the pass that CROWN and alpha-CROWN share.

Zhang et al. 2018 (arXiv:1811.00866). One bound is a lower bound of A · (value of a node); A is
carried back node by node, together with a constant, until the input, where its minimum over the
threat model is known in closed form. A bound above is minus one of −A. Coefficients multiply
distances from the values at one input (linearized.py).
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.affine import UNIT, Affine, ConvOp, ScaleOp
from robustkit.certify.coefficients import (
    SLICE,
    Coefficients,
    added,
    both_signs,
    dots,
    flat,
    seen,
    values_of,
    with_values,
)
from robustkit.certify.ibp import Box
from robustkit.certify.linearized import SPARE, Linearized, Problem
from robustkit.certify.nonlinear import Nonlinear
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.certify.patches import Patches, one_hot
from robustkit.certify.smooth import through_placed_lines

BLOCK = 2**20  # numbers in one block of coefficients: the fastest of 2^18 to 2^21
_LOCAL = (ConvOp, ScaleOp, Activation, Sum)  # operations that windows pass through


def rows_at_once(problem: Problem, index: int) -> int:
    """Return how many rows of coefficients to carry at once from node `index`."""
    return max(1, BLOCK // (len(problem.x) * problem.largest_row(index)))


def bound_in_chunks(problem: Problem, index: int, wanted: Tensor) -> Tensor:
    parts = wanted.split(rows_at_once(problem, index), dim=1)
    known = Linearized(problem, wanted.dtype)
    return torch.cat([bound(problem, index, part, known) for part in parts], dim=1)


def bound(problem: Problem, index: int, wanted: Tensor, known: Linearized | None = None) -> Tensor:
    """Return a lower bound of A · (value of node `index`) [b, s] for A = `wanted` [b, s, *f].

    Every node passes its coefficients on to its inputs: exactly where it is affine, else by the
    line that is below a · f(v), which is the lower one where a > 0 and the upper one where a < 0.

    Args:
        known: of the problem in the type of `wanted`, where it is used again; slopes by row may
            differ.
    """
    known = Linearized(problem, wanted.dtype) if known is None else known
    start = dots(wanted.to(problem.x.dtype), [known.centers[index]], None, problem.x.dtype)[0]
    return _Backward(known, problem.slopes, start, None).run(index, wanted)


def bound_units(known: Linearized, index: int, units: Tensor, groups: Tensor) -> tuple[Box, int]:
    """Return bounds below and above of units [g, s] of a node, counted over its features.

    The units of convolutions are channels at the position of their group. Both signs share the way
    down to the first activation, and units of convolutions carry the windows that they see. The
    second result is the size of the largest row of coefficients.

    Args:
        groups: the point of each group of units [g]; of convolutions point · positions + position.
    """
    shape, points = known.problem.graph.nodes[index].shape, groups
    centers = known.centers[index].flatten(1)
    wanted: Coefficients
    if known.problem.local(index):
        points, place = groups // (shape[1] * shape[2]), groups % (shape[1] * shape[2])
        wanted = one_hot(
            units, points, place, (shape[0], shape[1], shape[2]), known.dtype, known.matrices
        )
        features = units * (shape[1] * shape[2]) + place[:, None]
    else:
        wanted = F.one_hot(units, prod(shape)).to(known.dtype)
        wanted, features = wanted.view(*units.shape, *shape), units
    start = centers[points[:, None], features]
    way = _Backward(known, known.problem.slopes, start, points, both=True)
    low, negative = way.run(index, wanted).chunk(2, dim=1)
    return Box(low, -negative), way.largest


class _Backward:
    """One backward pass: coefficients by node, and what has become a constant.

    With `both`, the rows stand for bounds below and above until the first operation that is not
    affine; from there on, for the bounds below of A and of −A one after the other.
    """

    def __init__(
        self,
        known: Linearized,
        slopes: dict[int, Tensor],
        start: Tensor,
        points: Tensor | None,
        *,
        both: bool = False,
    ) -> None:
        self.known, self.slopes, self.points = known, slopes, points
        self.problem, self.both, self.largest = known.problem, both, 1
        self.carried: dict[int, Coefficients] = {}
        self.settled: set[int] = set()  # nodes whose loss is counted already
        # Rounding is lost for A and for −A: kept apart from what changes its sign.
        self.constant, self.lost = start, torch.zeros_like(start)

    def run(self, index: int, wanted: Coefficients) -> Tensor:
        # Nodes are in topological order: going down, all coefficients of a node have been added up
        # (residual connections) by the time it is reached.
        self.carried[index] = wanted
        for at in range(index, 0, -1):
            a = self.carried.pop(at, None)
            if a is None:
                continue
            node = self.problem.graph.nodes[at]
            if isinstance(a, Patches) and (a.covers or not isinstance(node.op, _LOCAL)):
                a = a.dense()
            if at not in self.settled:
                self._lose(a, self.known.loss(at))
            if self.both and isinstance(node.op, (MaxPool, Nonlinear)):
                a = self._split(a)
            for source, part in zip(node.inputs, self._through(at, a), strict=True):
                self.largest = max(self.largest, values_of(part)[0, 0].numel())
                other = self.carried.get(source)
                if other is not None:
                    part = added(other, part)
                    if self.known.single:
                        off = 2 * UNIT * self.known.reach(source)
                        self._lose(part, off.to(values_of(part).dtype))
                self.carried[source] = part
        a = self.carried.pop(0)
        if self.both:
            a = self._split(a)
        found = self.constant - self.lost + self._least(a)
        return torch.where(found.isfinite(), found, -torch.inf)  # what overflows says nothing

    def _split(self, a: Coefficients) -> Coefficients:
        self._split_others()
        return both_signs(a)

    def _split_others(self) -> None:
        self.both = False
        self.constant = torch.cat([self.constant, -self.constant], 1)
        self.lost = torch.cat([self.lost, self.lost], 1)
        self.carried = {at: both_signs(known) for at, known in self.carried.items()}

    def _through(self, at: int, a: Coefficients) -> list[Coefficients]:
        """Return the coefficients of the inputs of a node; add up the constant left over."""
        node, boxes = self.problem.graph.nodes[at], self.problem.boxes
        op = node.op
        if isinstance(op, Activation):
            return [self._activation(at, node.inputs[0], a)]
        if isinstance(op, Sum):
            return [a, a if op.sign > 0 else with_values(a, -values_of(a))]
        if isinstance(a, Tensor) and isinstance(op, Join):
            sizes = [self.problem.graph.nodes[i].shape[op.axis - 1] for i in node.inputs]
            return list(a.split(sizes, dim=op.axis + 1))
        if isinstance(a, Tensor) and isinstance(op, MaxPool):
            source = node.inputs[0]
            if self.known.single:  # windows that overlap add up
                most = self.known.reach(source).flatten(1).amax(1)[:, None, None, None]
                terms = prod(a.shape[3:]) if op.overlaps else 2
                off = (2 + terms) * UNIT * most.expand_as(boxes[at].low)
                self._lose(a, off.to(a.dtype))
            return [self._max_pool(at, source, a)]
        if isinstance(a, Tensor) and isinstance(op, Nonlinear):
            parts, left = self.known.planes(at, a, self.points)
            self.constant = self.constant + left
            for source, part in zip(node.inputs, parts, strict=True):
                if self.known.single:  # rounded once, from float64
                    self._lose(part, UNIT * self.known.reach(source).to(part.dtype))
            return [*parts]
        assert not isinstance(op, (Input, Join, MaxPool, Nonlinear))
        return [self._affine(op, a)]

    def _affine(self, op: Affine, a: Coefficients) -> Coefficients:
        if isinstance(a, Tensor):
            return op.pull(a)
        a = a.cleaned()
        if isinstance(op, ConvOp):
            return a.pull(op)
        assert isinstance(op, ScaleOp)
        scale = op.read()[0].expand(1, *a.shape).to(a.values.dtype)
        return with_values(a, a.values * seen(a, scale, self.points))

    def _lose(self, a: Coefficients, off: Tensor | None) -> None:
        if off is not None:
            self.lost = self.lost + self._dots(with_values(a, values_of(a).abs()), [off])[0]

    def _dots(self, a: Coefficients, vectors: list[Tensor]) -> Tensor:
        return dots(a, vectors, self.points, self.problem.x.dtype)

    def _activation(self, at: int, source: int, a: Coefficients) -> Coefficients:
        """Return the coefficients of the input of an activation; add up the gaps left over."""
        op, slope = self.problem.graph.nodes[at].op, self.slopes.get(source)
        if isinstance(op, Activation) and op.smooth is not None and slope is not None:
            assert isinstance(a, Tensor)
            box, center = self.problem.boxes[source], self.known.centers[source]
            part, left = through_placed_lines(op.smooth, a, box, center, slope)
            self.constant = self.constant + left
            return part
        lines = self.known.lines(at)
        up = values_of(a).clamp_min(0)
        down = values_of(a) - up
        low, high = (seen(a, v, self.points) for v in (lines.low_slope, lines.high_slope))
        if slope is not None and slope.ndim > lines.low_slope.ndim:  # one for every row
            part = torch.addcmul(self._slopes(source, up, slope, low), down, high)
            self._leave(with_values(a, down), lines.high_shift)
            return with_values(a, part, clean=True)
        shares = self.known.shares(at)
        if shares is not None:
            self.settled.add(source)
        n = 1 if shares is None else 2
        ups = [lines.low_shift, *(shares[:1] if shares else ())]
        downs = [lines.high_shift, *(shares[1:] if shares else ())]
        # What is left of −A, where both signs begin to differ, comes with what is left of A.
        of_up = self._dots(with_values(a, up), ups + downs if self.both else ups)
        of_down = self._dots(with_values(a, down), downs + ups if self.both else downs)
        left, lost = of_up[0] + of_down[0], of_up[1:n] - of_down[1:n]
        if self.both:
            left = torch.cat([left, -of_up[n] - of_down[n]], 1)
            lost = torch.cat([lost, of_up[n + 1 :] - of_down[n + 1 :]], 2)
            self._split_others()
            other = _joined(-down, low, -up, high)
            part = torch.cat([_joined(up, low, down, high), other], 1)
        else:
            part = _joined(up, low, down, high)
        self._gap(left)
        self.lost = self.lost + lost.sum(0)
        result = with_values(a, part, clean=True)
        if self.known.single and not self.known.alone(source):
            self._lose(result, SPARE * UNIT * self.known.reach(source).to(part.dtype))
        return result

    def _slopes(self, source: int, up: Tensor, slope: Tensor, own: Tensor) -> Tensor:
        """Return up · α of rows with slopes of their own; the gap is max((1 − α) z°, −α z°)."""
        box, center = self.problem.boxes[source], self.known.centers[source].to(up.dtype)[:, None]
        unstable = ((box.low < 0) & (box.high > 0))[:, None]
        below = up * torch.where(unstable, slope.to(up.dtype), own)
        gap = below * center - up * center.clamp_min(0)
        self.constant = self.constant + gap.where(unstable, 0.0).flatten(2).to(self.constant).sum(2)
        return below

    def _leave(self, a: Coefficients, gap: Tensor) -> None:
        self._gap(self._dots(a, [gap.to(values_of(a).dtype)])[0])

    def _gap(self, left: Tensor) -> None:
        """Add gaps, all of one sign, to the constant."""
        self.constant = self.constant + left
        if self.known.single:  # the error is relative to the sum
            self.lost = self.lost + 2 * (SLICE + SPARE) * UNIT * left.abs()

    def _max_pool(self, at: int, source: int, a: Tensor) -> Tensor:
        """Return the coefficients of the input of max pooling; add up the gaps left over."""
        pool, box = self.known.pool(at), self.problem.boxes[source]
        up, down = a.clamp_min(0), a.clamp_max(0)
        self._leave(up, pool.low_gap)
        self._leave(down, pool.high_gap)
        points = slice(None) if self.points is None else self.points
        part = up + down * pool.dominates[points][:, None].to(a.dtype)
        out = a.new_zeros(*a.shape[:3], box.low[0, 0].numel())
        where = pool.chosen[points].flatten(2)[:, None].expand(-1, a.shape[1], -1, -1)
        return out.scatter_add(3, where, part.flatten(3)).view(*a.shape[:2], *box.low.shape[1:])

    def _least(self, a: Coefficients) -> Tensor:
        """Return the minimum of A · (x − x°) over the threat model, or a bound below it [g, s].

        Hölder: the minimum over the ball is A · x − eps ‖A‖* with the dual norm (l1 for linf, l2
        for l2, linf for l1). Over ball and box together it is at least the greater of both minima.
        """
        problem, known = self.problem, self.known
        if problem.inputs is not None:  # whole points, as `bound` asks
            return problem.inputs.least(flat(values_of(a)).to(problem.x.dtype), known.middle)
        boxed = -self._dots(with_values(a, values_of(a).abs()), [known.radius])[0]
        if problem.threat.norm == "linf":  # else the center is x, not the middle of the box
            return boxed
        a = with_values(a, values_of(a).to(problem.x.dtype))
        a = a.cleaned() if isinstance(a, Patches) else a
        rows = flat(values_of(a))
        dual = rows.norm(dim=2) if problem.threat.norm == "l2" else rows.abs().amax(2)
        boxed = boxed + self._dots(a, [known.middle - problem.x])[0]
        return torch.maximum(boxed, -problem.threat.eps * dual)


def _joined(up: Tensor, low: Tensor, down: Tensor, high: Tensor) -> Tensor:
    """Return up · low + down · high; of the two, one is zero everywhere."""
    if torch.is_grad_enabled():
        return torch.addcmul(up * low, down, high)
    return (up * low).addcmul_(down, high)
