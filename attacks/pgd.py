"""PGD: projected gradient ascent with a constant step size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import LOSSES, TARGETED, LossName
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs


class State(NamedTuple):
    """Per slot two images and a few numbers. `moves`: steps taken so far."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    moves: Integers


@attacks.register("pgd", white_box=True, cites="arXiv:1706.06083")
@dataclass(frozen=True)
class Pgd:
    """Projected gradient ascent for linf, l2 and l1.

    Madry et al. 2018, section 2.1. A run costs steps + 1 passes. Steps in l1 are those of SLIDE
    (Tramèr & Boneh 2019, algorithm 1): the sign of the largest hundredth of the gradient, without
    the coordinates that are at the edge of the box already. Differs from the paper: starts are
    those of `Threat.sample`, and the projection onto ball and box is exact.

    Attributes:
        loss: maximized by the search; the targeted ones run once for each of `targets` classes.
        steps: gradient steps of one run.
        step_size: length of a step as a fraction of eps.
        restarts: runs per target.
        random_start: start at a random point of the threat model, else at the clean one.
        targets: how many classes to aim at, by falling clean logit.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged at every query, for randomized models.
    """

    loss: LossName = "ce"
    steps: Annotated[int, Field(ge=1)] = 40
    step_size: Annotated[float, Field(gt=0)] = 0.1
    restarts: Annotated[int, Field(ge=1)] = 1
    random_start: bool = True
    targets: Annotated[int, Field(ge=1)] = 9
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = True

    def __post_init__(self) -> None:
        if self.restarts > 1 and not self.random_start:
            raise UsageError(
                f"pgd: restarts={self.restarts} without a random start would repeat the same run. "
                "Use restarts=1 or random_start=true."
            )

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """Targets in order of rank, each with its restarts.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm == "l0":
            raise UsageError("pgd supports linf, l2 and l1, got l0. Use sigma_zero or fmn.")
        return list_jobs(self.targets if self.loss in TARGETED else 0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at a random point or at the clean one."""
        query = threat.sample(tasks.x, tasks.keys) if self.random_start else tasks.x
        no = torch.zeros_like(tasks.y, dtype=torch.bool)
        return State(query, no, tasks.x, tasks.y, tasks.target, torch.zeros_like(tasks.y))

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the chosen loss."""
        return LOSSES[self.loss](logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take one step of steepest ascent and project."""
        if threat.norm == "l1":
            # Steepest ascent in l1 is one coordinate a step: SLIDE spreads it over a hundredth.
            direction = _slide(state.query, reply.gradient, threat)
        else:
            direction = threat.steepest(reply.gradient)
        # The last query is evaluated too: steps + 1 passes for `steps` steps.
        ahead = state.query + self.step_size * threat.eps * direction
        return state._replace(
            query=threat.project(ahead, state.x),
            moves=state.moves + 1,
            done=state.done | (state.moves >= self.steps),
        )


def _slide(z: Images, gradient: Images, threat: Threat) -> Images:
    """Return the signs of the largest hundredth of the gradient, scaled to l1 norm 1.

    SLIDE, Tramèr & Boneh 2019, algorithm 1, with q = 99%.
    """
    # A coordinate at the edge of the box would take a share of the step and not move.
    free = torch.where(gradient > 0, z < threat.upper, z > threat.lower)
    flat = (gradient * free).flatten(1)
    keep = max(1, flat.shape[1] // 100)  # the paper's 99% quantile
    place = flat.abs().topk(keep, dim=1).indices
    return torch.zeros_like(flat).scatter_(1, place, flat.gather(1, place).sign() / keep).view_as(z)
