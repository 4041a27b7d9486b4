"""APGD for l1: sparse steps whose density follows the perturbation, radii that shrink to eps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import LOSSES, TARGETED, LossName
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs


class State(NamedTuple):
    """Per slot four images and a few numbers.

    Attributes:
        density: share of the coordinates that a step changes.
        nonzero: changed coordinates of the best point at the last checkpoint.
        answered: queries so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    best: Images
    best_gradient: Images
    best_value: Scalars
    density: Scalars
    nonzero: Scalars
    step_size: Scalars
    answered: Integers


class _Plan(NamedTuple):
    """Per query: radius as a multiple of eps; whether it opens or closes a phase; checkpoints."""

    radius: Tensor
    opens: Tensor
    closes: Tensor
    checkpoint: Tensor


@attacks.register("apgd_l1", white_box=True, cites="arXiv:2103.01208")
@dataclass(frozen=True)
class ApgdL1:
    """Auto-PGD for l1.

    Croce & Hein 2021, with the schedule of AutoAttack: 30% of the steps at 3 eps, 30% at 2 eps,
    the rest at eps, each phase starting from the best point of the one before. A run costs
    steps + 3 forward and backward passes. Differs from the code: a point that fools the model
    inside eps counts in every phase, not in the last one alone; coordinates that differ by float32
    rounding alone do not count as changed.

    Attributes:
        loss, steps, restarts, targets, surrogate, eot: as in `apgd`.
        shrink: whether to use the larger radii first.
    """

    loss: LossName = "ce"
    steps: Annotated[int, Field(ge=1)] = 100
    restarts: Annotated[int, Field(ge=1)] = 1
    targets: Annotated[int, Field(ge=1)] = 9
    shrink: bool = True
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = False

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """Targets in order of rank, each with its restarts.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm != "l1":
            other = "sigma_zero or fmn" if threat.norm == "l0" else "apgd"
            raise UsageError(f"apgd_l1 supports l1, got {threat.norm}. Use {other}.")
        return list_jobs(self.targets if self.loss in TARGETED else 0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at a normal draw projected onto the largest ball."""
        largest = 3.0 if self.shrink else 1.0
        radius = tasks.x.new_full((len(tasks.x),), largest * threat.eps)
        query = threat.sample(tasks.x, tasks.keys, eps=radius)
        zero = torch.zeros_like(radius)
        count = torch.zeros(len(query), dtype=torch.long, device=query.device)
        return State(
            query=query,
            done=torch.zeros_like(count, dtype=torch.bool),
            x=tasks.x,
            y=tasks.y,
            target=tasks.target,
            best=query,
            best_gradient=torch.zeros_like(query),
            best_value=zero - torch.inf,
            density=zero,
            nonzero=zero,
            step_size=radius,
            answered=count,
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the chosen loss."""
        return LOSSES[self.loss](logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Update the best point, adapt density and step size, take a sparse step."""
        plan = _plan(self.steps, self.shrink, state.answered.device)
        here, coming = (state.answered + shift for shift in (0, 1))
        last = len(plan.radius) - 1
        radius = plan.radius[here.clamp_max(last)] * threat.eps
        state = _remember(state, reply, plan.opens[here.clamp_max(last)], radius)
        state, gradient = _adapt(state, reply.gradient, plan, last, radius)
        # A phase ends by moving to its best point, projected onto the next, smaller ball.
        closes = per_point(plan.closes[here.clamp_max(last)], gradient)
        following = plan.radius[coming.clamp_max(last)] * threat.eps
        moved = torch.where(closes, state.best, state.query + _sparse_step(state, gradient))
        return state._replace(
            query=threat.project(moved, state.x, following), answered=coming, done=here >= last
        )


def _remember(state: State, reply: Reply, opens: Mask, radius: Scalars) -> State:
    """Keep the better point; where a phase opens, start over from the query."""
    better = opens | (reply.value > state.best_value)
    image = per_point(better, state.query)
    # A value at radius 3 eps is no measure for one at 2 eps: each phase has its own best point.
    support = _support(state.query, state.x)
    features = state.x[0].numel()
    return state._replace(
        best=torch.where(image, state.query, state.best),
        best_gradient=torch.where(image, reply.gradient, state.best_gradient),
        best_value=torch.where(better, reply.value, state.best_value),
        # A step changes 1/1.5 as many coordinates as the perturbation has, so that sparse ones are
        # refined; a new phase starts from its own density.
        density=torch.where(opens, support / features / 1.5, state.density),
        nonzero=torch.where(opens, support, state.nonzero),
        step_size=torch.where(opens, radius, state.step_size),
    )


def _adapt(
    state: State, gradient: Images, plan: _Plan, last: int, radius: Scalars
) -> tuple[State, Images]:
    """At a checkpoint, set density and step size by the sparsity of the best point.

    Where that fell below 95% of the last checkpoint's, the search goes back to it with the largest
    step, the radius; else the step shrinks by 1.5, to a tenth of the radius at least (Croce & Hein
    2021, l1-APGD, with the constants of their code).
    """
    due = plan.checkpoint[state.answered.clamp_max(last)]
    support = _support(state.best, state.x)
    sparser = due & (support < 0.95 * state.nonzero)
    # A tenth of the radius at least, in units of the ball of this phase.
    smaller = torch.maximum(state.step_size / 1.5, radius / 10)
    step_size = torch.where(sparser, radius, smaller)
    back = per_point(sparser, gradient)
    return state._replace(
        query=torch.where(back, state.best, state.query),
        density=torch.where(due, support / state.x[0].numel() / 1.5, state.density),
        nonzero=torch.where(due, support, state.nonzero),
        step_size=torch.where(due, step_size, state.step_size),
    ), torch.where(back, state.best_gradient, gradient)


def _sparse_step(state: State, gradient: Images) -> Images:
    """Return the signs of the largest gradient coordinates, scaled to l1 norm `step_size`.

    The steepest step in l1 moves one coordinate, and would take as many steps as a perturbation has
    coordinates.
    """
    size = gradient.abs().flatten(1)
    features = size.shape[1]
    # The quantile of the gradient that leaves `density` of the coordinates above it.
    place = ((1 - state.density) * features).long().clamp(0, features - 1)
    bound = size.sort(dim=1).values.gather(1, place[:, None])
    signs = gradient.sign() * (size >= bound).view_as(gradient)
    # Ties make more coordinates than asked for: the step is scaled by how many there are.
    length = signs.abs().flatten(1).sum(1) + 1e-10
    return signs * per_point(state.step_size / length, signs)


def _support(z: Images, x: Images) -> Scalars:
    return (z != x).flatten(1).sum(1).to(z.dtype)


@lru_cache
def _plan(steps: int, shrink: bool, device: torch.device) -> _Plan:
    # Each phase has one query more than steps, for the point that the phase before ended on.
    third = math.ceil(0.3 * steps)
    phases = [(3.0, third), (2.0, third), (1.0, steps - 2 * third)] if shrink else [(1.0, steps)]
    rows = [
        (radius, at == 0, at == length, at > 0 and at % max(int(0.04 * length), 1) == 0)
        for radius, length in phases
        for at in range(length + 1)
    ]
    return _Plan(*(torch.tensor(column, device=device) for column in zip(*rows, strict=True)))
