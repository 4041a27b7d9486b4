"""RayS: searches the sign direction along which the boundary is nearest, by decisions alone."""

from __future__ import annotations

import math
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
from ._warm_start import ascend, refuse_norm


class State(NamedTuple):
    """Per slot three images and a few numbers.

    signs: the best direction; during the warm start, the displacement of largest margin. radius: at
    which that direction fools the model, infinite before any does. level, block: the block of
    features whose signs the current trial flips. at: radius of the query. low, high: radii at which
    the trial left the model right, and fooled it (infinite before it does). gap: from high to the
    next query, as a share of high. idle: trials in a row without gain. run: restarts so far.
    left: steps of the warm start to come. value: the largest margin it has met. answered: queries
    so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    signs: Images
    level: Integers
    block: Integers
    radius: Scalars
    at: Scalars
    low: Scalars
    high: Scalars
    gap: Scalars
    idle: Integers
    run: Integers
    answered: Integers
    left: Integers
    value: Scalars
    seed: Integers
    point: Integers
    task: Integers

    @property
    def climbing(self) -> Mask:
        """Which slots need a gradient: those in the warm start."""
        return self.left > 0


@attacks.register("rays", white_box=False, cites="arXiv:2006.12792")
@dataclass(frozen=True)
class RayS:
    """Decision-based attack for linf: it looks at the predicted class and at nothing else.

    Chen and Gu 2020, algorithms 1 to 3: among directions in {-1, 1}^d, the one with the nearest
    boundary is searched by flipping the signs of blocks of features: all, halves, quarters and so
    on down to single ones. A flip is kept if the model is fooled at less than the best radius.
    It seeks the nearest success; where only a radius counts, the first query within it ends the
    run.

    Differs from the paper: a direction is tried just below the best radius; from there the radius
    shrinks in growing steps and is then bisected, as most gains are small; radii are coarse while
    blocks are large. After single features come blocks of all sizes again, until a whole round
    brings nothing; then the search restarts, first with blocks along columns, later from random
    directions too. With a `surrogate`, the first direction is that of the query with the largest
    margin of the model among `ahead` gradient steps on the margin of the surrogate.

    Attributes:
        queries: budget of one run, without the warm start.
        resolution: of radii, relative.
        surrogate: name of the surrogate that the warm start follows; "" for none.
        ahead: steps of the warm start.
        patience: queries before the first of the looks at which a run without hope may end
            (`robustkit.search.patience`); 0: none does.
    """

    queries: Annotated[int, Field(ge=20)] = 10000
    resolution: Annotated[float, Field(gt=0, lt=0.1)] = 0.004
    surrogate: str = ""
    ahead: Annotated[int, Field(ge=1)] = 40
    patience: Annotated[int, Field(ge=0)] = 0

    stays_inside = False
    minimizes = True

    @property
    def uses_gradient(self) -> bool:
        """Whether there is a warm start."""
        return bool(self.surrogate)

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm != "linf":
            raise UsageError(
                f"rays supports linf, got {threat.norm}. Use hopskipjump (l2), square (l1) or "
                "sigma_zero (l0)."
            )
        refuse_norm("rays", self.surrogate, threat)
        return list_jobs(0, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Query the clean point, then along all ones; a warm start begins at a random point."""
        x, zero = tasks.x, torch.zeros_like(tasks.y)
        number, ones = x.new_zeros(len(x)), torch.ones_like(x)
        return State(
            query=threat.sample(x, tasks.keys) if self.surrogate else x,
            done=zero > 0,
            x=x,
            y=tasks.y,
            signs=ones,
            level=zero - (1 if self.surrogate else 2),  # below 0, no block is flipped
            block=zero,
            radius=number + torch.inf,
            at=number,
            low=number,
            high=number + torch.inf,
            gap=number + 0.5,
            idle=zero.clone(),
            # So that the restart after the warm start's direction is the run from all ones.
            run=zero - int(bool(self.surrogate)),
            answered=zero.clone(),
            left=zero + (self.ahead if self.surrogate else 0),
            value=number - torch.inf,
            seed=tasks.seed,
            point=tasks.point,
            task=tasks.task,
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin, for the warm start; the search itself uses decisions alone."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Record whether the query fooled the model, and choose the next one."""
        here = ~state.climbing
        # Radius 0 is the clean point, where a randomized model may err: no direction was tried.
        fools = (reply.logits.argmax(1) != state.y) & (state.at > 0)
        query = state.query
        if self.surrogate:
            walked = ascend(query, state.x, reply.gradient, self.ahead - state.left, self.ahead,
                            threat)  # fmt: skip
            state = _record_walk(state, margin(reply.logits, state.y, state.y))
            query = torch.where(per_point(here, query), query, walked)
        # Just below the best radius first: a direction that does not fool the model there is given
        # up after one query, as most are.
        began = state.high.isfinite()
        state = state._replace(
            high=torch.where(here & fools, state.at, state.high),
            low=torch.where(here & ~fools & began, state.at, state.low),
            gap=torch.where(here & fools & began, (2 * state.gap).clamp_max(0.5), state.gap),
            answered=state.answered + here,
            done=state.done | (state.answered + here >= self.queries),
        )
        near = state.high - state.low <= self._resolution(state.level) * state.high
        state = self._finish_trial(state, here & ((~fools & ~began) | near))
        state = self._restart(state)
        state = self._next_radius(state, threat)
        turned = state.x + per_point(state.at, query) * self._trial(state)
        turned = turned.clamp(threat.lower, threat.upper)
        return state._replace(query=torch.where(per_point(state.climbing, query), query, turned))

    def _finish_trial(self, state: State, over: Mask) -> State:
        """Where a trial is over, keep its direction if it gained, and go to the next block."""
        if not any_row(over):
            return state
        # `high` is below the best radius by construction: a finite one is a gain.
        gained = over & state.high.isfinite()
        count = math.prod(state.x.shape[1:])
        last = math.ceil(math.log2(count))
        beyond = (state.block + 1) * _size(count, state.level) >= count
        level = torch.where(over & ((state.level < 0) | beyond), state.level + 1, state.level)
        idle = torch.where(gained, 0, state.idle + over)
        block = torch.where(level > state.level, 0, state.block + 1)
        return state._replace(
            signs=torch.where(per_point(gained, state.x), self._trial(state), state.signs),
            radius=torch.where(gained, state.high, state.radius),
            level=torch.where(level > last, 0, level),
            block=torch.where(over, block, state.block),
            low=torch.where(over, 0.0, state.low),
            high=torch.where(over, torch.inf, state.high),
            gap=torch.where(over, self._resolution(level), state.gap),
            idle=idle,
        )

    def _restart(self, state: State) -> State:
        """Where a whole round brought nothing, restart: from all ones, later from random signs."""
        # One round flips every block of every level: as many failures in a row mean a local
        # optimum.
        begins = state.idle >= _round(math.prod(state.x.shape[1:]))
        if not any_row(begins):
            return state
        run, fresh = state.run + begins, per_point(begins, state.x)
        signs = torch.where(fresh, 1.0, state.signs).to(state.x.dtype)
        keys = Keys(state.seed, state.point, state.task)
        return state._replace(
            signs=renew(signs, begins & (run > 1), keys, run),
            radius=torch.where(begins, torch.inf, state.radius),
            level=torch.where(begins, -1, state.level),
            block=torch.where(begins, 0, state.block),
            gap=torch.where(begins, 0.5, state.gap),
            idle=torch.where(begins, 0, state.idle),
            run=run,
        )

    def _next_radius(self, state: State, threat: Threat) -> State:
        """Choose the next radius: just below the best one, further below, or the middle."""
        first = torch.where(
            state.radius.isfinite(),
            (1 - self._resolution(state.level)) * state.radius,
            threat.upper - threat.lower,
        )
        below = torch.where(
            state.low > 0, (state.low + state.high) / 2, (1 - state.gap) * state.high
        )
        return state._replace(at=torch.where(state.high.isfinite(), below, first))

    def _resolution(self, level: Integers) -> Scalars:
        """Return the relative resolution of radii: 10% for all features, halved with the blocks.

        A large block changes the radius much or not at all; full bisection would spend queries on
        directions that the next flip replaces.
        """
        return (0.1 * 0.5 ** level.clamp_min(0)).clamp_min(self.resolution)

    def _trial(self, state: State) -> Images:
        """Return the direction on trial: the best one with the signs of a block flipped."""
        count = math.prod(state.x.shape[1:])
        place = torch.arange(count, device=state.x.device)
        if state.x.ndim == 4:
            # Blocks of consecutive features are rows of an image; every other run takes columns.
            high, wide = state.x.shape[2:]
            columns = place.view(-1, wide, high).mT.reshape(-1)
            place = torch.where(state.run[:, None] % 2 == 1, columns, place)
        size = _size(count, state.level)[:, None]
        start = state.block[:, None] * size
        turned = (place >= start) & (place < start + size) & (state.level >= 0)[:, None]
        return torch.where(turned.view_as(state.x), -state.signs, state.signs)


def _size(count: int, level: Integers) -> Integers:
    """Return the features in a block: all of them at level 0, half at 1, single ones at last."""
    parts = 2 ** level.clamp_min(0)
    return (count + parts - 1) // parts


def _round(count: int) -> int:
    """Return how many blocks the levels have together."""
    levels = torch.arange(math.ceil(math.log2(count)) + 1)
    size = _size(count, levels)
    return int(((count + size - 1) // size).sum())


def _record_walk(state: State, value: Scalars) -> State:
    """Keep the warm start's query of the largest margin; at its end, take the signs."""
    better = state.climbing & (value >= state.value)  # of equal ones the last
    way = torch.where(per_point(better, state.x), state.query - state.x, state.signs)
    over = state.left == 1
    signs = torch.where(way < 0, -1.0, 1.0).to(way.dtype)
    return state._replace(
        signs=torch.where(per_point(over, way), signs, way),
        value=torch.where(better, value, state.value),
        left=(state.left - 1).clamp_min(0),
    )
