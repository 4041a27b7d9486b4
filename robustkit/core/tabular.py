"""Threat models of tables: a set of rows around every row, by a description of the features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from robustkit.core.named import NamedThreat
from robustkit.core.table import Table
from robustkit.core.table_region import Region
from robustkit.core.types import Images, Mask, Scalars
from robustkit.errors import UsageError

_SPARE = 1e-9  # relative: what float64 may round eps times a radius by


@dataclass(frozen=True)
class TabularThreat(NamedThreat, ABC):
    """Every row of a table within eps times the radius of each feature that obeys a description.

    Whole numbers stay whole, one-hot groups have one 1, features that may not change are equal bit
    by bit, and linear constraints hold. A category may be any other of its group: it has no
    distance. The distance is the largest share of its radius that a number moves.
    """

    suite, searched_by, proved_by = "tabular", "tabular", ("trees",)

    @property
    @abstractmethod
    def table(self) -> Table:
        """The description."""

    def region(self, x: Images) -> Region:
        """Return the rows that the adversary may choose from, of each row x [b, *f]."""
        return Region.around(self.table, x, self.eps * (1 + _SPARE))

    def check(self, shape: Sequence[int], labels: Any) -> None:
        """Refuse data of another number of features."""
        if prod(shape) != self.table.features:
            raise UsageError(
                f"{self} describes {self.table.features} features, got inputs {list(shape)}."
            )

    def check_points(self, x: Images, points: Sequence[int]) -> None:
        """Refuse (a UsageError) clean points that break the description themselves."""
        for row, fault in self.table.faults(x):
            raise UsageError(
                f"{self}: point {points[row]} breaks the description before anything is changed: "
                f"{fault}. Correct the data or the description, or leave the point out."
            )

    def refuse_beyond_box(self, shape: Sequence[int]) -> None:
        """A description has bounds of its own."""

    def limit(self, features: int) -> float:
        """Eps, but for what float64 rounds."""
        return self.eps * (1 + 2 * _SPARE)

    def contains(
        self,
        z: Images,
        x: Images,
        eps: Scalars | None = None,
        points: Sequence[int] | None = None,
    ) -> Mask:
        """Which rows of `z` [b, *f] the adversary can make of x."""
        inside: Mask = self.distance(z, x, points) <= self.limit(1)
        return inside

    def distance(self, z: Images, x: Images, points: Sequence[int] | None = None) -> Scalars:
        """Largest share of its radius that a number moves; infinite where the rules are broken."""
        table, a, b = self.table, z.detach().cpu(), x.detach().cpu()
        apart = (a.flatten(1).double() - b.flatten(1).double()).abs() * table.width
        whole = (table.raw(a) - table.raw(b)).abs()
        apart = torch.where(table.discrete, whole, apart)
        share = torch.where(apart > 0, apart / table.radius, 0.0)  # a radius of 0: infinite
        share = share.masked_fill(table.category, 0.0).amax(1)
        fixed = ((a == b).flatten(1) | table.mutable).all(1)
        return share.masked_fill(~(fixed & table.feasible(a)), torch.inf).to(z.device)

    @property
    def instead(self) -> str:
        """Rules for each feature."""
        return (
            "has rules for each feature: leave out --attack and --suite, or name --suite tabular, "
            "or --attack capgd, row_search or all_rows."
        )
