"""Spans of rows of a table: tightened by constraints, halved, and linear functions bounded on them.

In the units of the table, float64, on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from scipy.optimize import linprog
from torch import Tensor

from robustkit.core.table import Table
from robustkit.core.table_region import Span

WIDE = 2.0**-24  # scaled numbers are float32: off by no more
_ROUNDS = 4  # of tightening, over all constraints
_PENALTY = 1e3  # of a constraint that is missed, in ranges of the function


def tightened(table: Table, span: Span) -> tuple[Span, Bool[Tensor, " b"]]:
    """Return bounds that hold for every row of the table in `span`, and where there may be one.

    Each constraint bounds each of its features by what the others can come to; a group needs one 1.
    Sound: constraints are taken with their tolerance.
    """
    low, high = span
    m = len(table.matrix)
    rows = torch.cat([table.rows, -table.rows[m:], table.members, -table.members])
    ends = torch.cat([table.ends + table.tolerance, -(table.ends - table.tolerance)[m:],
                      torch.ones(len(table.members)), -torch.ones(len(table.members))])  # fmt: skip
    spare = 1e-9 * (1 + table.width)
    for _ in range(_ROUNDS if len(rows) else 0):
        before = low, high
        for row, end in zip(rows, ends, strict=True):
            used = row != 0
            least = torch.where(row > 0, row * low, torch.where(used, row * high, 0.0))
            left = end - least.sum(1, keepdim=True) + least  # what row_j v_j may come to
            bound = left / torch.where(used, row, 1.0)
            high = torch.where(row > 0, torch.minimum(high, bound + spare), high)
            low = torch.where(row < 0, torch.maximum(low, bound - spare), low)
        low = torch.where(table.discrete, (low - 1e-6).ceil(), low)
        high = torch.where(table.discrete, (high + 1e-6).floor(), high)
        if torch.equal(low, before[0]) and torch.equal(high, before[1]):
            break
    there = (low <= high + spare).all(1)
    # Of a span without a row the bounds are those that were given.
    kept = there[:, None]
    low, high = torch.where(kept, low, span.low), torch.where(kept, high, span.high)
    return Span(low, torch.maximum(low, high)), there


def halved(table: Table, span: Span, slopes: Tensor) -> tuple[Span, Span]:
    """Halve every span at the feature whose slope [b, d] times its range is largest.

    A category is taken or left; whole numbers are parted between two of them.
    """
    low, high = span
    at = ((slopes + 1e-12) * (high - low) / table.width).argmax(1, keepdim=True)
    middle = (low + high) / 2
    below = torch.where(table.discrete, middle.floor(), middle)
    above = torch.where(table.discrete, below + 1, middle)
    cut = torch.zeros_like(low, dtype=torch.bool).scatter(1, at, True)
    return Span(low, torch.where(cut, below, high)), Span(torch.where(cut, above, low), high)


@dataclass(frozen=True)
class RowsOfSpans:
    """The rows of spans as what a linear bound is minimized over.

    Attributes:
        programs: take in constraints too, by the multipliers of a linear program each; what is
            believed of it are the multipliers alone, with which the bound is computed afresh.
    """

    table: Table
    span: Span
    programs: bool = False

    def least(self, rows: Tensor, middle: Tensor) -> Tensor:
        """Return a lower bound of a · (z − middle) for `rows` a [b, s, d] and middle [b, d]."""
        table = self.table
        slope = rows / table.width  # of v = lower + z · width
        fixed = -(rows * (middle + table.lower / table.width)[:, None]).sum(2)
        fixed = fixed - WIDE * rows.abs().sum(2)
        found = fixed + self._smallest(slope)
        if not self.programs:
            return found
        for b, s in (rows != 0).any(2).nonzero().tolist():
            weights = self._multipliers(slope[b, s], b)
            if weights is None:
                continue
            one = RowsOfSpans(table, self.span.rows(slice(b, b + 1)))
            ends, limits = self._limits()
            lagrangian = one._smallest((slope[b, s] + weights @ ends)[None, None])[0, 0]
            # What float64 may lose in sums as large as these.
            spare = 1e-12 * (weights.abs() @ (limits.abs() + 1) + fixed[b, s].abs())
            value = fixed[b, s] + lagrangian - weights @ limits - spare
            found[b, s] = torch.maximum(found[b, s], value)
        return found

    def _smallest(self, slope: Tensor) -> Tensor:
        """Return the minimum of slope · v [b, s] over spans, each group with its one 1."""
        table, low, high = self.table, self.span.low[:, None], self.span.high[:, None]
        each = torch.where(slope > 0, slope * low, slope * high)
        total = (each * ~table.category).sum(2)
        for columns in table.groups:
            allowed = slope[:, :, columns].masked_fill(high[:, :, columns] < 1, torch.inf)
            total = total + allowed.amin(2)
        size = torch.maximum(low.abs(), high.abs())
        return total - 1e-12 * (slope.abs() * size).sum(2)

    def _limits(self) -> tuple[Tensor, Tensor]:
        """Return the constraints as inequalities, with their tolerance: a · v ≤ b."""
        table, m = self.table, len(self.table.matrix)
        ends = torch.cat([table.rows, -table.rows[m:]])
        upper, lower = table.ends + table.tolerance, table.ends - table.tolerance
        return ends, torch.cat([upper, -lower[m:]])

    def _multipliers(self, slope: Tensor, b: int) -> Tensor | None:
        """Return multipliers of all constraints that raise the bound; None where none can."""
        rows, limits = self._limits()
        low, high = self.span.low[b], self.span.high[b]
        most = torch.where(rows > 0, rows * high, rows * low).sum(1)
        if not bool((most > limits).any()):
            return None
        # A variable that makes up for what is missed: a span without a row has a bound, a high one.
        reach = float((slope.abs() * (high - low)).sum()) + 1e-30
        size = (rows.abs() * (high - low)).sum(1).clamp_min(1e-12)
        groups = self.table.members.numpy()
        bounds = [*zip(low.tolist(), high.tolist(), strict=True), (0, None)]
        found = linprog(
            np.append((slope / reach).numpy(), _PENALTY),
            np.column_stack([(rows / size[:, None]).numpy(), -np.ones(len(rows))]),
            (limits / size).numpy(),
            np.column_stack([groups, np.zeros(len(groups))]) if len(groups) else None,
            np.ones(len(groups)) if len(groups) else None,
            bounds,
        )
        if found.x is None:
            return None
        weights = -torch.from_numpy(np.asarray(found.ineqlin.marginals, dtype=np.float64))
        return weights.clamp_min(0) * reach / size
