"""VMI-FGSM: momentum, tuned by how the gradient varies around the last iterate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from robustkit.core.rng import uniform
from robustkit.core.threat import Threat
from robustkit.core.types import per_point
from robustkit.registry import attacks
from robustkit.search.protocol import Reply

from ._transfer import MomentumAttack, State, entry, scaled


@attacks.register("vmi", white_box=True, cites="arXiv:2103.15571")
@dataclass(frozen=True)
class Vmi(MomentumAttack):
    """Ascent with momentum and variance tuning (VMI-FGSM) for linf and l2, made to transfer.

    Wang & He 2021, algorithm 1: g ← decay · g + (∇ + v) / mean |∇ + v|, where v is the mean
    gradient at `neighbors` points drawn from the cube of half side `reach` · eps around the last
    iterate, less the gradient there. A step takes neighbors + 1 queries at one point. Differs from
    the paper: l2 as well, where the cube has the radius `reach` · eps; any query on the way may be
    the success, not only the last.

    Attributes:
        steps, step_size, decay, gamma, surrogate, eot: as in mi.
        neighbors: N of the paper.
        reach: β of the paper.
    """

    neighbors: Annotated[int, Field(ge=1)] = 20
    reach: Annotated[float, Field(gt=0)] = 1.5

    name: ClassVar[str] = "vmi"

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Note one gradient; after the last neighbor, step. Then choose the next one."""
        turn = self.neighbors + 1
        place, answered = state.answered % turn, state.answered + 1
        first, last = place == 0, place == turn - 1
        tuned = self.decay * state.momentum + scaled(reply.gradient + state.variance)
        momentum = torch.where(per_point(first, tuned), tuned, state.momentum)
        # −N times the gradient at the iterate and those of the N neighbors: N v.
        share = per_point(torch.where(first, -float(self.neighbors), 1.0), tuned)
        total = state.total * per_point(~first, tuned) + share * reply.gradient
        moved = self.ahead(state, momentum, threat)
        over = per_point(last, tuned)
        side = self.reach * threat.eps * entry(threat, state.x)
        drawn = uniform(state.keys, math.prod(state.x.shape[1:]), answered).view_as(state.x)
        near = per_point(~last, drawn) * side * (2 * drawn - 1)
        return state._replace(
            query=torch.where(over, moved, state.query),
            momentum=momentum,
            variance=torch.where(over, total / self.neighbors, state.variance),
            total=total,
            shift=near,
            answered=answered,
            done=state.done | (answered > self.steps * turn),
        )
