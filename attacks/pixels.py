"""The few pixels that a gradient calls for, at once: Frank–Wolfe's vertices of the l0px ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import margin, targeted_margin
from robustkit.core.threat import Threat, unit
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._norms import by_pixel


class State(NamedTuple):
    """Per slot three images and a few numbers. `slope`: running mean of the gradients."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    slope: Images
    moves: Integers


@attacks.register("pixels", white_box=True, cites="arXiv:1806.04311")
@dataclass(frozen=True)
class Pixels:
    """For l0px: the pixels that could gain most by the gradient, each at its best color.

    The step of Frank & Wolfe 1956: what maximizes the linearized margin over the whole threat
    model, all of whose pixels it uses, is a closed form. A pixel gains what the better end of the
    box gains in each of its channels; those that gain most are set, the others are left. Gradients
    are scaled to length 1 and averaged with the factor `keep`, so that queries do not jump between
    two choices. Exact on linear models of two classes in one step, and with `targets` for all. As
    JSMA (Papernot et al. 2016) and CornerSearch (Croce & Hein 2019) it moves pixels to corners of
    the box alone; sigma-zero goes between. A run costs steps + 1 passes. No random draws.

    Attributes:
        steps: of one run.
        keep: share of the mean that stays at every step.
        targets: how many classes to aim at, by falling clean logit; 0 takes the nearest each time.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged at every query, for randomized models.
    """

    steps: Annotated[int, Field(ge=1)] = 40
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.75
    targets: Annotated[int, Field(ge=0)] = 0
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = True
    pixelwise = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run, or one per target.

        Raises:
            UsageError: for another threat model.
        """
        if not by_pixel(threat):
            raise UsageError(f"pixels supports l0px, got {threat.norm}. Use sigma_zero or fmn.")
        return list_jobs(self.targets, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at the clean point."""
        no = torch.zeros_like(tasks.y, dtype=torch.bool)
        return State(tasks.x, no, tasks.x, tasks.y, tasks.target, torch.zeros_like(tasks.x),
                     torch.zeros_like(tasks.y))  # fmt: skip

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin, of the target where there is one."""
        loss = targeted_margin if self.targets else margin
        return loss(logits, state.y, state.target)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Set the pixels that the mean of the gradients calls for."""
        slope = self.keep * state.slope + unit(reply.gradient)
        corner = torch.where(slope > 0, threat.upper, threat.lower)
        gain = (slope * (corner - state.x)).double().sum(1).flatten(1)
        count = min(int(threat.eps), gain.shape[1])
        first = gain.sort(dim=1, descending=True, stable=True).indices[:, :count]
        chosen = torch.zeros_like(gain, dtype=torch.bool).scatter(1, first, value=True)
        chosen = (chosen & (gain > 0)).view(len(gain), 1, *state.x.shape[2:])
        return state._replace(
            query=torch.where(chosen, corner, state.x),
            slope=slope,
            moves=state.moves + 1,
            done=state.done | (state.moves >= self.steps),
        )
