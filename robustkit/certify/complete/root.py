"""The root of a tree: one point's domain, in float64 with rounding, as tight as pays.

Bounds inside the tree keep the root's intervals, so that every bit gained here is gained in every
subdomain. Multipliers are optimized in float32; what counts is one pass in float64 with them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certify.activations import Activation
from robustkit.certify.affine import UNIT, ConvOp, LinearOp, widening
from robustkit.certify.complete.beta_crown import (
    CHUNK,
    Multipliers,
    Objective,
    Splits,
    evaluate,
    optimize,
)
from robustkit.certify.complete.record import Recorder
from robustkit.certify.complete.relaxation import Domain, Relaxation
from robustkit.certify.graph import Graph
from robustkit.certify.ibp import Box, input_box, intervals
from robustkit.certify.nonlinear import Nonlinear
from robustkit.certify.operations import Input, Join, MaxPool, Sum
from robustkit.core.threat import Threat
from robustkit.core.types import Images

_ROUNDING = 1e-9  # of float64 over a pass, many times over


class Prover(NamedTuple):
    """One network in float32, for the search, and in float64, for what is believed."""

    fast: Relaxation
    exact: Relaxation

    @classmethod
    def of(cls, fast: Graph, exact: Graph, threat: Threat) -> Prover:
        """Read both graphs; `threat` is enlarged by what float32 cannot express."""
        return cls(Relaxation(fast, threat), Relaxation(exact, threat))


class Root:
    """Boxes of one point [1, *shape] in float64; they hold for float32 evaluations.

    `record` hears how they were tightened.
    """

    def __init__(
        self, prover: Prover, x: Images, boxes: list[Box] | None = None,
        record: Recorder | None = None,
    ) -> None:  # fmt: skip
        self.prover, self.x, self.record = prover, x.double(), record
        threat, graph = prover.exact.threat, prover.exact.graph
        if boxes is None:
            boxes = intervals(graph, input_box(self.x, threat), rounding=True,
                              ball=(self.x, threat))  # fmt: skip
        self.boxes = boxes
        self.empty = False
        self._exact: Domain | None = None
        self._fast: Domain | None = None

    def copy(self) -> Root:
        """Return a root that is tightened by itself."""
        return Root(self.prover, self.x, list(self.boxes), self.record)

    def exact(self) -> Domain:
        """Return the boxes as the passes need them, with the slack for rounding."""
        if self._exact is None:
            self._exact = self._domain()
        return self._exact

    def fast(self) -> Domain:
        """Return the boxes in float32."""
        if self._fast is None:
            self._fast = self.exact().to(torch.float32)
        return self._fast

    def _domain(self) -> Domain:
        spans = self.prover.exact.spans
        low = torch.cat([self.boxes[i].low.flatten(1) for i in spans], 1)
        high = torch.cat([self.boxes[i].high.flatten(1) for i in spans], 1)
        return Domain(low, high, *self.boxes[0], self.x, self._slack())

    def _slack(self) -> dict[int, Tensor]:
        slack = {}
        for at, (op, inputs, _) in enumerate(self.prover.exact.graph.nodes):
            if isinstance(op, Sum):
                low, high = self.boxes[at]
                slack[at] = 2 * UNIT * torch.maximum(low.abs(), high.abs())
            elif not isinstance(op, (Input, Join, Activation, MaxPool, Nonlinear)):
                low, high = self.boxes[inputs[0]]
                size = torch.maximum(low.abs(), high.abs())
                fewer = 0
                if isinstance(op, (LinearOp, ConvOp)):  # a sum rounds nothing where it adds zero
                    fewer = min(0, int((size > 0).sum()) + 1 - op.terms)
                off = widening(op, size, fewer)
                if off.ndim:
                    slack[at] = off
        return slack

    def set(self, index: int, low: Tensor, high: Tensor) -> None:
        """Intersect the box of a node, and the intervals of all behind it."""
        known = list(self.boxes)
        known[index] = Box(
            torch.maximum(known[index].low, low), torch.minimum(known[index].high, high)
        )
        threat = self.prover.exact.threat
        fresh = intervals(
            self.prover.exact.graph, known[0], rounding=True, ball=(self.x, threat), known=known
        )
        # Bounds that cross by rounding alone prove nothing.
        self.empty = self.empty or any(
            bool((low - high > _ROUNDING * (1 + high.abs())).any()) for low, high in fresh
        )
        self.boxes = [Box(torch.minimum(*box), torch.maximum(*box)) for box in fresh]
        self._exact = self._fast = None

    def tighten(
        self, index: int, iterations: int, margin: Objective | None = None,
        at: Multipliers | None = None, over: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Tighten the open units among the inputs `index` of ReLUs.

        Args:
            over: asked before every batch of units; the others keep their bounds then.
            margin: of one row: only inputs matter where it is at most its target.
            at: the multipliers of the margin's bound [1, ...], to start from.
        """
        low, high = self.boxes[index]
        units = ((low < 0) & (high > 0)).flatten().nonzero().flatten()
        span = self.prover.exact.spans[index]
        if self.empty or not len(units) or (margin is None and not span.start):
            return  # affine in the input alone: the interval is exact
        below = torch.stack([low.flatten(), -high.flatten()], 1).flatten()
        rows = torch.cat([units * 2, units * 2 + 1])  # the unit, and minus the unit
        largest = max(prod(node.shape) for node in self.prover.exact.graph.nodes)
        better: list[tuple[Tensor, Multipliers]] = []
        for part in rows.split(max(1, CHUNK // largest)):
            if over():
                break
            found, best = self._bound(index, part, iterations, margin, at)
            gains = found > below[part]
            if self.record is not None:
                better.append((part[gains], best.rows(gains)))
            below[part] = torch.maximum(below[part], found)
        if self.record is not None:
            usual = at is None and not iterations
            self.record.tightened(index, better, margin, self.fast(), usual=usual)
        new = below.view(-1, 2)
        self.set(index, new[:, 0].view_as(low), -new[:, 1].view_as(high))

    def _bound(
        self, index: int, rows: Tensor, iterations: int, margin: Objective | None,
        at: Multipliers | None,
    ) -> tuple[Tensor, Multipliers]:  # fmt: skip
        """Return lower bounds of units (even rows) and of minus units (odd rows), in float64."""
        fast, exact, n = self.fast(), self.exact(), len(rows)
        span, shape = self.prover.exact.spans[index], self.boxes[index].low.shape[1:]
        width = span.start if margin is None else self.prover.exact.width
        unit = fast.low.new_zeros(n, span.stop - span.start)
        unit[torch.arange(n), rows // 2] = 1.0 - 2 * (rows % 2).float()
        objective = Objective(index, unit.view(-1, *shape))
        if margin is not None:
            fixed = unit.new_zeros(n, width)
            fixed[:, span] = unit
            wanted = margin.wanted.expand(n, -1)
            objective = margin._replace(wanted=wanted, fixed=fixed, scaled=True)
        alpha = (fast.high > -fast.low).float() if at is None else at.alpha
        none = Splits.none(unit)
        begin = Multipliers.start(alpha[:, :width].expand(n, -1).clone())
        if iterations:
            begin = optimize(self.prover.fast, fast, objective, none, begin, iterations).best
        bound = evaluate(
            self.prover.exact, exact, objective.double(), none.double(), begin.double()
        ).bound
        return bound, begin
