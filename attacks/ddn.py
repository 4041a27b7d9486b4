"""DDN: the direction of the step and the length of the displacement are decided apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import LOSSES, TARGETED, LossName
from robustkit.core.threat import Threat, unit
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._schedule import cosine


class State(NamedTuple):
    """Per slot two images and a few numbers.

    Attributes:
        radius: l2 norm of the displacement, before it is clipped to the box.
        moves: steps taken so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    radius: Scalars
    moves: Integers


@attacks.register("ddn", white_box=True, cites="arXiv:1811.09600")
@dataclass(frozen=True)
class Ddn:
    """Decoupled direction and norm attack for l2: seeks the nearest adversarial input.

    Rony et al. 2019, algorithm 1: a step of l2 length alpha along the gradient turns the
    displacement; its length then shrinks by the factor 1 − gamma if the last query fooled the
    model, else grows by 1 + gamma. alpha falls from 1 to 0.01 on a cosine schedule. A run costs
    steps + 1 passes. Differs from the paper: queries are not rounded to 256 levels; the objective
    can be another one, and aim at one class after the other.

    Attributes:
        loss: maximized by the search; the targeted ones run once for each of `targets` classes.
        steps: steps of one run.
        gamma: by which factor the length changes, less one.
        radius: length of the first displacement, in input units.
        targets: how many classes to aim at, by falling clean logit.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged at every query, for randomized models.
    """

    loss: LossName = "ce"
    steps: Annotated[int, Field(ge=1)] = 100
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.05
    radius: Annotated[float, Field(gt=0)] = 1.0
    targets: Annotated[int, Field(ge=1)] = 9
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = False
    minimizes = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run, or one per target.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm != "l2":
            raise UsageError(f"ddn supports l2, got {threat.norm}. Use fmn.")
        return list_jobs(self.targets if self.loss in TARGETED else 0, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at the clean point."""
        no = torch.zeros_like(tasks.y, dtype=torch.bool)
        radius = tasks.x.new_full((len(tasks.x),), self.radius)
        moves = torch.zeros_like(tasks.y)
        return State(tasks.x, no, tasks.x, tasks.y, tasks.target, radius, moves)

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the chosen loss."""
        return LOSSES[self.loss](logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Turn the displacement along the gradient, give it its new length, clip."""
        fools = reply.logits.argmax(1) != state.y
        # Multiplicative: from any first radius it takes log(ratio) / gamma steps to the boundary's.
        radius = state.radius * torch.where(fools, 1 - self.gamma, 1 + self.gamma)
        alpha = cosine(1.0, 0.01, state.moves, self.steps)
        # The gradient decides the direction alone: its length says nothing of the distance to the
        # boundary, and vanishes where the model is confident.
        turned = state.query - state.x + per_point(alpha, state.x) * unit(reply.gradient)
        query = state.x + per_point(radius, state.x) * unit(turned)
        return state._replace(
            # Clipped last: the displacement may get shorter than `radius`, never longer.
            query=query.clamp(threat.lower, threat.upper),
            radius=radius,
            moves=state.moves + 1,
            done=state.done | (state.moves >= self.steps),
        )
