"""APGD: projected gradient ascent with momentum that chooses its own step size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import LOSSES, TARGETED, LossName
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._draws import any_row
from ._momentum import checkpoints, momentum
from ._need import need


class State(NamedTuple):
    """Per slot six images and a few numbers.

    The loss history of the paper is needed only to count its rises since the last checkpoint: one
    counter replaces it, so that a slot is of one size whatever the number of steps.

    Attributes:
        checked_value: the best loss at the last checkpoint.
        reduced: the step size was halved at the last checkpoint.
        rises: steps since the last checkpoint that raised the loss.
        answered: queries so far.
        needs: the smallest extra radius met, see `within`.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    previous: Images
    best: Images
    best_gradient: Images
    best_value: Scalars
    last_value: Scalars
    checked_value: Scalars
    reduced: Mask
    rises: Integers
    step_size: Scalars
    answered: Integers
    needs: Scalars


@attacks.register("apgd", white_box=True, cites="arXiv:2003.01690")
@dataclass(frozen=True)
class Apgd:
    """Auto-PGD for linf and l2.

    Croce & Hein 2020, algorithm 1, with the constants of their code (rho 0.75, momentum 0.75,
    first step 2 eps). A run costs steps + 1 forward and backward passes. Differs from the code: in
    l2 the projection onto ball and box is exact, not the ball's followed by clipping; the first
    window begins with the value at the start, as in the paper (the code compares with 0).

    Attributes:
        loss: maximized by the search; the targeted ones run once for each of `targets` classes.
        steps: gradient steps of one run.
        restarts: random starts per target.
        targets: how many classes to aim at, by falling clean logit.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged at every query, for randomized models.
        within: extra radius, as a fraction of eps, at which a linear model of the loss must reach
            success by the first checkpoint, else the run ends there; 0: never. Ours; for losses
            that are positive on success alone (margin, dlr and the targeted ones).
    """

    loss: LossName = "ce"
    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    targets: Annotated[int, Field(ge=1)] = 9
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1
    within: Annotated[float, Field(ge=0)] = 0

    uses_gradient = True
    stays_inside = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """Targets in order of rank, each with its restarts.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm not in ("linf", "l2"):
            other = "apgd_l1" if threat.norm == "l1" else "sigma_zero or fmn"
            raise UsageError(f"apgd supports linf and l2, got {threat.norm}. Use {other}.")
        if self.within and self.loss in ("ce", "probability"):
            raise UsageError(
                f"apgd's option within needs a loss that is positive on success alone, "
                f"got {self.loss}. Use loss=margin or loss=targeted_dlr, or leave within out."
            )
        return list_jobs(self.targets if self.loss in TARGETED else 0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at a random point of the surface."""
        query = threat.sample(tasks.x, tasks.keys)
        size = len(query)
        low = query.new_full((size,), -torch.inf)
        zero = torch.zeros(size, dtype=torch.long, device=query.device)
        yes = torch.ones(size, dtype=torch.bool, device=query.device)
        return State(
            query=query,
            done=~yes,
            x=tasks.x,
            y=tasks.y,
            target=tasks.target,
            previous=query,
            best=query,
            best_gradient=torch.zeros_like(query),
            best_value=low,
            last_value=low,
            checked_value=low,
            reduced=yes,  # as in the authors' code: condition 2 cannot hold at the first checkpoint
            rises=zero,
            # 2 eps, the diameter of the ball: the first steps explore all of it.
            step_size=query.new_full((size,), 2 * threat.eps),
            answered=zero,
            needs=-low,
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the chosen loss."""
        return LOSSES[self.loss](logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Record the loss at the query, adapt the step size at a checkpoint, take the next step."""
        state, gradient = self._adapt(_record(state, reply), reply.gradient)
        if self.within:
            state = self._give_up(state, reply, threat)
        return self._move(state, gradient, threat)

    def _give_up(self, state: State, reply: Reply, threat: Threat) -> State:
        """End the run at the first checkpoint where success was far at every query."""
        needs = torch.minimum(state.needs, need(reply.value, reply.gradient, threat))
        first = state.answered == max(int(0.22 * self.steps), 1)
        return state._replace(needs=needs, done=state.done | (first & (needs > self.within)))

    def _adapt(self, state: State, gradient: Images) -> tuple[State, Images]:
        """At a checkpoint, halve the step and return to the best point where progress stalled.

        Conditions 1 and 2 of Croce & Hein 2020, section 3: at most rho = 75% of the steps raised
        the loss; neither the step size nor the best loss changed since the checkpoint before.
        """
        # A slot that is done is stepped on with the others until it is refilled: hence the clamp.
        window = checkpoints(self.steps, state.answered.device)[
            state.answered.clamp_max(self.steps)
        ]
        due = window > 0
        stalled = state.rises <= 0.75 * window
        stuck = ~state.reduced & (state.checked_value >= state.best_value)
        halve = due & (stalled | stuck)
        query = state.query
        if any_row(halve):  # with the gradient that was stored: it costs no pass
            back = per_point(halve, gradient)
            query = torch.where(back, state.best, query)
            gradient = torch.where(back, state.best_gradient, gradient)
        return state._replace(
            query=query,
            step_size=torch.where(halve, state.step_size / 2, state.step_size),
            reduced=torch.where(due, halve, state.reduced),
            checked_value=torch.where(due, state.best_value, state.checked_value),
            rises=torch.where(due, 0, state.rises),
        ), gradient

    def _move(self, state: State, gradient: Images, threat: Threat) -> State:
        """Take a projected step with momentum (Croce & Hein 2020, algorithm 1).

        z = P(x + size · steepest(g)); next = P(x + 0.75 (z − x) + 0.25 (x − previous)); no momentum
        in the first step. P is the projection onto ball and box.
        """
        here, project = state.query, threat.projection(state.x)
        share = per_point(torch.where(state.answered > 0, 0.75, 1.0), gradient).to(here.dtype)
        # After a return to the best point, `previous` is still the query before the checkpoint, as
        # in the authors' code: the momentum then leads away from where the search stalled.
        size = per_point(state.step_size, gradient)
        mixed = momentum(here, state.previous, gradient, size, share, project, threat)
        return state._replace(
            query=project(mixed),
            previous=here,
            answered=state.answered + 1,
            done=state.done | (state.answered >= self.steps),
        )


def _record(state: State, reply: Reply) -> State:
    """Update the best point, and count the step if it raised the loss."""
    better = reply.value > state.best_value
    best, slope = state.best, state.best_gradient
    if any_row(better):
        image = per_point(better, reply.gradient)
        best = torch.where(image, state.query, best)
        slope = torch.where(image, reply.gradient, slope)
    # A rise is counted from one query to the next, not against the best: condition 1 of the paper.
    rose = (reply.value > state.last_value) & (state.answered > 0)
    return state._replace(
        best=best,
        best_gradient=slope,
        best_value=torch.where(better, reply.value, state.best_value),
        last_value=reply.value,
        # The first window compares with the loss at the start; the authors' code compares with 0.
        checked_value=torch.where(state.answered > 0, state.checked_value, reply.value),
        rises=state.rises + rose,
    )
