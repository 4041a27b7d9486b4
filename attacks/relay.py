"""Relay: short searches that hand over what they learned; long ones only where it may pay."""

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


class State(NamedTuple):
    """Per slot three images, five numbers, and four numbers for each of m wrong classes `others`.

    aim: place among `others` that the leg aims at, −1 where it is untargeted; gaps: the smallest
    z_y − z_t met; needs: the smallest extra radius, as a fraction of eps, that takes a linear model
    of the gap to zero; used: the legs run toward the class.
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
    asked: Integers
    gaps: Float[Tensor, "s m"]
    needs: Float[Tensor, "s m"]
    used: Float[Tensor, "s m"]

    @property
    def closest(self) -> Scalars:
        """How near the slot came to a success: minus the extra radius needed; higher is nearer."""
        return -self.needs.amin(1)


@attacks.register("relay", white_box=True, cites="")
@dataclass(frozen=True)
class Relay:
    """Legs of gradient ascent on margins, with budget where the boundary is near; linf and l2.

    Leg 0 climbs the untargeted margin from a random point. `probes` short legs follow from the
    clean point, each toward the class of the smallest gap z_y − z_t so far that none has aimed at.
    After every leg, the extra radius that a linear model of a gap still needs,
    (z_y − z_t) / (eps ‖∇(z_y − z_t)‖*) in the dual norm, is known for the classes aimed at. Up to
    `legs` long legs from random points follow, toward the class of the smallest need, weighed by
    the legs that it has had; leg k runs only where the smallest need is at most near · decay^k. So
    most points cost the probes alone.

    Steps fall from 2 eps to 0 along a cosine in every leg, with the momentum of APGD.
    Ours. Built on: ranking by gap over gradient norm (MALT, Melamed et al. 2024, arXiv:2407.02240),
    margins in place of cross-entropy (MM, Gao et al. 2022), giving up on far points (A3, Liu et
    al. 2022, arXiv:2203.05154).

    Attributes:
        first: steps of leg 0.
        probes: number of probing legs, of `probe` steps each.
        legs: most long legs, of `steps` steps each.
        aims: how many wrong classes to choose from, by falling clean logit.
        near: extra radius, as a fraction of eps, up to which the first long leg runs.
        decay: of that bound from leg to leg.
        surrogate: take gradients from this stand-in, which the model must declare.
        eot: passes averaged at every query, for randomized models.
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

    uses_gradient = True
    stays_inside = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run."""
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
            asked=zero,
            gaps=unknown,
            needs=unknown.clone(),
            used=torch.zeros_like(unknown),
        )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return z_t − z_y for the aimed class, or for the largest wrong one."""
        target = state.others.gather(1, state.aim.clamp_min(0)[:, None]).squeeze(1)
        aimed = targeted_margin(logits, state.y, target)
        return torch.where(state.aim < 0, margin(logits, state.y, state.y), aimed)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Note gap and need, move on along the gradient, and begin the next leg where one ends."""
        state = _note(state, reply, threat)
        over = state.asked >= self._budget(state.leg)
        here = state.query
        size = threat.eps * (1 + torch.cos(math.pi * state.asked / self._budget(state.leg)))
        ahead = here + per_point(size, here) * threat.steepest(reply.gradient)
        keep = per_point(torch.where(state.asked > 0, 0.75, 1.0), here).to(here.dtype)
        mixed = here + keep * (threat.project(ahead, state.x) - here)
        query = threat.project(mixed + (1 - keep) * (here - state.previous), state.x)
        moved = state._replace(query=query, previous=here, asked=state.asked + 1)
        return self._hand_over(moved, over, threat)

    def _budget(self, leg: Integers) -> Integers:
        """Steps of a leg; it costs one pass more."""
        long = torch.where(leg > self.probes, self.steps, self.probe)
        return torch.where(leg > 0, long, self.first)

    def _hand_over(self, state: State, over: Mask, threat: Threat) -> State:
        """Begin the next leg where one is over: choose a class and a start, or give up."""
        if not any_row(over):
            return state
        leg = state.leg + over
        probing = leg <= self.probes
        fresh = torch.where(state.used > 0, torch.inf, state.gaps)
        # A class that no leg could lower yet counts for less with every leg that it has had.
        worth = torch.where(state.needs < 0, state.needs, state.needs * state.used.clamp_min(1))
        aim = torch.where(probing, fresh.argmin(1), worth.argmin(1))
        aim = torch.where(over, aim, state.aim)
        count = torch.zeros_like(state.used).scatter(1, aim.clamp_min(0)[:, None], 1.0)
        start = torch.where(per_point(probing, state.x), state.x, self._random(state, leg, threat))
        begin = per_point(over, state.x)
        bound = _bounds(self.probes, self.legs, self.near, self.decay, leg.device)
        spent = state.needs.amin(1) > bound[leg.clamp_max(len(bound) - 1)]
        return state._replace(
            query=torch.where(begin, start, state.query),
            previous=torch.where(begin, start, state.previous),
            leg=leg,
            aim=aim,
            asked=torch.where(over, 0, state.asked),
            used=state.used + count * over[:, None],
            done=state.done | (over & spent),
        )

    def _random(self, state: State, leg: Integers, threat: Threat) -> Images:
        """Draw the random starts of long legs; on a CPU, of those alone that need one now."""
        index = torch.arange(len(leg), device=leg.device)
        if leg.device.type == "cpu":  # elsewhere, looking costs more than drawing
            index = index[(leg > self.probes) & (leg > state.leg)]
        keys = Keys(state.seed[index], state.point[index], state.task[index])
        drawn = threat.sample(state.x[index], keys, leg[index])
        return state.x.index_copy(0, index, drawn)


def _note(state: State, reply: Reply, threat: Threat) -> State:
    """Take in the gaps at the query and the need of the class aimed at."""
    own = reply.logits.gather(1, state.y[:, None])
    found = reply.logits.gather(1, state.others)
    slope = (reply.gradient * threat.steepest(reply.gradient)).flatten(1).sum(1)
    need = -reply.value / (threat.eps * slope).clamp_min(1e-30)
    place = torch.where(state.aim < 0, found.argmax(1), state.aim)[:, None]
    least = torch.minimum(state.needs.gather(1, place), need[:, None])
    return state._replace(
        gaps=torch.minimum(state.gaps, own - found), needs=state.needs.scatter(1, place, least)
    )


@lru_cache
def _bounds(probes: int, legs: int, near: float, decay: float, device: torch.device) -> Tensor:
    """Largest need at which leg i still runs: any for the probes, none after the last leg."""
    long = [near * decay**k for k in range(legs)]
    return torch.tensor([math.inf] * (probes + 1) + long + [-math.inf], device=device)
