"""CAPGD: APGD in the rows of a table, with a repair after every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import LOSSES, TARGETED, LossName
from robustkit.core.rng import uniform
from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._momentum import checkpoints


class State(NamedTuple):
    """Per slot what APGD keeps; its places are rows of the hull, in the units of the table.

    Attributes:
        place: the row of the hull that the query was made of [s, d]; previous, best: likewise.
        checked_value: the best loss at the last checkpoint.
        reduced: the step size was halved at the last checkpoint.
        rises: steps since the last checkpoint that raised the loss.
        step_size: in shares of the radius.
        answered: queries so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    place: Float[Tensor, "s d"]
    previous: Float[Tensor, "s d"]
    best: Float[Tensor, "s d"]
    best_gradient: Images
    best_value: Scalars
    last_value: Scalars
    checked_value: Scalars
    reduced: Mask
    rises: Integers
    step_size: Scalars
    answered: Integers


@attacks.register("capgd", white_box=True, cites="arXiv:2406.00775")
@dataclass(frozen=True)
class Capgd:
    """Constrained adaptive PGD for tables: `tabular:0.05`.

    Simonetto et al. 2024, algorithm 1: APGD's steps, momentum and checkpoints, and a repair after
    every step. A run costs steps + 1 forward and backward passes. Differs from the paper: every
    query obeys all rules, so that each may count, where the paper mends equalities after a step and
    rounds whole numbers and categories at the end; the row before the repair is kept, and the
    gradient of the query moves it (straight-through), so that small steps add up to whole ones;
    inequalities are repaired and no penalty stands in the loss; categories move in the simplex of
    their group.

    Attributes:
        loss: maximized by the search; the targeted ones run once for each of `targets` classes.
        steps: gradient steps of one run.
        restarts: runs per target.
        random_start: begin at a random row, not at the clean one.
        targets: how many classes to aim at, by falling clean logit.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged at every query, for randomized models.
    """

    loss: LossName = "ce"
    steps: Annotated[int, Field(ge=1)] = 50
    restarts: Annotated[int, Field(ge=1)] = 1
    random_start: bool = False
    targets: Annotated[int, Field(ge=1)] = 9
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = True
    tabular = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """Targets in order of rank, each with its restarts.

        Raises:
            UsageError: for another threat model, and restarts that would repeat one another.
        """
        if not isinstance(threat, TabularThreat):
            raise UsageError(f"capgd supports tabular:0.05, got {threat.norm}. Use apgd.")
        if self.restarts > 1 and not self.random_start:
            raise UsageError(
                f"capgd: restarts={self.restarts} without a random start would repeat the same "
                "run. Use restarts=1 or random_start=true."
            )
        return list_jobs(self.targets if self.loss in TARGETED else 0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at the clean row, or at a random one."""
        assert isinstance(threat, TabularThreat)  # `jobs` refuses others
        region, where = threat.region(tasks.x), tasks.x.device
        place = region.table.raw(region.x)
        if self.random_start:
            noise = uniform(tasks.keys, region.table.features, 0).double().cpu()
            place = region.hull(region.span.low + noise * (region.span.high - region.span.low))
        query, place = region.repaired(place, tasks.x)[0].to(where), place.to(where)
        low = query.new_full((len(query),), -torch.inf)
        zero, no = torch.zeros_like(tasks.y), torch.zeros_like(tasks.y, dtype=torch.bool)
        return State(
            query=query, done=no, x=tasks.x, y=tasks.y, target=tasks.target, place=place,
            previous=place, best=place, best_gradient=torch.zeros_like(query), best_value=low,
            last_value=low, checked_value=low, reduced=~no, rises=zero,
            step_size=torch.full_like(low, 2.0), answered=zero,
        )  # fmt: skip

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the chosen loss."""
        return LOSSES[self.loss](logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Record the loss at the query, adapt the step size at a checkpoint, take the next step."""
        assert isinstance(threat, TabularThreat)
        state, gradient = self._adapt(_recorded(state, reply), reply.gradient)
        region = threat.region(state.x)
        share = torch.where(state.answered > 0, 0.75, 1.0)
        place = region.moved(state.place, state.previous, gradient, state.step_size, share)
        query = region.repaired(place, state.query)[0].to(state.query.device)
        return state._replace(
            query=query,
            place=place.to(query.device),
            previous=state.place,
            answered=state.answered + 1,
            done=state.done | (state.answered >= self.steps),
        )

    def _adapt(self, state: State, gradient: Images) -> tuple[State, Images]:
        """Halve the step and return to the best row where progress stalled (APGD, section 3)."""
        window = checkpoints(self.steps, state.answered.device)
        due = window[state.answered.clamp_max(self.steps)]
        stalled = state.rises <= 0.75 * due
        stuck = ~state.reduced & (state.checked_value >= state.best_value)
        halve, checked = (due > 0) & (stalled | stuck), due > 0
        return state._replace(
            place=torch.where(halve[:, None], state.best, state.place),
            step_size=torch.where(halve, state.step_size / 2, state.step_size),
            reduced=torch.where(checked, halve, state.reduced),
            checked_value=torch.where(checked, state.best_value, state.checked_value),
            rises=torch.where(checked, 0, state.rises),
        ), torch.where(per_point(halve, gradient), state.best_gradient, gradient)


def _recorded(state: State, reply: Reply) -> State:
    """Update the best row, and count the step if it raised the loss."""
    better = reply.value > state.best_value
    rose = (reply.value > state.last_value) & (state.answered > 0)
    return state._replace(
        best=torch.where(better[:, None], state.place, state.best),
        best_gradient=torch.where(
            per_point(better, reply.gradient), reply.gradient, state.best_gradient
        ),
        best_value=torch.where(better, reply.value, state.best_value),
        last_value=reply.value,
        checked_value=torch.where(state.answered > 0, state.checked_value, reply.value),
        rises=state.rises + rose,
    )
