"""What may change in a row of a table, as one description: bounds, kinds, groups, constraints.

Inputs of models hold every feature scaled to [0, 1] by its bounds; the description is in the units
of the table. A number of a table is lower + z (upper − lower), and a whole one is rounded back to
what it was, so that whole numbers are exact: z must be the float32 nearest to one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linprog
from torch import Tensor

from robustkit.core.types import Images, Mask
from robustkit.errors import UsageError

Raw = Float[Tensor, "b d"]
# Scaled numbers are float32: off by up to 2^-25 each, which four of a sum's worth covers.
_ROUNDING, _FLOAT64 = 2.0**-23, 1e-12


@dataclass(frozen=True, eq=False)
class Table:
    """The features of a table, in its units and in float64, on the CPU.

    Attributes:
        lower, upper: bounds of every feature [d].
        radius: how far a feature may move at eps = 1 [d]; categories have no distance.
        mutable: which features may change [d].
        whole: which hold whole numbers [d].
        group: number of the one-hot group of a feature [d]; −1: none.
        matrix, bound: what rows v must fulfil: matrix · v ≤ bound; [m, d] and [m].
        equal, value: equal · v = value; [q, d] and [q].
        names: of the features, for messages.
    """

    lower: Float[Tensor, " d"]
    upper: Float[Tensor, " d"]
    radius: Float[Tensor, " d"]
    mutable: Bool[Tensor, " d"]
    whole: Bool[Tensor, " d"]
    group: Int[Tensor, " d"]
    matrix: Float[Tensor, "m d"]
    bound: Float[Tensor, " m"]
    equal: Float[Tensor, "q d"]
    value: Float[Tensor, " q"]
    names: tuple[str, ...]

    @property
    def features(self) -> int:
        """How many features d a row has."""
        return len(self.lower)

    @cached_property
    def width(self) -> Float[Tensor, " d"]:
        """Upper less lower bound."""
        return self.upper - self.lower

    @cached_property
    def category(self) -> Bool[Tensor, " d"]:
        """Which features are columns of a one-hot group."""
        return self.group >= 0

    @cached_property
    def discrete(self) -> Bool[Tensor, " d"]:
        """Which features hold whole numbers or categories."""
        return self.whole | self.category

    @cached_property
    def members(self) -> Float[Tensor, "g d"]:
        """1 where a feature belongs to a group."""
        known = self.group.unique()
        ones: Tensor = known[known >= 0][:, None] == self.group
        return ones.double()

    @cached_property
    def groups(self) -> list[Int[Tensor, " c"]]:
        """The columns of each one-hot group."""
        return [row.nonzero().flatten() for row in self.members]

    @cached_property
    def rows(self) -> Float[Tensor, "r d"]:
        """The coefficients of all constraints, inequalities first."""
        return torch.cat([self.matrix, self.equal])

    @cached_property
    def ends(self) -> Float[Tensor, " r"]:
        """The right-hand sides of all constraints."""
        return torch.cat([self.bound, self.value])

    @cached_property
    def tolerance(self) -> Float[Tensor, " r"]:
        """By how much a constraint may be missed: what float32 cannot express, and no more.

        2^-23 Σ |a_j| (upper_j − lower_j) over the features that are not whole, and 1e-12 of the
        size of the sum for float64 itself.
        """
        size = torch.maximum(self.lower.abs(), self.upper.abs())
        loose = self.rows.abs() * self.width * ~self.discrete
        spare = (self.rows.abs() * size).sum(1) + self.ends.abs()
        return _ROUNDING * loose.sum(1) + _FLOAT64 * spare

    def raw(self, z: Images) -> Raw:
        """Return rows [b, d] in the units of the table; whole numbers are exact."""
        v = self.lower + z.flatten(1).double() * self.width
        return torch.where(self.discrete, v.round(), v)

    def scaled(self, v: Raw) -> Float[Tensor, "b d"]:
        """Return rows as a model gets them, float32."""
        return ((v - self.lower) / self.width).float()

    def excess(self, v: Raw) -> Float[Tensor, "b r"]:
        """Return by how much every constraint is missed, in its own units; at most 0: it holds."""
        found = v @ self.rows.T - self.ends
        inequality = torch.arange(len(self.rows)) < len(self.matrix)
        return torch.where(inequality, found, found.abs())

    def feasible(self, z: Images) -> Mask:
        """Tell which rows obey all of the description, checked in float64."""
        flat, v = z.flatten(1), self.raw(z)
        exact = (~self.discrete | (self.scaled(v) == flat)).all(1)
        bounded = ((flat >= 0) & (flat <= 1)).all(1)  # lower + 1 · width may round beyond upper
        single = (v.clamp_min(0) @ self.members.T == 1).all(1)
        return exact & bounded & single & (self.excess(v) <= self.tolerance).all(1)

    def faults(self, z: Images) -> Iterator[tuple[int, str]]:
        """Yield the number of every row that breaks the description, and what it breaks first."""
        for row in (~self.feasible(z)).nonzero().flatten().tolist():
            yield row, self._fault(z[row : row + 1])

    def _fault(self, z: Images) -> str:
        flat, v = z.flatten(1)[0].double(), self.raw(z)
        outside = ~((flat >= 0) & (flat <= 1))
        if bool(outside.any()):
            j = int(outside.nonzero()[0])
            told = float(self.lower[j] + flat[j] * self.width[j])
            return (
                f"{self.names[j]} is {told:.9g}, outside of its bounds "
                f"[{float(self.lower[j]):g}, {float(self.upper[j]):g}]"
            )
        broken = self.discrete & (self.scaled(v)[0] != z.flatten(1)[0])
        if bool(broken.any()):
            j = int(broken.nonzero()[0])
            told, kind = float(self.lower[j] + flat[j] * self.width[j]), "a whole number"
            expected = "0 or 1, as a column of a one-hot group" if self.category[j] else kind
            return f"{self.names[j]} is {told:.9g}, expected {expected}"
        ones = v[0].clamp_min(0) @ self.members.T
        if bool((ones != 1).any()):
            at = int((ones != 1).nonzero()[0])
            columns = [self.names[j] for j in self.members[at].nonzero().flatten().tolist()]
            return (
                f"the one-hot group of {columns[0]} to {columns[-1]} holds {int(ones[at])} ones, "
                "expected exactly one"
            )
        at = int((self.excess(v)[0] - self.tolerance).argmax())
        return f"{self.constraint(at)} is missed by {float(self.excess(v)[0, at]):.6g}"

    def constraint(self, at: int) -> str:
        """Write one constraint as people do."""
        kept = self.rows[at].nonzero().flatten().tolist()
        terms = " + ".join(f"{float(self.rows[at, j]):g} {self.names[j]}" for j in kept[:6])
        sign = "<=" if at < len(self.matrix) else "="
        more = " + ..." if len(kept) > 6 else ""
        kind = "constraint" if at < len(self.matrix) else "equality"
        number = at if at < len(self.matrix) else at - len(self.matrix)
        return f"{kind} {number} ({terms}{more} {sign} {float(self.ends[at]):g})"

    def digest(self) -> str:
        """Return the SHA-256 of all that decides what may change; names do not."""
        state = hashlib.sha256()
        for field in fields(self):
            if field.name != "names":
                array: Any = getattr(self, field.name).numpy()
                state.update(f"{field.name}{array.dtype.str}{array.shape}".encode())
                state.update(np.ascontiguousarray(array).tobytes())
        return state.hexdigest()

    def refuse_empty(self, where: str) -> None:
        """Refuse constraints that no row can meet, by a linear program over the relaxation.

        Raises:
            UsageError: naming the first constraint with which no row is left.
        """
        if self._meets(len(self.rows)):
            return
        first, last = 0, len(self.rows)  # the constraints before `first` can be met, `last` cannot
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if self._meets(middle) else (first, middle)
        before = "" if last == 1 else f" together with the {last - 1} before it"
        raise UsageError(
            f"{where}: {self.constraint(last - 1)} cannot be met{before} by any row within the "
            "bounds (a linear program has no point). Correct it, or the bounds of its features."
        )

    def _meets(self, count: int) -> bool:
        """Tell whether the first `count` constraints leave a row, were all numbers real."""
        sums, m = self.members.numpy(), min(count, len(self.matrix))
        equal = np.concatenate([sums, self.rows[m:count].numpy()])
        values = np.concatenate([np.ones(len(sums)), self.ends[m:count].numpy()])
        found = linprog(
            np.zeros(self.features),
            self.matrix[:m].numpy() if m else None,
            self.bound[:m].numpy() if m else None,
            equal if len(equal) else None,
            values if len(equal) else None,
            torch.stack([self.lower, self.upper], 1).numpy(),
        )
        return int(found.status) != 2  # infeasible
