"""What backward passes read of a network: lines, gaps, values at a center, and what rounds.

Coefficients A of a pass multiply distances from the values at one input, not the values: the center
of the input box in linf, else the clean point, as that center may lie outside of the ball. Then
Σ A W (v − v°) needs no bias, what an activation leaves over is a gap of one sign, and what float32
loses in A is multiplied by the width of a box, not by the size of a value.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.activations import Activation
from robustkit.certify.affine import UNIT, AverageOp, ConvOp, ScaleOp, widening
from robustkit.certify.coefficients import SLICE
from robustkit.certify.graph import Graph
from robustkit.certify.ibp import Box
from robustkit.certify.nonlinear import Nonlinear, summed
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.certify.smooth import Lines
from robustkit.core.threat import Threat
from robustkit.core.types import Images

SPARE = 6  # roundings besides those of a sum: of weights, slopes, and what multiplies them


class Inputs(Protocol):
    """The inputs that a bound must hold for, where they are fewer than those of a box."""

    def least(self, rows: Tensor, middle: Tensor) -> Tensor:
        """Return a lower bound of a · (x − middle) for `rows` a [b, s, f] and middle [b, f]."""
        ...


class Problem(NamedTuple):
    """What every backward pass needs.

    Attributes:
        boxes: interval bounds of every node, tightened as backward passes find better ones.
        rounding: whether bounds hold for float32 evaluations too.
        slopes: by input node; CROWN's own where there is none. Lower slopes of ReLUs, [b, *f] or
            by row [b, s, *f]; of smooth functions, where between the least and the greatest slope
            the lower and the upper line lie, [b, s, 2, *f].
        inputs: that the bound must hold for; None: all of the ball and the box.
    """

    graph: Graph
    boxes: list[Box]
    x: Images
    threat: Threat
    rounding: bool
    slopes: dict[int, Tensor]
    inputs: Inputs | None = None

    def of(self, rows: Tensor) -> Problem:
        """Return the problem of some points only."""
        boxes = [Box(low[rows], high[rows]) for low, high in self.boxes]
        slopes = {index: slope[rows] for index, slope in self.slopes.items()}
        return self._replace(boxes=boxes, x=self.x[rows], slopes=slopes)

    def local(self, index: int) -> bool:
        """Whether units of a node see a window of the map before it."""
        op, _, shape = self.graph.nodes[index]
        return len(shape) == 3 and isinstance(op, (ConvOp, ScaleOp, Sum))

    def largest_row(self, index: int) -> int:
        """Return the most coefficients that a row may have on its way from node `index`."""
        return max(math.prod(node.shape) for node in self.graph.nodes[: index + 1])


class Pool(NamedTuple):
    """Bounds of max pooling around the center: one input below, that one or a constant above.

    Attributes:
        chosen: index of the input of the bound below, in its map [b, c, h, w].
        dominates: whether it is the maximum, and so the bound above.
        low_gap: at most 0; high_gap: at least 0.
    """

    chosen: Tensor
    dominates: Tensor
    low_gap: Tensor
    high_gap: Tensor


class Linearized:
    """The network around one input, read once for many passes.

    Args:
        dtype: of the coefficients. In float32, bounds with `rounding` are lowered by what the pass
            itself may lose.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.problem, self.dtype = problem, dtype
        self.single = problem.rounding and dtype == torch.float32
        low, high = problem.boxes[0]
        # Covers the rounding of a sum of positive numbers, and of what they are multiplied by.
        self._spare = 1 + 2 * (SLICE + SPARE) * UNIT if self.single else 1.0
        self.radius = (self._spare * (high - low) / 2).to(dtype)
        self.middle = (low + high) / 2
        inside = self.middle if problem.threat.norm == "linf" else problem.x
        self.centers = problem.graph.values(inside)
        self.matrices: dict[tuple[int, ...], Tensor] = {}  # of convolutions between windows
        self._readers = [0] * len(problem.graph.nodes)
        for node in problem.graph.nodes:
            for source in node.inputs:
                self._readers[source] += 1
        self._lines: dict[int, Lines] = {}
        self._pools: dict[int, Pool] = {}
        self._losses: dict[int, Tensor | None] = {}
        self._shares: dict[int, tuple[Tensor, Tensor] | None] = {}

    def reach(self, at: int) -> Tensor:
        """Return how far values of a node lie from that at the center, at most [b, *shape]."""
        low, high = self.problem.boxes[at]
        center = self.centers[at]
        return torch.maximum(high - center, center - low).clamp_min(0)

    def lines(self, at: int) -> Lines:
        """Return the lines of an activation; shifts are the gaps to its value at the center.

        f(z) − f(z°) ≥ slope · (z − z°) + shift, with shift ≤ 0; above likewise, with shift ≥ 0.
        """
        if at not in self._lines:
            op, (source,), _ = self.problem.graph.nodes[at]
            assert isinstance(op, Activation)
            box, slope = self.problem.boxes[source], self.problem.slopes.get(source)
            lines = op.lines(*box, slope if slope is None or slope.ndim == box.low.ndim else None)
            found = lines.around(self.centers[source], self.centers[at])
            self._lines[at] = Lines(*(part.to(self.dtype) for part in found))
        return self._lines[at]

    def pool(self, at: int) -> Pool:
        """Return the bounds of max pooling.

        Below, max ≥ the input with the greatest lower bound. Above, max = that input where its
        lower bound is at least the upper bound of every other one; else max ≤ the greatest upper
        bound.
        """
        if at not in self._pools:
            op, (source,), _ = self.problem.graph.nodes[at]
            assert isinstance(op, MaxPool)
            box, center = self.problem.boxes[source], self.centers[source]
            low, index = F.max_pool2d(box.low, **op.options, return_indices=True)
            masked = box.high.flatten(2).scatter(2, index.flatten(2), -torch.inf)
            # Masked with −inf for its own window, an input would be missing from the others that
            # it lies in, whose upper bound would then be too low: unsound where windows overlap.
            others = torch.full_like(low, torch.inf)
            if not op.overlaps:
                others = F.max_pool2d(masked.view_as(box.high), **op.options)
            dominates, value = low >= others, F.max_pool2d(center, **op.options)
            chosen = center.flatten(2).gather(2, index.flatten(2)).view_as(low)
            above = torch.where(dominates, chosen, F.max_pool2d(box.high, **op.options))
            gaps = (chosen - value).clamp_max(0), (above - value).clamp_min(0)
            self._pools[at] = Pool(index, dominates, *gaps)
        return self._pools[at]

    def planes(self, at: int, a: Tensor, points: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Return c and d with Σ c · (x − x°) + d ≤ a · (value − value°) for a [g, s, *out].

        Of an operation of several values; computed in the type of the problem, c rounded to that of
        a. d [g, s] is not above 0.

        Args:
            points: the point of each group of rows [g]; that of its number if None.
        """
        op, inputs, _ = self.problem.graph.nodes[at]
        assert isinstance(op, Nonlinear)
        rows = slice(None) if points is None else points
        boxes = [self.problem.boxes[source] for source in inputs]
        wide = a.to(self.problem.x.dtype)
        parts, left = op.backward(wide, [(low[rows], high[rows]) for low, high in boxes])
        left = left - summed(wide, self.centers[at][rows])
        for source, part in zip(inputs, parts, strict=True):
            left = left + summed(part, self.centers[source][rows])
        return [part.to(a.dtype) for part in parts], left

    def shares(self, at: int) -> tuple[Tensor, Tensor] | None:
        """Return what is lost before an activation, for a unit of |coefficient| behind it.

        Where the lower line holds, and where the upper one; None where nothing is, or where the
        coefficients before it are a sum.
        """
        if at not in self._shares:
            source = self.problem.graph.nodes[at].inputs[0]
            off, lines = self.loss(source), self.lines(at)
            self._shares[at] = (
                (lines.low_slope.abs() * off, lines.high_slope.abs() * off)
                if off is not None and self.alone(source)
                else None
            )
        return self._shares[at]

    def alone(self, at: int) -> bool:
        """Whether one operation reads the node, so that its coefficients are no sum."""
        return self._readers[at] == 1

    def loss(self, at: int) -> Tensor | None:
        """Return what rounding takes from a bound for a unit of |coefficient| [b or 1, *shape]."""
        if at not in self._losses:
            parts = self._lost(at) if self.problem.rounding else []
            found = self._spare * sum(parts[1:], parts[0]) if parts else None
            self._losses[at] = None if found is None else found.to(self.dtype)
        return self._losses[at]

    def _lost(self, at: int) -> list[Tensor]:
        op, inputs, _ = self.problem.graph.nodes[at]
        boxes, parts = self.problem.boxes, list[Tensor]()
        if self.single and self.alone(at):
            # By the activation behind it: two slopes, two products and a sum.
            parts.append(SPARE * UNIT * self.reach(at))
        if isinstance(op, Sum):
            parts.append(2 * UNIT * size(boxes[at]))
        elif isinstance(op, Activation):
            if op.rounding:  # the float32 value lies within `slack` of the exact one
                parts.append(op.slack(*boxes[at]))
        elif isinstance(op, Nonlinear):
            parts.append(op.slack([boxes[source] for source in inputs], boxes[at]))
        elif not isinstance(op, (Input, Join, MaxPool)):
            off = widening(op, size(boxes[inputs[0]]))
            if off.ndim:
                parts.append(off)
            if self.single:
                source = self.reach(inputs[0])
                terms = op.back_terms + SPARE
                if isinstance(op, AverageOp):  # a move is exact, unless it repeats values
                    copies = op.pull(torch.ones_like(self.centers[at][:1, None]))
                    terms = max(op.back_terms, math.ceil(float(copies.max()))) - 1
                if terms:
                    parts.append(terms * UNIT / (1 - terms * UNIT) * op.spread(source))
        return parts


def size(box: Box) -> Tensor:
    """Return the greatest absolute value."""
    return torch.maximum(box.low.abs(), box.high.abs())
