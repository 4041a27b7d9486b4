"""The best row of a table for the gradient at a row, by a mixed-integer program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import margin, targeted_margin
from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs


class State(NamedTuple):
    """Per slot what it aims at; `moves`: queries so far."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    moves: Integers


@attacks.register("row_program", white_box=True, cites="doi:10.1002/nav.3800030109")
@dataclass(frozen=True)
class RowProgram:
    """Go to the best row for the gradient, all rules kept, and on from there: `tabular:0.05`.

    The step of Frank & Wolfe 1956 without its line search: the row of the set that a linear model
    of the margin likes best, over whole numbers, one-hot groups and constraints together, by a
    mixed-integer program (HiGHS; in closed form where there are no constraints). With `targets` for
    all other classes it is exact on linear models, up to the 1e-6 of the program. A run costs steps
    + 1 passes and a program each. No random draws.

    Attributes:
        steps: programs of one run, each at the row that the one before found.
        targets: how many classes to aim at, by falling clean logit; 0 takes the nearest each time.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged where gradients are taken, for randomized models.
    """

    steps: Annotated[int, Field(ge=1)] = 3
    targets: Annotated[int, Field(ge=0)] = 9
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = True
    tabular = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run, or one per target.

        Raises:
            UsageError: for another threat model.
        """
        if not isinstance(threat, TabularThreat):
            raise UsageError(f"row_program supports tabular:0.05, got {threat.norm}.")
        return list_jobs(self.targets, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Begin at the clean row."""
        zero = torch.zeros_like(tasks.y)
        return State(tasks.x, zero > 0, tasks.x, tasks.y, tasks.target, zero)

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin, of the target where there is one."""
        loss = targeted_margin if self.targets else margin
        return loss(logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Go to the best row for the gradient at the query."""
        assert isinstance(threat, TabularThreat)  # `jobs` refuses others
        query = state.query
        live = (~state.done & (state.moves < self.steps)).nonzero().flatten()
        if len(live):  # a program is dear: none for rows that nobody asks about
            region = threat.region(state.x[live])
            found = region.repaired(region.best(reply.gradient[live]), query[live])[0]
            query = query.index_copy(0, live, found.to(query))
        same = (query == state.query).flatten(1).all(1)  # as those that are over
        return state._replace(query=query, moves=state.moves + 1, done=state.done | same)
