"""The rows an adversary may choose from, around rows of a table: repair, best row, tighter bounds.

All in float64 in the units of the table, on the CPU; what goes in and out of a model is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from robustkit.core.table import Raw, Table
from robustkit.core.types import Images, Mask

_SWEEPS, _FILLS = 12, 3  # over all constraints; of the features of one
_NODES = 500  # of the branch and bound for a best row


class Span(NamedTuple):
    """Every row between low and high [b, d], in the units of the table."""

    low: Raw
    high: Raw

    def rows(self, index: Tensor | slice) -> Span:
        """Return some of them."""
        return Span(self.low[index], self.high[index])


@dataclass(frozen=True, eq=False)
class Region:
    """What may change in rows x [b, *f], and how far.

    Attributes:
        span: bounds of every feature; categories that may be chosen have 0 and 1.
        ends: of the features that are real, as float32 numbers whose distance holds in float64.
    """

    table: Table
    x: Images
    span: Span
    ends: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]

    @classmethod
    def around(cls, table: Table, x: Images, eps: float) -> Region:
        """Return the region within eps times the radius of each feature."""
        x = x.detach().cpu()
        flat, v = x.flatten(1), table.raw(x)
        reach = eps * table.radius
        still = ~table.mutable
        low = torch.maximum(v - reach, table.lower)
        high = torch.minimum(v + reach, table.upper)
        low = torch.where(table.discrete, low.ceil(), low)
        high = torch.where(table.discrete, high.floor(), high)
        low = torch.where(table.category, 0.0, low).where(~still, v)
        high = torch.where(table.category, 1.0, high).where(~still, v)
        near = torch.where(still, 0.0, reach / table.width)
        return cls(table, x, alone(table, Span(low, high)), _inward(flat.double(), near))

    def within(self, low: Float[Tensor, " d"], high: Float[Tensor, " d"]) -> Region | None:
        """Return the part of one row's region between float32 numbers, both included; None: empty.

        As the boxes of decision trees are given. Not empty means no more than that bounds, whole
        numbers and groups leave a row: a constraint may still not.
        """
        table, discrete = self.table, self.table.discrete
        # Float32 ends say how far a real number may move; of the others the span does.
        first, last = (
            torch.where(discrete, a, b) for a, b in zip((0.0, 1.0), self.ends, strict=True)
        )
        ends = torch.maximum(first, low), torch.minimum(last, high)
        least, most = (table.lower + end.double() * table.width for end in ends)
        # The whole numbers whose float32 lies between the ends.
        first, last = least.round(), most.round()
        first = torch.where(table.scaled(first) < low, first + 1, first)
        last = torch.where(table.scaled(last) > high, last - 1, last)
        span = Span(torch.where(discrete, torch.maximum(first, self.span.low), least),
                    torch.where(discrete, torch.minimum(last, self.span.high), most))  # fmt: skip
        span = alone(table, span)
        there = (span.low <= span.high) & (discrete | (ends[0] <= ends[1]))
        choices = (span.high * table.category) @ table.members.T >= 1
        return Region(table, self.x, span, ends) if bool(there.all() and choices.all()) else None

    def repeated(self, count: int) -> Region:
        """Return the region of one row x as often as asked."""
        span = Span(*(part.expand(count, -1) for part in self.span))
        ends = self.ends[0].expand(count, -1), self.ends[1].expand(count, -1)
        return Region(self.table, self.x.expand(count, *self.x.shape[1:]), span, ends)

    def encoded(self, v: Raw) -> Images:
        """Return rows as a model gets them [b, *f], inside the bounds."""
        z = self.table.scaled(v)
        low, high = self.ends
        z = torch.where(self.table.discrete, z, torch.minimum(torch.maximum(z, low), high))
        return z.view_as(self.x)

    def repaired(self, v: Raw, fallback: Images) -> tuple[Images, Mask]:
        """Return a row of the region near each of `v` [b, d], and where one was found.

        Categories: the largest column that may be chosen; whole numbers: the nearest. Then for each
        constraint that is missed the least movement that mends it, first of real numbers, then of
        whole ones, over and over. Where that fails, `fallback` [b, *f] is returned.
        """
        z = self.encoded(self._settled(self._snapped(v.cpu())))
        ok = self.table.feasible(z)
        return torch.where(ok.view(-1, *[1] * (z.ndim - 1)), z, fallback.cpu()), ok

    def hull(self, v: Raw) -> Raw:
        """Return the nearest row without regard to constraints and whole numbers.

        Categories lie in the simplex of the columns of their group that may be chosen.
        """
        (low, high), v = self.span, v.cpu()
        for columns in self.table.groups:
            part = v[:, columns].masked_fill(high[:, columns] < 1, -1e9)
            v = v.index_copy(1, columns, _simplex(part))
        return torch.minimum(torch.maximum(v, low), high)

    def moved(self, here: Raw, before: Raw, gradient: Images, size: Tensor, share: Tensor) -> Raw:
        """Return the next row of the hull by APGD: a step of `size` [b] radii with momentum.

        Croce & Hein 2020, algorithm 1: z = P(here + size · direction), then
        P(here + share (z − here) + (1 − share) (here − before)). The direction is the sign of the
        gradient, and of a group its gradient less the mean, scaled to 1 at its largest column.
        """
        table, (low, high) = self.table, self.span
        slope = gradient.detach().cpu().flatten(1).double()
        direction = slope.sign() * torch.maximum(high - table.raw(self.x), table.raw(self.x) - low)
        for columns in table.groups:
            allowed = (high[:, columns] > 0).double()
            part = slope[:, columns] * allowed
            part = (part - part.sum(1, keepdim=True) / allowed.sum(1, keepdim=True)) * allowed
            most = part.abs().amax(1, keepdim=True).clamp_min(1e-30)
            direction = direction.index_copy(1, columns, part / most)
        here, before = here.cpu(), before.cpu()
        ahead = self.hull(here + size[:, None].double().cpu() * direction)
        kept = share[:, None].double().cpu()
        return self.hull(here + kept * (ahead - here) + (1 - kept) * (here - before))

    def _snapped(self, v: Raw) -> Raw:
        table, (low, high) = self.table, self.span
        v = torch.where(table.whole, v.round(), v)
        for columns in table.groups:
            allowed = v[:, columns].masked_fill(high[:, columns] < 1, -torch.inf)
            chosen = allowed.argmax(1, keepdim=True)
            v = v.index_copy(1, columns, torch.zeros_like(allowed).scatter(1, chosen, 1.0))
        return torch.minimum(torch.maximum(v, low), high)

    def _settled(self, v: Raw) -> Raw:
        table = self.table
        aim = table.tolerance / 4  # the rest is for rounding to float32
        for _ in range(_SWEEPS if len(table.rows) else 0):
            if not bool((table.excess(v) > aim).any()):
                break
            for at, row in enumerate(table.rows):
                off = v @ row - table.ends[at]
                equality = at >= len(table.matrix)
                off = off if equality else off.clamp_min(0)
                off = torch.where(off.abs() > aim[at], off, 0.0)
                if bool((off != 0).any()):
                    v, off = self._fill(v, row, off)
                    v = self._count(v, row, off, float(aim[at]), equality=equality)
        return v

    def _fill(self, v: Raw, row: Tensor, off: Tensor) -> tuple[Raw, Tensor]:
        """Move real features by the least that lowers row · v by `off` [b], within the bounds."""
        table, (low, high) = self.table, self.span
        weight = torch.where(table.discrete, 0.0, row * table.width.square())
        for _ in range(_FILLS):
            room = torch.where(off[:, None] * row > 0, v - low, high - v)
            free = torch.where(room > 0, weight, 0.0)
            total = (free * row).sum(1, keepdim=True)
            move = torch.where(total > 0, -off[:, None] / total * free, 0.0)
            move = torch.minimum(torch.maximum(move, -room), room)
            v, off = v + move, off + (move * row).sum(1)
        return v, off

    def _count(self, v: Raw, row: Tensor, off: Tensor, aim: float, *, equality: bool) -> Raw:
        """Move whole numbers, those that count most first, to lower row · v by what is left."""
        low, high = self.span
        order = (row.abs() * self.table.whole).argsort(descending=True, stable=True).tolist()
        for j in order:
            if not self.table.whole[j] or row[j] == 0:
                continue
            steps = off.abs() / row[j].abs()
            steps = steps.round() if equality else (steps - 1e-9).ceil()
            wanted = v[:, j] - torch.where(off.abs() > aim, steps * off.sign() * row[j].sign(), 0.0)
            new = torch.minimum(torch.maximum(wanted, low[:, j]), high[:, j])
            off = off + row[j] * (new - v[:, j])
            off = off if equality else off.clamp_min(0)
            v = v.index_copy(1, torch.tensor([j]), new[:, None])
        return v

    def best(self, gradient: Images) -> Raw:
        """Return the row v of each region with the largest ⟨gradient, scaled(v)⟩ [b, d].

        Without constraints in closed form, else by a mixed-integer program (HiGHS), the clean row
        where that finds none.
        """
        slope = gradient.detach().cpu().flatten(1).double() / self.table.width
        v = self.table.raw(self.x)
        if len(self.table.rows):
            found = [self._program(slope[row], row) for row in range(len(v))]
            return torch.stack([v[row] if one is None else one for row, one in enumerate(found)])
        table, (low, high) = self.table, self.span
        v = torch.where(slope > 0, high, torch.where(slope < 0, low, v))
        # Of a group the column with the largest slope, which `_snapped` picks.
        slope = torch.where(table.category, slope + (table.raw(self.x) - 1) * 1e-12, slope)
        return self._snapped(torch.where(table.category, slope, v))

    def _program(self, slope: Tensor, row: int) -> Tensor | None:
        table, low, high = self.table, self.span.low[row], self.span.high[row]
        limits = [LinearConstraint(table.members.numpy(), 1, 1)] if len(table.members) else []
        if len(table.matrix):
            limits.append(LinearConstraint(table.matrix.numpy(), -np.inf, table.bound.numpy()))
        if len(table.equal):
            limits.append(LinearConstraint(table.equal.numpy(), table.value, table.value))
        size = slope.abs().max().clamp_min(1e-30)
        found = milp(
            -(slope / size).numpy(),
            integrality=table.discrete.numpy().astype(int),
            bounds=Bounds(low.numpy(), high.numpy()),
            constraints=limits,
            options={"node_limit": _NODES, "mip_rel_gap": 1e-6},
        )
        return None if found.x is None else torch.from_numpy(found.x)


def alone(table: Table, span: Span) -> Span:
    """Leave the other columns of a group no choice where one of them must hold the 1."""
    low, high = span
    taken = ((low * table.category) @ table.members.T >= 1).double() @ table.members > 0
    return Span(low, torch.where(table.category & taken, torch.minimum(low, high), high))


def _simplex(v: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """Return the nearest point of the simplex: max(v − t, 0) with the t that makes the sum 1."""
    falling = v.sort(dim=1, descending=True).values
    count = torch.arange(1, v.shape[1] + 1)
    shift = (falling.cumsum(1) - 1) / count
    used = (falling > shift).sum(1, keepdim=True).clamp_min(1)
    return (v - shift.gather(1, used - 1)).clamp_min(0)


def _inward(x: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest float32 within `near` of x, and in [0, 1]."""
    low, high = (x - near).clamp_min(0), (x + near).clamp_max(1)
    one, two = low.float(), high.float()
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    one = torch.where(one.double() < low, torch.nextafter(one, up), one)
    return one, torch.where(two.double() > high, torch.nextafter(two, down), two)
