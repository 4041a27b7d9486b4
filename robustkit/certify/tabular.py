"""The certificate of a threat model of tables: bounds over spans of rows, split until they hold.

A span is a box: bounds of real and of whole numbers, and the categories that a group may still
take. Constraints tighten it before the network is bounded. What CROWN makes of a margin, a linear
function of the row, is then minimized over the rows themselves and not over the box: a group has
one 1, and a constraint enters by its multiplier. Where that proves nothing the span is halved, at
the feature whose gradient times its range is largest. A span of one row is that row: what holds
whole numbers and categories alone is decided, up to the rounding of float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.certify.agreement import refuse_less_precision
from robustkit.certify.complete.verifier import Effort
from robustkit.certify.crown import crown_margins
from robustkit.certify.graph import Graph, trace
from robustkit.certify.ibp import Box, intervals, margins_of
from robustkit.certify.linear_bounds import bound_in_chunks
from robustkit.certify.linearized import Problem
from robustkit.certify.nonlinear import LogSoftmax, Softmax
from robustkit.certify.smoothing import Smoothed
from robustkit.certify.table_spans import WIDE, RowsOfSpans, halved, tightened
from robustkit.core.table import Table
from robustkit.core.table_region import Region, Span
from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Mask
from robustkit.errors import UsageError
from robustkit.models.guard import duplicate
from robustkit.models.legible import legible
from robustkit.models.mixture import Mixed, proved_by_margins
from robustkit.models.readiness import frozen

_SPANS, _QUICK = 1024, 32  # at most so many for a point
_TOGETHER, _LOOKS = 16, 2
_ANY = Threat("linf", 1.0, -1e6, 1e6)  # bounds read the norm alone where boxes are given
_METHODS = ("auto", "quick", "ibp", "crown")


class _OfRows(nn.Module):
    """Rows [b, d] -> logits [b, k] of a model of inputs of another shape."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.model(rows.view(-1, *self.shape))
        return logits


@dataclass(frozen=True)
class TableBounds:
    """Bounds in float64 over spans of rows, widened by what a float32 evaluation rounds.

    A point is proved if every span is: at most `spans` of them. It is given up as soon as the model
    errs at a row of the set that is looked at on the way, or at first.
    """

    graph: Graph
    shape: tuple[int, ...]
    threat: TabularThreat
    spans: int
    method: str

    batch = 1

    @property
    def name(self) -> str:
        """With the number of spans, where it is not the usual one."""
        usual = self.method != "auto" or self.spans == _SPANS
        return self.method if usual else f"auto(nodes={self.spans})"

    def at(self, threat: Threat) -> TableBounds:
        """Return the same bounds for another threat model of the kind."""
        assert isinstance(threat, TabularThreat)
        return replace(self, threat=threat)

    def prove(self, x: Images, y: Labels) -> Mask:
        """Return for which points every span is proved [b]."""
        rows = range(len(x))
        found = [self._prove(x[row : row + 1], y[row : row + 1]) for row in rows]
        return torch.tensor(found, device=x.device)

    def _prove(self, x: Images, y: Labels) -> bool:
        region, y = self.threat.region(x), y.cpu()
        if self._broken(region, y):
            return False
        todo, leaves = region.span, 1
        while len(todo.low):
            now, rest = todo.rows(slice(_TOGETHER)), todo.rows(slice(_TOGETHER, None))
            now, there = tightened(region.table, now)
            open_ = self._open(region, now.rows(there), y)  # the others hold no row
            if open_ is None:
                return False
            leaves += len(open_.low)
            if leaves > self.spans:
                return False
            if len(open_.low):
                middle = self._middle(region.table, open_)
                slopes = self._slopes(middle, y.expand(len(middle))).abs()
                # The newest first: spans that are hard to prove are where the model errs.
                parts = (*halved(region.table, open_, slopes), rest)
                todo = Span(*(torch.cat(both) for both in zip(*parts, strict=True)))
            else:
                todo = rest
        return True

    def _broken(self, region: Region, y: Labels) -> bool:
        """Whether the model errs at the best row for its gradient, or at the best for that one's.

        Most points that cannot be proved are found here, at the price of two programs.
        """
        z = region.x
        for _ in range(_LOOKS):
            slope = self._slopes(z.flatten(1).double(), y)
            z = region.repaired(region.best(-slope), z)[0]
            if bool((self._answers(z) != y).any()):
                return True
        return False

    def _open(self, region: Region, span: Span, y: Labels) -> Span | None:
        """Return the spans that no bound proves; None where one of them cannot be proved at all.

        That is where the model errs at a row near its middle, or where it is a single row.
        """
        if not len(span.low):
            return span
        like, middle = region.repeated(len(span.low)), (span.low + span.high) / 2
        if bool((self._answers(like.repaired(middle, like.x)[0]) != y).any()):
            return None
        left = ~self._hold(region.table, span, y.expand(len(middle)))
        single = (span.low == span.high).all(1)
        return None if bool((left & single).any()) else span.rows(left)

    def _answers(self, z: Images) -> Labels:
        return self.graph.values(z.flatten(1).double())[-1].argmax(1)

    def _middle(self, table: Table, span: Span) -> Tensor:
        """Return the middle of spans as the model gets it, in float64."""
        return ((span.low + span.high) / 2 - table.lower) / table.width

    def _slopes(self, z: Tensor, y: Labels) -> Tensor:
        """Return the gradient at z [b, d] by which the label leads."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            logits = self.graph.values(z)[-1]
            own = torch.arange(logits.shape[1]) == y[:, None]
            margin = logits[own].sum() - logits.masked_fill(own, -torch.inf).amax(1).sum()
            gradient: Tensor = torch.autograd.grad(margin, z)[0]
            return gradient

    def _hold(self, table: Table, span: Span, y: Labels) -> Mask:
        """Return for which spans a bound proves the label: each method on what is left."""
        low, high = ((end - table.lower) / table.width for end in span)
        boxes = intervals(self.graph, Box(low - WIDE, high + WIDE), rounding=True)
        lower = margins_of(self.graph, boxes, y, rounding=True)
        holds = proved_by_margins(lower, y, None)
        for programs in () if self.method == "ibp" else (False, True):
            rows = (~holds).nonzero().flatten()
            if not len(rows) or (programs and not len(table.rows)):
                break
            inputs = RowsOfSpans(table, span.rows(rows), programs=programs)
            found = self._crown([Box(a[rows], b[rows]) for a, b in boxes], y[rows], inputs)
            holds[rows] = proved_by_margins(torch.maximum(found, lower[rows]), y[rows], None)
        return holds

    def _crown(self, boxes: list[Box], y: Labels, inputs: RowsOfSpans) -> Tensor:
        """Bound the margins [b, k] by CROWN over the rows of spans."""
        middle = (boxes[0].low + boxes[0].high) / 2
        last = self.graph.nodes[-1]
        if isinstance(last.op, (Softmax, LogSoftmax)):  # whose margins are no linear function
            return crown_margins(self.graph, middle, y, _ANY, rounding=True, boxes=boxes)
        eye = torch.eye(last.shape[0], dtype=middle.dtype)
        problem = Problem(self.graph, boxes, middle, _ANY, True, {}, inputs)
        found = bound_in_chunks(problem, len(boxes) - 1, eye[y][:, None] - eye[None])
        return found.masked_fill(eye[y].bool(), 0.0)


def table_bounds(
    model: Any,
    shape: tuple[int, ...],
    threat: TabularThreat,
    method: str,
    *,
    randomized: bool = False,
) -> TableBounds | None:
    """Return the certificate of a network.

    None where none is known and nobody insists on it.

    Args:
        method: "auto", or `auto(nodes=N)` with the most spans of a point; "ibp" and "crown" bound
            the set as a whole, "quick" takes 32 spans.

    Raises:
        UsageError: for other methods, and for a model that "ibp" or "crown" cannot bound.
    """
    effort = Effort.parse(method)
    if effort.method not in _METHODS or "seconds" in method:
        raise UsageError(
            f"{threat}: expected --certify auto, auto(nodes=1024), ibp or crown, got {method}."
        )
    optional = effort.method in ("auto", "quick")
    known = isinstance(model, nn.Module) and not isinstance(model, Smoothed | Mixed)
    if not known or randomized or threat.criterion.suffix:
        if optional:
            return None
        raise UsageError(
            f"--certify {method} bounds deterministic networks under the usual criterion in "
            f"{threat}: leave --certify out."
        )
    try:
        refuse_less_precision(model, shape)
        of_rows = _OfRows(frozen(legible(duplicate(model))), shape).double().cpu()
        graph = trace(of_rows, (prod(shape),))
    except UsageError:
        if optional:
            return None
        raise
    spans = {"auto": _SPANS, "quick": _QUICK}.get(effort.method, 1)
    spans = int(min(effort.nodes, 2**20)) if "nodes" in method else spans
    bound = "auto" if optional else effort.method
    return TableBounds(graph, shape, threat, spans, bound)
