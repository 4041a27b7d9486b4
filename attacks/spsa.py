"""SPSA: gradient ascent without gradients, which are estimated from differences of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import margin
from robustkit.core.rng import Keys
from robustkit.core.threat import Threat, unit
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._draws import any_row, renew
from ._schedule import cosine


class State(NamedTuple):
    """Per slot six images and a few numbers.

    base: the iterate; direction: v of the current pair; total: Σ (f(x + δv) − f(x − δv)) v so far;
    momentum: of the estimates; plus_value: f(x + δv) of the current pair; answered: queries so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    base: Images
    direction: Images
    total: Images
    momentum: Images
    plus_value: Scalars
    answered: Integers
    seed: Integers
    point: Integers
    task: Integers


@attacks.register("spsa", white_box=False, cites="arXiv:1802.05666")
@dataclass(frozen=True)
class Spsa:
    """Ascent on the margin for linf and l2 with gradients estimated by simultaneous perturbation.

    Uesato et al. 2018, algorithm 1, with the steps of NES (Ilyas et al. 2018, arXiv:1804.08598).
    Per step, `pairs` directions v of random signs are tried on both sides of the iterate:
    ĝ = Σ (f(x + δv) − f(x − δv)) v. A run costs (steps + 1) (2 pairs + 1) forward passes. The
    sum over directions also averages over the noise of a randomized model, and over the jumps of a
    piecewise constant one where `delta` spans them.

    Differs from the paper: momentum and the steepest step of the norm in place of Adam, with a step
    size on a cosine schedule; δ is a share of eps; queries are projected onto the threat model, so
    that each of them may be a success.

    Attributes:
        steps: ascent steps of one run.
        pairs: directions per step, two queries each.
        delta: length of a perturbation in the norm, as a share of eps.
        first: the first step, as a share of eps.
        momentum: share of the last direction that is kept.
        restarts: independent runs per point, each from a random point.
        patience: queries before the first of the looks at which a run without hope may end
            (`robustkit.search.patience`); 0: none does.
    """

    steps: Annotated[int, Field(ge=1)] = 60
    pairs: Annotated[int, Field(ge=1)] = 40
    delta: Annotated[float, Field(gt=0, le=1)] = 0.2
    first: Annotated[float, Field(gt=0, le=2)] = 0.5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.8
    restarts: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=0)] = 0

    uses_gradient = False
    stays_inside = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run per restart.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm not in ("linf", "l2"):
            raise UsageError(
                f"spsa supports linf and l2, got {threat.norm}. Use square (l1) or fmn (l0)."
            )
        return list_jobs(0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at a random point of the surface."""
        query, zero = threat.sample(tasks.x, tasks.keys), torch.zeros_like(tasks.y)
        none = query.new_zeros(query.shape)
        return State(
            query=query,
            done=zero > 0,
            x=tasks.x,
            y=tasks.y,
            base=query,
            direction=none,
            total=none.clone(),
            momentum=none.clone(),
            plus_value=query.new_zeros(len(query)),
            answered=zero,
            seed=tasks.seed,
            point=tasks.point,
            task=tasks.task,
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Add one side of a pair; after the last pair, step. Then choose the next query."""
        # A turn is one query at the iterate itself, which may be a success, and two for each pair.
        turn = 2 * self.pairs + 1
        place, taken = state.answered % turn, state.answered // turn
        minus = (place > 0) & (place % 2 == 0)
        # (f(x + δv) − f(x − δv)) / 2δv: for v = ±1 dividing is multiplying, and the factor 1 / 2δ
        # cancels in the steepest direction.
        slope = torch.where(minus, state.plus_value - reply.value, 0.0)
        total = state.total + per_point(slope, state.x) * state.direction
        state = state._replace(total=total, plus_value=reply.value)
        state = self._move(state, place == turn - 1, taken, threat)
        answered = state.answered + 1
        place = answered % turn
        keys = Keys(state.seed, state.point, state.task)
        direction = renew(state.direction, place % 2 == 1, keys, 1 + answered)
        side = torch.where(place % 2 == 1, 1.0, -1.0) * (place > 0)
        # δ is large beside finite differences (0.2 eps): it has to cross the steps of a quantized
        # model, and a smoothed gradient is what a masked one needs.
        reach = per_point(side.to(direction.dtype) * self.delta * threat.eps, direction)
        # Projected: near the edge of the ball the two sides are then not mirror images, a bias that
        # is worth a query that may succeed.
        query = threat.project(state.base + reach * _scaled(direction, threat), state.x)
        done = state.done | (answered >= (self.steps + 1) * turn)
        return state._replace(query=query, direction=direction, answered=answered, done=done)

    def _move(self, state: State, over: Mask, taken: Integers, threat: Threat) -> State:
        """Step along the estimate in the slots whose pairs are complete."""
        if not any_row(over):
            return state
        # Scaled to unit length first: the size of an estimate says nothing of its quality, and
        # grows with the slope of the margin.
        fresh = self.momentum * state.momentum + (1 - self.momentum) * unit(state.total)
        size = threat.eps * cosine(self.first, 0.02 * self.first, taken, self.steps)
        moved = state.base + per_point(size, state.x) * threat.steepest(fresh)
        here = per_point(over, state.x)
        return state._replace(
            base=torch.where(here, threat.project(moved, state.x), state.base),
            momentum=torch.where(here, fresh, state.momentum),
            total=torch.where(here, 0.0, state.total),
        )


def _scaled(direction: Images, threat: Threat) -> Images:
    """Scale directions of signs to length 1 in the norm."""
    return direction if threat.norm == "linf" else unit(direction)
