"""Relay: short gradient searches that tell the next where to aim; long ones near the boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import margin, targeted_margin
from robustkit.core.rng import Keys
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks

from ._draws import any_row
from ._momentum import momentum
from ._need import need


class State(NamedTuple):
    """Per slot three images, a few numbers, and four numbers for each of m wrong classes `others`.

    Attributes:
        aim: place among `others` of the leg's target, −1 where it is untargeted.
        answered: queries so far in this leg.
        gaps: the smallest z_y − z_t met, by class.
        needs: the smallest extra radius, as a fraction of eps, at which a linear model of the gap
            reaches zero, by class.
        used: legs so far with the class as their target.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    seed: Labels
    point: Labels
    task: Labels
    others: Int[Tensor, "s m"]
    aim: Integers
    previous: Images
    leg: Integers
    answered: Integers
    gaps: Float[Tensor, "s m"]
    needs: Float[Tensor, "s m"]
    used: Float[Tensor, "s m"]

    @property
    def closest(self) -> Scalars:
        """Minus the extra radius needed [s], as a fraction of eps: higher is closer to success.

        Where there is no gradient it overflows: ledgers hold finite numbers.
        """
        most = torch.finfo(self.needs.dtype).max
        return -self.needs.amin(1).clamp(-most, most)


@attacks.register("relay", white_box=True, cites="")
@dataclass(frozen=True)
class Relay:
    """Sequential runs (legs) of gradient ascent on margins, longest near the boundary; linf and l2.

    Leg 0 maximizes the untargeted margin from a random point. `probes` short legs follow from the
    clean point, each targeted at the class of the smallest gap z_y − z_t so far that was no target
    yet. After every leg, the extra radius that a linear model of a gap still needs,
    (z_y − z_t) / (eps ‖∇(z_y − z_t)‖*) in the dual norm, is known for the targets. Up to `legs`
    long legs from random points follow, targeted at the class of the smallest need times the legs
    that it has had; leg k runs only where the smallest need is at most near · decay^k. Most points
    that no attack breaks therefore cost the probes alone.

    Step sizes fall from 2 eps to 0 on a cosine schedule in every leg, with the momentum of APGD.
    Ours. Built on: ranking by gap over gradient norm (MALT, Melamed et al. 2024, arXiv:2407.02240),
    margins in place of cross-entropy (MM, Gao et al. 2022), giving up on far points (A3, Liu et
    al. 2022, arXiv:2203.05154).

    Attributes:
        first: steps of leg 0.
        probes: number of probing legs, of `probe` steps each.
        legs: most long legs, of `steps` steps each.
        aims: how many wrong classes to choose targets from, by falling clean logit.
        near: extra radius, as a fraction of eps, up to which the first long leg runs.
        decay: of that bound from leg to leg.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged at every query, for randomized models.
        patience: queries before the first of the looks at which a run without hope may end
            (`robustkit.search.patience`); 0: none does.
    """

    first: Annotated[int, Field(ge=1)] = 20
    probes: Annotated[int, Field(ge=0)] = 5
    probe: Annotated[int, Field(ge=1)] = 6
    legs: Annotated[int, Field(ge=0)] = 11
    steps: Annotated[int, Field(ge=1)] = 40
    aims: Annotated[int, Field(ge=1)] = 20
    near: Annotated[float, Field(gt=0)] = 0.5
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=0)] = 0

    uses_gradient = True
    stays_inside = True

    @property
    def least_steps(self) -> int:
        """What every run takes: probes and long legs follow where there is hope."""
        return self.first

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm not in ("linf", "l2"):
            raise UsageError(
                f"relay supports linf and l2, got {threat.norm}. Use apgd_{threat.norm}."
            )
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at a random point of the surface."""
        query, zero = threat.sample(tasks.x, tasks.keys), torch.zeros_like(tasks.y)
        others = tasks.ranked[:, 1:]
        unknown = query.new_full(others.shape, torch.inf)
        return State(
            query=query,
            done=zero > 0,
            x=tasks.x,
            y=tasks.y,
            seed=tasks.seed,
            point=tasks.point,
            task=tasks.task,
            others=others,
            aim=zero - 1,
            previous=query,
            leg=zero,
            answered=zero,
            gaps=unknown,
            needs=unknown.clone(),
            used=torch.zeros_like(unknown),
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return z_t − z_y for the target of the leg; without one, the margin."""
        target = state.others.gather(1, state.aim.clamp_min(0)[:, None]).squeeze(1)
        aimed = targeted_margin(logits, state.y, target)
        return torch.where(state.aim < 0, margin(logits, state.y, state.y), aimed)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Record gap and need, take a step, and begin the next leg where one ends."""
        state = _record(state, reply, threat)
        over = state.answered >= self._budget(state.leg)  # a leg of n steps ends with query n + 1
        here = state.query
        # 2 eps, the diameter of the ball, down to 0. No checkpoints: a leg is at most 40 steps,
        # less than the first two windows of APGD (41).
        size = threat.eps * (1 + torch.cos(math.pi * state.answered / self._budget(state.leg)))
        share = per_point(torch.where(state.answered > 0, 0.75, 1.0), here).to(here.dtype)
        project = threat.projection(state.x)
        size = per_point(size, here)
        mixed = momentum(here, state.previous, reply.gradient, size, share, project, threat)
        query = project(mixed)
        moved = state._replace(query=query, previous=here, answered=state.answered + 1)
        return self._next_leg(moved, over, threat)

    def _budget(self, leg: Integers) -> Integers:
        """Steps of a leg; it costs one pass more."""
        long = torch.where(leg > self.probes, self.steps, self.probe)
        return torch.where(leg > 0, long, self.first)

    def _next_leg(self, state: State, over: Mask, threat: Threat) -> State:
        """Where a leg is over, choose target and start of the next one, or end the search."""
        if not any_row(over):
            return state
        leg = state.leg + over
        probing = leg <= self.probes
        # Probes go by the gap alone: the gradient norm of a class is known once it was a target.
        fresh = torch.where(state.used > 0, torch.inf, state.gaps)
        # A target whose legs all failed ranks lower with each of them, so that others get theirs.
        worth = torch.where(state.needs < 0, state.needs, state.needs * state.used.clamp_min(1))
        aim = torch.where(probing, fresh.argmin(1), worth.argmin(1))
        aim = torch.where(over, aim, state.aim)
        count = torch.zeros_like(state.used).scatter(1, aim.clamp_min(0)[:, None], 1.0)
        # Probes start at the clean point, where the ranking of the gaps was made; long legs at
        # random points, as restarts of AutoAttack do.
        start = torch.where(per_point(probing, state.x), state.x, self._random(state, leg, threat))
        begin = per_point(over, state.x)
        bound = _bounds(self.probes, self.legs, self.near, self.decay, leg.device)
        # The bound falls with every leg: points that stay far from the boundary leave early, and
        # the budget goes to those that come nearer.
        spent = state.needs.amin(1) > bound[leg.clamp_max(len(bound) - 1)]
        return state._replace(
            query=torch.where(begin, start, state.query),
            previous=torch.where(begin, start, state.previous),
            leg=leg,
            aim=aim,
            answered=torch.where(over, 0, state.answered),
            used=state.used + count * over[:, None],
            done=state.done | (over & spent),
        )

    def _random(self, state: State, leg: Integers, threat: Threat) -> Images:
        """Draw the random starts of long legs."""
        index = torch.arange(len(leg), device=leg.device)
        # On a CPU, for the slots that need one now; on a GPU, choosing them would wait for it.
        if leg.device.type == "cpu":
            index = index[(leg > self.probes) & (leg > state.leg)]
        keys = Keys(state.seed[index], state.point[index], state.task[index])
        drawn = threat.sample(state.x[index], keys, leg[index])
        return state.x.index_copy(0, index, drawn)


def _record(state: State, reply: Reply, threat: Threat) -> State:
    """Update the gaps of all classes at the query, and the need of the target."""
    own = reply.logits.gather(1, state.y[:, None])
    found = reply.logits.gather(1, state.others)
    extra = need(reply.value, reply.gradient, threat)
    place = torch.where(state.aim < 0, found.argmax(1), state.aim)[:, None]
    least = torch.minimum(state.needs.gather(1, place), extra[:, None])
    return state._replace(
        gaps=torch.minimum(state.gaps, own - found), needs=state.needs.scatter(1, place, least)
    )


@lru_cache
def _bounds(probes: int, legs: int, near: float, decay: float, device: torch.device) -> Tensor:
    """Largest need at which leg i still runs: inf for the probes, −inf after the last leg."""
    long = [near * decay**k for k in range(legs)]
    return torch.tensor([math.inf] * (probes + 1) + long + [-math.inf], device=device)
