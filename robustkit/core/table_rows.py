"""The rows of a region one by one, where no real number may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robustkit.core.table import Raw
from robustkit.core.table_region import Region
from robustkit.core.types import Images, Integers


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a region by number, constraints aside: digits of whole numbers and categories."""

    region: Region

    @property
    def _digits(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features that move together, and how many values they have [b]."""
        table, (low, high) = self.region.table, self.region.span
        for j in table.whole.nonzero().flatten():
            yield j[None], high[:, j] - low[:, j] + 1
        for row in table.members:
            columns = row.nonzero().flatten()
            yield columns, (high[:, columns] > 0).sum(1).double()

    @property
    def count(self) -> Float[Tensor, " b"]:
        """How many there are; infinite where a real number may change."""
        first, last = self.region.ends
        number = torch.ones(len(first), dtype=torch.float64)
        for _, values in self._digits:
            number = number * values
        free = ((first < last) & ~self.region.table.discrete).any(1)
        return number.masked_fill(free, torch.inf)

    def made(self, number: Integers) -> Raw:
        """Return the row of a number [b]."""
        table, (low, high) = self.region.table, self.region.span
        v, left = table.raw(self.region.x), number
        for columns, values in self._digits:
            digit, left = left % values.long(), left // values.long()
            if not bool(table.category[columns[0]]):
                v = v.index_copy(1, columns, low[:, columns] + digit[:, None])
                continue
            # The digit-th of the columns that may hold the 1.
            allowed = (high[:, columns] > 0).long()
            one = (allowed.cumsum(1) == digit[:, None] + 1) & (allowed > 0)
            v = v.index_copy(1, columns, one.double())
        return v

    def following(self, number: Integers, count: Integers) -> tuple[Images, Integers]:
        """Return the first row from `number` on that obeys the constraints, and the number behind.

        Where none is left before `count`: the clean row.
        """
        query, table = self.region.x.clone(), self.region.table
        number, open_ = number.clone(), number < count
        while bool(open_.any()):
            z = self.region.encoded(self.made(torch.minimum(number, (count - 1).clamp_min(0))))
            found = open_ & table.feasible(z)
            query = torch.where(found.view(-1, *[1] * (z.ndim - 1)), z, query)
            number = number + open_.long()
            open_ = open_ & ~found & (number < count)
        return query, number
