"""Every row that an adversary may make of a row, where these are few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import margin
from robustkit.core.table_rows import Rows
from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks


class State(NamedTuple):
    """Per slot the number of the row to look at next, and how many there are."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    number: Integers
    total: Integers


@attacks.register("all_rows", white_box=False, cites="")
@dataclass(frozen=True)
class AllRows:
    """Try every row of a table that the adversary may choose: `tabular:0.05`.

    For points around which no real number may change and whole numbers and categories leave at most
    `most` combinations: their verdict is exact. Rows that break a constraint are passed over
    without a pass. Points with more, or with real numbers that may change, are left as they are for
    one pass. No gradients, no random draws.

    Attributes:
        most: combinations of a point, constraints or not.
    """

    most: Annotated[int, Field(ge=1, le=10**7)] = 5000

    uses_gradient = False
    stays_inside = True
    tabular = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run.

        Raises:
            UsageError: for another threat model.
        """
        if not isinstance(threat, TabularThreat):
            raise UsageError(f"all_rows supports tabular:0.05, got {threat.norm}.")
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Begin at the clean row, and count."""
        assert isinstance(threat, TabularThreat)  # `jobs` refuses others
        count = Rows(threat.region(tasks.x)).count
        count = torch.where(count <= self.most, count, 0.0).long().to(tasks.y.device)
        return State(tasks.x, torch.zeros_like(count, dtype=torch.bool), tasks.x, tasks.y,
                     torch.zeros_like(count), count)  # fmt: skip

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Go on to the next row that obeys the constraints."""
        assert isinstance(threat, TabularThreat)
        rows = Rows(threat.region(state.x))
        query, number = rows.following(state.number.cpu(), state.total.cpu())
        number = number.to(state.number.device)
        return state._replace(
            query=query.to(state.query.device),
            number=number,
            done=state.done | (state.number >= state.total),
        )
