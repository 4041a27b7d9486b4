"""SPSA: ascent along gradients that are estimated from logits alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import margin
from robustkit.core.rng import Keys
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._draws import any_row, renew
from ._schedule import cosine, unit


class State(NamedTuple):
    """Per slot six images and a few numbers.

    base: the iterate; along: direction of the running pair; total: sum of the differences so far,
    each along its direction; momentum: of the estimates; ahead: value on the plus side of the
    running pair; asked: queries answered.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    base: Images
    along: Images
    total: Images
    momentum: Images
    ahead: Scalars
    asked: Integers
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
    mean over directions is also one over the noise of a randomized model and over the steps of a
    piecewise constant one, if `delta` spans them.

    Differs from the paper: momentum and the steepest step of the norm in place of Adam, with a step
    size that falls along a cosine; δ is a share of eps; queries are projected, so that each one
    counts as a try.

    Attributes:
        steps: ascent steps of one run.
        pairs: directions per step, two queries each.
        delta: length of a perturbation in the norm, as a share of eps.
        first: the first step, as a share of eps.
        momentum: share of the last direction that is kept.
        restarts: independent runs per point, each from a random point.
    """

    steps: Annotated[int, Field(ge=1)] = 60
    pairs: Annotated[int, Field(ge=1)] = 40
    delta: Annotated[float, Field(gt=0, le=1)] = 0.2
    first: Annotated[float, Field(gt=0, le=2)] = 0.5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.8
    restarts: Annotated[int, Field(ge=1)] = 1

    uses_gradient = False
    stays_inside = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run per restart."""
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
            along=none,
            total=none.clone(),
            momentum=none.clone(),
            ahead=query.new_zeros(len(query)),
            asked=zero,
            seed=tasks.seed,
            point=tasks.point,
            task=tasks.task,
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take in one side of a pair; after the last pair, move. Then choose the next query."""
        turn = 2 * self.pairs + 1
        place, taken = state.asked % turn, state.asked // turn
        minus = (place > 0) & (place % 2 == 0)
        slope = torch.where(minus, state.ahead - reply.value, 0.0)
        total = state.total + per_point(slope, state.x) * state.along
        state = state._replace(total=total, ahead=reply.value)
        state = self._move(state, place == turn - 1, taken, threat)
        asked = state.asked + 1
        place = asked % turn
        keys = Keys(state.seed, state.point, state.task)
        along = renew(state.along, place % 2 == 1, keys, 1 + asked)
        side = torch.where(place % 2 == 1, 1.0, -1.0) * (place > 0)
        reach = per_point(side.to(along.dtype) * self.delta * threat.eps, along)
        query = threat.project(state.base + reach * _scaled(along, threat), state.x)
        done = state.done | (asked >= (self.steps + 1) * turn)
        return state._replace(query=query, along=along, asked=asked, done=done)

    def _move(self, state: State, over: Mask, taken: Integers, threat: Threat) -> State:
        """Step along the estimates where all pairs of a step are answered."""
        if not any_row(over):
            return state
        fresh = self.momentum * state.momentum + (1 - self.momentum) * unit(state.total)
        size = threat.eps * cosine(self.first, 0.02 * self.first, taken, self.steps)
        moved = state.base + per_point(size, state.x) * threat.steepest(fresh)
        here = per_point(over, state.x)
        return state._replace(
            base=torch.where(here, threat.project(moved, state.x), state.base),
            momentum=torch.where(here, fresh, state.momentum),
            total=torch.where(here, 0.0, state.total),
        )


def _scaled(along: Images, threat: Threat) -> Images:
    """Give directions of signs length 1 in the norm."""
    return along if threat.norm == "linf" else unit(along)
