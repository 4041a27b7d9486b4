"""HopSkipJump: follows the decision boundary toward the clean point, by decisions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.rng import Keys
from robustkit.core.threat import Threat, unit
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._draws import any_row, candidate, renew

# Phases of a slot: trying starting points, bisecting the segment from the clean point to an
# adversarial one, estimating the normal of the boundary there, stepping along it.
START, BISECT, ESTIMATE, STEP = range(4)


class State(NamedTuple):
    """Per slot six images and a few numbers.

    adversarial: an input that fools the model, the far end of the bisected segment; boundary: the
    boundary point; direction: the random direction that is tried; signed_sum, plain_sum: sums of
    the directions, signed by whether they fooled the model and not; low, high: shares of the
    segment at which the model is right, and fooled; fooled: directions that fooled it, of `tried`;
    step_size: length of the next step; moves: boundary points so far, less one; best_distance: of
    the closest boundary point among the starts; answered: queries so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    adversarial: Images
    boundary: Images
    direction: Images
    signed_sum: Images
    plain_sum: Images
    low: Scalars
    high: Scalars
    fooled: Scalars
    step_size: Scalars
    best_distance: Scalars
    phase: Integers
    tried: Integers
    starts: Integers
    moves: Integers
    answered: Integers
    seed: Integers
    point: Integers
    task: Integers


@attacks.register("hopskipjump", white_box=False, cites="arXiv:1904.02144")
@dataclass(frozen=True)
class HopSkipJump:
    """Decision-based attack for linf and l2: it looks at the predicted class and at nothing else.

    Chen et al. 2020, algorithm 2: a point on the boundary is improved by a Monte Carlo estimate of
    the boundary's normal (equations 9 and 16), a step of length distance / √t, halved until it
    fools the model, and a binary search back toward the clean point. It seeks the nearest success;
    where only a radius counts, the first query within it ends the run.

    Differs from the paper: directions are random signs; the perturbation's length is a fixed share
    of the distance, so that models that round their input still answer; the binary search ends at
    a matching resolution; `starts` inputs (noise, corners of the box, and the clean image inverted,
    mirrored, flat) compete to be the first boundary point; the budget is one of queries.

    Attributes:
        queries: budget of one run.
        first: directions of the first estimate; the t-th has √t times as many.
        probe: length of a perturbation, as a share of the distance in l2.
        halvings: bisections per boundary point.
        starts: inputs that compete; more random ones follow while none fools the model.
        restarts: independent runs per point.
        patience: queries before the first of the looks at which a run without hope may end
            (`robustkit.search.patience`); 0: none does.
    """

    queries: Annotated[int, Field(ge=20)] = 5000
    first: Annotated[int, Field(ge=1)] = 100
    probe: Annotated[float, Field(gt=0, le=1)] = 0.05
    halvings: Annotated[int, Field(ge=1)] = 10
    starts: Annotated[int, Field(ge=1)] = 10
    restarts: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=0)] = 0

    uses_gradient = False
    stays_inside = False
    minimizes = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run per restart.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm not in ("linf", "l2"):
            raise UsageError(
                f"hopskipjump supports linf and l2, got {threat.norm}. Use square (l1) or "
                "sigma_zero (l0)."
            )
        return list_jobs(0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Query noise first."""
        x, zero = tasks.x, torch.zeros_like(tasks.y)
        none, number = x.new_zeros(x.shape), x.new_zeros(len(x))
        query = candidate(x, tasks.keys, zero, threat)
        return State(
            query=query,
            done=zero > 0,
            x=x,
            y=tasks.y,
            adversarial=query,
            boundary=x,
            direction=none,
            signed_sum=none.clone(),
            plain_sum=none.clone(),
            low=number,
            high=number + 1,
            fooled=number.clone(),
            step_size=number.clone(),
            best_distance=number + torch.inf,
            phase=zero,
            tried=zero.clone(),
            starts=zero.clone(),
            moves=zero.clone(),
            answered=zero.clone(),
            seed=tasks.seed,
            point=tasks.point,
            task=tasks.task,
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return 1 where the model is fooled, else 0."""
        return (logits.argmax(1) != state.y).float()

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Record whether the query fooled the model, and choose the next one."""
        # Every slot is in a phase of its own: each transition acts on its rows alone.
        fools = reply.value > 0
        at = [state.phase == phase for phase in range(4)]
        state = self._started(state, at[START], fools)
        state = self._bisected(state, at[BISECT], fools, threat)
        state = self._estimated(state, at[ESTIMATE], fools, threat)
        state = self._stepped(state, at[STEP], fools)
        answered = state.answered + 1
        state = state._replace(answered=answered, done=state.done | (answered >= self.queries))
        return self._next_query(state, threat)

    def _started(self, state: State, here: Mask, fools: Mask) -> State:
        """Bisect toward a start that fools the model; else try the next one."""
        hit = here & fools
        state = state._replace(starts=state.starts + here)
        state = _begin_bisection(state, hit)
        # Enough starts were tried, and at least one of them led to a boundary point.
        enough = here & ~fools & (state.starts >= self.starts) & state.best_distance.isfinite()
        return _begin_estimate(state, enough)

    def _bisected(self, state: State, here: Mask, fools: Mask, threat: Threat) -> State:
        """Bisect between the clean point and `adversarial`; the result is a boundary point."""
        middle = (state.low + state.high) / 2
        high = torch.where(here & fools, middle, state.high)
        low = torch.where(here & ~fools, middle, state.low)
        tried = state.tried + here
        state = state._replace(high=high, low=low, tried=tried)
        over = here & (tried >= self.halvings)
        if not any_row(over):
            return state
        # The end that fooled the model, not the middle: the boundary point is itself adversarial.
        found = _between(state.x, state.adversarial, state.high, threat)
        length = threat.distance(found, state.x).to(found.dtype)
        starting = state.moves == 0
        # Starts compete by distance; later points replace the last one, as in the paper.
        better = over & (~starting | (length < state.best_distance))
        state = state._replace(
            boundary=torch.where(per_point(better, found), found, state.boundary),
            best_distance=torch.where(better, length, state.best_distance),
        )
        again = over & starting & (state.starts < self.starts)
        state = state._replace(phase=torch.where(again, START, state.phase))
        return _begin_estimate(state, over & ~again)

    def _estimated(self, state: State, here: Mask, fools: Mask, threat: Threat) -> State:
        """Add a direction to the estimate; when there are enough, step along the normal."""
        # Sums in place of a stored batch of directions: a slot is of one size.
        shown = per_point(here.to(state.x.dtype), state.x)
        signed = per_point(2 * fools.to(state.x.dtype) - 1, state.x)
        state = state._replace(
            signed_sum=state.signed_sum + shown * signed * state.direction,
            plain_sum=state.plain_sum + shown * state.direction,
            fooled=state.fooled + (here & fools),
            tried=state.tried + here,
        )
        over = here & (state.tried >= self._directions(state.moves))
        if not any_row(over):
            return state
        # Σ (φ_i − mean φ) u_i, the variance-reduced estimate of equation (16); where all answers
        # agree it is 0, and the mean direction is used.
        mean = 2 * state.fooled / state.tried.clamp_min(1) - 1
        plain = mean.abs() == 1
        weight = per_point(torch.where(plain, 0.0, mean), state.x)
        normal = state.signed_sum - weight * state.plain_sum
        ahead = threat.steepest(normal)
        away = threat.distance(state.boundary, state.x).to(state.x.dtype)
        # distance / √t, the first step of the geometric progression that `_stepped` halves.
        step_size = away / state.moves.clamp_min(1).sqrt()
        turn = per_point(over, state.x)
        return state._replace(
            direction=torch.where(turn, ahead, state.direction),
            step_size=torch.where(over, step_size, state.step_size),
            phase=torch.where(over, STEP, state.phase),
            tried=torch.where(over, 0, state.tried),
        )

    def _stepped(self, state: State, here: Mask, fools: Mask) -> State:
        """Bisect back to the boundary from a step that fools the model; else halve the step."""
        state = _begin_bisection(state, here & fools)
        state = state._replace(
            step_size=torch.where(here & ~fools, state.step_size / 2, state.step_size),
            tried=state.tried + (here & ~fools),
        )
        # Twelve halvings, to 1/4096 of the step: the estimate was wrong. Estimate again, with more
        # directions.
        return _begin_estimate(state, here & ~fools & (state.tried >= 12))

    def _directions(self, moves: Integers) -> Integers:
        # B_t = B_0 √t of the paper: later estimates must be finer, as steps get shorter.
        return (self.first * moves.clamp_min(1).sqrt()).long()

    def _next_query(self, state: State, threat: Threat) -> State:
        """Choose the query by the phase of each slot."""
        keys = Keys(state.seed, state.point, state.task)
        probing = state.phase == ESTIMATE
        direction = renew(state.direction, probing, keys, state.answered)
        start = state.query
        if any_row(state.phase == START):
            start = candidate(state.x, keys, state.starts, threat)
        middle = _between(state.x, state.adversarial, (state.low + state.high) / 2, threat)
        # A share of the distance: the paper's δ shrinks with the dimension, below one level of 255
        # a pixel, and a model that rounds its input would answer every direction alike.
        away = (state.boundary - state.x).flatten(1).norm(dim=1)
        reach = per_point(self.probe * away, state.x)
        probe = state.boundary + reach * unit(direction)
        step = state.boundary + per_point(state.step_size, state.x) * direction
        query = start
        for phase, found in ((BISECT, middle), (ESTIMATE, probe), (STEP, step)):
            query = torch.where(per_point(state.phase == phase, query), found, query)
        return state._replace(query=query.clamp(threat.lower, threat.upper), direction=direction)


def _begin_bisection(state: State, rows: Mask) -> State:
    """Bisect the segment from the clean point to the query, which fools the model."""
    return state._replace(
        adversarial=torch.where(per_point(rows, state.x), state.query, state.adversarial),
        low=torch.where(rows, 0.0, state.low),
        high=torch.where(rows, 1.0, state.high),
        phase=torch.where(rows, BISECT, state.phase),
        tried=torch.where(rows, 0, state.tried),
    )


def _begin_estimate(state: State, rows: Mask) -> State:
    """Start an estimate of the normal at `boundary`."""
    here = per_point(rows, state.x)
    return state._replace(
        signed_sum=torch.where(here, 0.0, state.signed_sum),
        plain_sum=torch.where(here, 0.0, state.plain_sum),
        fooled=torch.where(rows, 0.0, state.fooled),
        phase=torch.where(rows, ESTIMATE, state.phase),
        tried=torch.where(rows, 0, state.tried),
        moves=state.moves + rows,
    )


def _between(x: Images, far: Images, share: Scalars, threat: Threat) -> Images:
    """Return the point between `x` and `far` at a share of their distance in the norm.

    l2: (1 − share) x + share · far; linf: far clipped to the ball of radius share · ‖far − x‖: the
    projections of the paper's binary search.
    """
    way = far - x
    if threat.norm == "l2":
        return x + per_point(share, x) * way
    reach = per_point(share * way.flatten(1).abs().amax(1), x)
    return x + torch.minimum(torch.maximum(way, -reach), reach)
