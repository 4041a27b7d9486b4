"""sigma-zero: gradient descent on a smooth count of the changed features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.errors import UsageError
from robustkit.losses import margin, targeted_margin
from robustkit.registry import attacks
from robustkit.search import Job, Reply, Tasks, list_jobs
from robustkit.threat import Threat
from robustkit.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point

from ._schedule import cosine


class State(NamedTuple):
    """Per slot two images and five numbers. `threshold`: smaller changes are set to zero.

    `moves`: steps taken so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    threshold: Scalars
    moves: Integers


@attacks.register("sigma_zero", white_box=True, cites="arXiv:2402.01879")
@dataclass(frozen=True)
class SigmaZero:
    """sigma-zero for l0: seeks the adversarial input that changes the fewest features.

    Cinà et al. 2024, algorithm 1: descends max(z_y − max z_i, 0) + Σ δ² / (δ² + sigma) / d, the
    gradient scaled to a largest coordinate of 1; clips to the box; sets changes below a threshold
    to zero. The threshold rises by `change` times the step size where the query fooled the model,
    else it falls. The step size falls to zero along a cosine. A run costs steps + 1 passes.
    Differs from the paper: it can aim at one class after the other.

    Attributes:
        steps: steps of one run.
        step_size: the first one (eta).
        sigma: how closely the smooth count follows the true one.
        threshold: the first one (tau).
        change: of the threshold (t).
        targets: how many classes to aim at, by falling clean logit; 0 takes the nearest each time.
        surrogate: take gradients from this stand-in, which the model must declare.
        eot: passes averaged at every query, for randomized models.
    """

    steps: Annotated[int, Field(ge=1)] = 1000
    step_size: Annotated[float, Field(gt=0)] = 1.0
    sigma: Annotated[float, Field(gt=0)] = 1e-3
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.3
    change: Annotated[float, Field(gt=0)] = 0.01
    targets: Annotated[int, Field(ge=0)] = 0
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = False
    minimizes = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run, or one per target."""
        if threat.norm != "l0":
            raise UsageError(f"sigma_zero supports l0, got {threat.norm}. Use fmn.")
        return list_jobs(self.targets, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at the clean point."""
        no, moves = torch.zeros_like(tasks.y, dtype=torch.bool), torch.zeros_like(tasks.y)
        threshold = tasks.x.new_full((len(tasks.x),), self.threshold)
        return State(tasks.x, no, tasks.x, tasks.y, tasks.target, threshold, moves)

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin (of the target, where there is one) as far as it is negative."""
        if self.targets:
            return targeted_margin(logits, state.y, state.target).clamp_max(0)
        return margin(logits, state.y, state.y).clamp_max(0)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Set the threshold, step, clip, and drop what is smaller than the threshold."""
        fools = reply.logits.argmax(1) != state.y
        eta = cosine(self.step_size, 0.0, state.moves, self.steps)
        sign = torch.where(fools, 1.0, -1.0)
        # The first reply is that of the clean point, before any threshold was used.
        change = self.change * eta * sign * (state.moves > 0)
        threshold = (state.threshold + change).clamp(0, threat.upper - threat.lower)
        delta = state.query - state.x
        count = 2 * self.sigma * delta / (delta.square() + self.sigma).square()
        downhill = reply.gradient - count / delta[0].numel()
        largest = downhill.flatten(1).abs().amax(1).clamp_min(1e-30)
        moved = state.query + per_point(eta / largest, delta) * downhill
        moved = moved.clamp(threat.lower, threat.upper)
        small = (moved - state.x).abs() < per_point(threshold, delta)
        return state._replace(
            query=torch.where(small, state.x, moved),
            threshold=threshold,
            moves=state.moves + 1,
            done=state.done | (state.moves >= self.steps),
        )
