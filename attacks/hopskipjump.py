"""HopSkipJump: walks along the decision boundary; needs only the predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.rng import Keys
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._draws import any_row, candidate, renew
from ._schedule import unit

# What a slot is at: looking for inputs that fool the model, halving the way to one, trying random
# directions at the boundary, stepping away from it.
START, HALVE, PROBE, LEAP = range(4)


class State(NamedTuple):
    """Per slot six images and a few numbers.

    far: an input that fools the model, whose way to x is being halved; edge: the boundary point;
    along: the direction tried; total, drift: sums of the directions, signed by the answers and not;
    low, high: share of the way at which the model is right, and fooled; nods: answers that fooled,
    of `tried`; leap: length of the next step; moves: boundary points so far, less one; short:
    distance of the closest one among the starts.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    far: Images
    edge: Images
    along: Images
    total: Images
    drift: Images
    low: Scalars
    high: Scalars
    nods: Scalars
    leap: Scalars
    short: Scalars
    phase: Integers
    tried: Integers
    starts: Integers
    moves: Integers
    asked: Integers
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
    a resolution to match; `starts` inputs (noise, corners of the box, and the clean image inverted,
    mirrored, flat) compete to be the first boundary point; the budget is one of queries.

    Attributes:
        queries: budget of one run.
        first: directions of the first estimate; the t-th has √t times as many.
        probe: length of a perturbation, as a share of the distance in l2.
        halvings: bisections per boundary point.
        starts: inputs that compete; more random ones follow while none fools the model.
        restarts: independent runs per point.
    """

    queries: Annotated[int, Field(ge=20)] = 5000
    first: Annotated[int, Field(ge=1)] = 100
    probe: Annotated[float, Field(gt=0, le=1)] = 0.05
    halvings: Annotated[int, Field(ge=1)] = 10
    starts: Annotated[int, Field(ge=1)] = 10
    restarts: Annotated[int, Field(ge=1)] = 1

    uses_gradient = False
    stays_inside = False
    minimizes = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run per restart."""
        if threat.norm not in ("linf", "l2"):
            raise UsageError(
                f"hopskipjump supports linf and l2, got {threat.norm}. Use square (l1) or "
                "sigma_zero (l0)."
            )
        return list_jobs(0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Ask about noise first."""
        x, zero = tasks.x, torch.zeros_like(tasks.y)
        none, number = x.new_zeros(x.shape), x.new_zeros(len(x))
        query = candidate(x, tasks.keys, zero, threat)
        return State(
            query=query,
            done=zero > 0,
            x=x,
            y=tasks.y,
            far=query,
            edge=x,
            along=none,
            total=none.clone(),
            drift=none.clone(),
            low=number,
            high=number + 1,
            nods=number.clone(),
            leap=number.clone(),
            short=number + torch.inf,
            phase=zero,
            tried=zero.clone(),
            starts=zero.clone(),
            moves=zero.clone(),
            asked=zero.clone(),
            seed=tasks.seed,
            point=tasks.point,
            task=tasks.task,
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return 1 where the model is fooled, else 0."""
        return (logits.argmax(1) != state.y).float()

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take in whether the query fooled the model, and choose the next one."""
        fools = reply.value > 0
        at = [state.phase == phase for phase in range(4)]
        state = self._started(state, at[START], fools)
        state = self._halved(state, at[HALVE], fools, threat)
        state = self._probed(state, at[PROBE], fools, threat)
        state = self._leapt(state, at[LEAP], fools)
        asked = state.asked + 1
        state = state._replace(asked=asked, done=state.done | (asked >= self.queries))
        return self._ask(state, threat)

    def _started(self, state: State, here: Mask, fools: Mask) -> State:
        """Halve the way to a start that fools the model; else look at the next one."""
        hit = here & fools
        state = state._replace(starts=state.starts + here)
        state = _begin_halving(state, hit)
        # Enough have been looked at, and one of them is on the boundary.
        enough = here & ~fools & (state.starts >= self.starts) & state.short.isfinite()
        return _begin_probing(state, enough)

    def _halved(self, state: State, here: Mask, fools: Mask, threat: Threat) -> State:
        """Halve the way between the clean point and `far`; its end is a boundary point."""
        middle = (state.low + state.high) / 2
        high = torch.where(here & fools, middle, state.high)
        low = torch.where(here & ~fools, middle, state.low)
        tried = state.tried + here
        state = state._replace(high=high, low=low, tried=tried)
        over = here & (tried >= self.halvings)
        if not any_row(over):
            return state
        found = _on_the_way(state.x, state.far, state.high, threat)
        length = threat.distance(found, state.x).to(found.dtype)
        starting = state.moves == 0
        better = over & (~starting | (length < state.short))
        state = state._replace(
            edge=torch.where(per_point(better, found), found, state.edge),
            short=torch.where(better, length, state.short),
        )
        again = over & starting & (state.starts < self.starts)
        state = state._replace(phase=torch.where(again, START, state.phase))
        return _begin_probing(state, over & ~again)

    def _probed(self, state: State, here: Mask, fools: Mask, threat: Threat) -> State:
        """Add a direction to the estimate; when it is done, step along it."""
        shown = per_point(here.to(state.x.dtype), state.x)
        signed = per_point(2 * fools.to(state.x.dtype) - 1, state.x)
        state = state._replace(
            total=state.total + shown * signed * state.along,
            drift=state.drift + shown * state.along,
            nods=state.nods + (here & fools),
            tried=state.tried + here,
        )
        over = here & (state.tried >= self._directions(state.moves))
        if not any_row(over):
            return state
        # Less the mean answer, equation (16); where all answers agree, the mean direction.
        mean = 2 * state.nods / state.tried.clamp_min(1) - 1
        plain = mean.abs() == 1
        normal = state.total - per_point(torch.where(plain, 0.0, mean), state.x) * state.drift
        ahead = threat.steepest(normal)
        away = threat.distance(state.edge, state.x).to(state.x.dtype)
        leap = away / state.moves.clamp_min(1).sqrt()
        turn = per_point(over, state.x)
        return state._replace(
            along=torch.where(turn, ahead, state.along),
            leap=torch.where(over, leap, state.leap),
            phase=torch.where(over, LEAP, state.phase),
            tried=torch.where(over, 0, state.tried),
        )

    def _leapt(self, state: State, here: Mask, fools: Mask) -> State:
        """Return to the boundary from a step that fools the model; else try one half as long."""
        state = _begin_halving(state, here & fools)
        state = state._replace(
            leap=torch.where(here & ~fools, state.leap / 2, state.leap),
            tried=state.tried + (here & ~fools),
        )
        # The estimate was wrong: probe again, with more directions.
        return _begin_probing(state, here & ~fools & (state.tried >= 12))

    def _directions(self, moves: Integers) -> Integers:
        return (self.first * moves.clamp_min(1).sqrt()).long()

    def _ask(self, state: State, threat: Threat) -> State:
        """Choose the query that the phase calls for."""
        keys = Keys(state.seed, state.point, state.task)
        probing = state.phase == PROBE
        along = renew(state.along, probing, keys, state.asked)
        start = state.query
        if any_row(state.phase == START):
            start = candidate(state.x, keys, state.starts, threat)
        middle = _on_the_way(state.x, state.far, (state.low + state.high) / 2, threat)
        away = (state.edge - state.x).flatten(1).norm(dim=1)
        reach = per_point(self.probe * away, state.x)
        probe = state.edge + reach * unit(along)
        leap = state.edge + per_point(state.leap, state.x) * along
        query = start
        for phase, asks in ((HALVE, middle), (PROBE, probe), (LEAP, leap)):
            query = torch.where(per_point(state.phase == phase, query), asks, query)
        return state._replace(query=query.clamp(threat.lower, threat.upper), along=along)


def _begin_halving(state: State, rows: Mask) -> State:
    """Search the way from the clean point to the query, which fools the model."""
    return state._replace(
        far=torch.where(per_point(rows, state.x), state.query, state.far),
        low=torch.where(rows, 0.0, state.low),
        high=torch.where(rows, 1.0, state.high),
        phase=torch.where(rows, HALVE, state.phase),
        tried=torch.where(rows, 0, state.tried),
    )


def _begin_probing(state: State, rows: Mask) -> State:
    """Start an estimate at `edge`."""
    here = per_point(rows, state.x)
    return state._replace(
        total=torch.where(here, 0.0, state.total),
        drift=torch.where(here, 0.0, state.drift),
        nods=torch.where(rows, 0.0, state.nods),
        phase=torch.where(rows, PROBE, state.phase),
        tried=torch.where(rows, 0, state.tried),
        moves=state.moves + rows,
    )


def _on_the_way(x: Images, far: Images, share: Scalars, threat: Threat) -> Images:
    """Go a share of the way to `far` as the norm counts it: a blend (l2), or clipping (linf)."""
    way = far - x
    if threat.norm == "l2":
        return x + per_point(share, x) * way
    reach = per_point(share * way.flatten(1).abs().amax(1), x)
    return x + torch.minimum(torch.maximum(way, -reach), reach)
