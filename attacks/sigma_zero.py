"""sigma-zero: gradient descent on a smooth count of the changed features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import margin, targeted_margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._norms import by_pixel
from ._schedule import cosine

_BETA1, _BETA2 = 0.9, 0.999  # of Adam


class State(NamedTuple):
    """Per slot four images and a few numbers.

    Attributes:
        mean, square: Adam's running means of the gradient and of its square.
        threshold: smaller changes are set to zero.
        moves: steps taken so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    mean: Images
    square: Images
    threshold: Scalars
    moves: Integers


@attacks.register("sigma_zero", white_box=True, cites="arXiv:2402.01879")
@dataclass(frozen=True)
class SigmaZero:
    """sigma-zero for l0 and l0px: seeks the adversarial input that changes the fewest features.

    Cinà et al. 2024, algorithm 1: descends max(z_y − max z_i, 0) + Σ δ² / (δ² + sigma) / d, the
    gradient scaled to a largest coordinate of 1; clips to the box; sets changes below a threshold
    to zero. The threshold rises by `change` times the step size where the query fooled the model,
    else it falls. The step size falls to a tenth on a cosine schedule. A run costs steps + 1
    passes.
    Steps are Adam's (Kingma & Ba 2015, algorithm 1), as in the authors' code: along the gradient
    alone the search ends at twice as many features. Differs from the paper: it can aim at one
    class after the other; in l0px δ² is summed over the channels of a pixel, d counts pixels, and
    a pixel is dropped where all of its channels change by less than the threshold.

    Attributes:
        steps: steps of one run.
        step_size: the first one (eta).
        sigma: how closely the smooth count follows the true one.
        threshold: the first one (tau).
        change: of the threshold (t).
        targets: how many classes to aim at, by falling clean logit; 0 takes the nearest each time.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
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
    pixelwise = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run, or one per target.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm != "l0" and not by_pixel(threat):
            raise UsageError(f"sigma_zero supports l0 and l0px, got {threat.norm}. Use fmn.")
        return list_jobs(self.targets, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at the clean point."""
        no, moves = torch.zeros_like(tasks.y, dtype=torch.bool), torch.zeros_like(tasks.y)
        threshold = tasks.x.new_full((len(tasks.x),), self.threshold)
        zero = torch.zeros_like(tasks.x)
        return State(
            tasks.x, no, tasks.x, tasks.y, tasks.target, zero, zero.clone(), threshold, moves
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin, of the target where there is one, clamped at 0."""
        if self.targets:
            return targeted_margin(logits, state.y, state.target).clamp_max(0)
        return margin(logits, state.y, state.y).clamp_max(0)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Set the threshold, step, clip, and drop what is smaller than the threshold."""
        fools = reply.logits.argmax(1) != state.y
        eta = cosine(self.step_size, self.step_size / 10, state.moves, self.steps)
        sign = torch.where(fools, 1.0, -1.0)
        # The first reply is that of the clean point, before any threshold was used.
        rise = self.change * eta * sign * (state.moves > 0)
        threshold = (state.threshold + rise).clamp(0, threat.upper - threat.lower)
        together = by_pixel(threat)
        downhill = self._downhill(state.query - state.x, reply.gradient, together=together)
        mean = torch.lerp(downhill, state.mean, _BETA1)
        square = torch.lerp(downhill.square(), state.square, _BETA2)
        count = (state.moves + 1).double()
        # Adam's correction of means that start at zero, in the form that ends section 2 of Kingma &
        # Ba: one factor on the step size in place of two on the means.
        length = (1 - _power(_BETA2, count)).sqrt() / (1 - _power(_BETA1, count))
        step = per_point((eta * length).float(), mean) * mean / (square.sqrt() + 1e-8)
        moved = (state.query + step).clamp(threat.lower, threat.upper)
        # Without the threshold no coordinate would return to exactly 0, as l0 counts it.
        change = (moved - state.x).abs()
        change = change.amax(1, keepdim=True) if together else change
        small = change < per_point(threshold, moved)
        return state._replace(
            query=torch.where(small, state.x, moved),
            mean=mean,
            square=square,
            threshold=threshold,
            moves=state.moves + 1,
            done=state.done | (state.moves >= self.steps),
        )

    def _downhill(self, delta: Images, gradient: Images, *, together: bool) -> Images:
        """Return the descent direction of margin and smooth l0 together, its largest coordinate 1.

        d/dδ of δ² / (δ² + sigma) is 2 sigma δ / (δ² + sigma)².
        """
        square = delta.square()
        square = square.sum(1, keepdim=True) if together else square
        count = 2 * self.sigma * delta / (square + self.sigma).square()
        downhill = gradient - count / square[0].numel()
        # Scaled by the largest coordinate: the step is then in units of the input range, and does
        # not depend on the scale of the logits.
        largest = downhill.flatten(1).abs().amax(1)
        largest = largest.clamp_min(torch.finfo(largest.dtype).tiny)
        return downhill / per_point(largest, downhill)


def _power(base: float, exponent: Tensor) -> Tensor:
    # Not `**`, which rounds the last elements of a tensor otherwise than the others.
    return (exponent * math.log(base)).exp()
