"""FMN: gradient steps inside a ball whose radius follows the closest success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import margin, targeted_margin
from robustkit.core.threat import Threat, unit
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Tasks, list_jobs

from ._schedule import cosine

_DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}  # 1/p + 1/q = 1
_SHARE = {"linf": 0.5, "l2": 2.0, "l1": 0.5}  # first step, in radii of the ball
_LENGTH = {"linf": 10.0, "l2": 1.0, "l1": 1.0, "l0": 10.0}  # first step, its l2 norm


class State(NamedTuple):
    """Per slot two images and a few numbers.

    Attributes:
        radius: of the ball that the next query is projected into.
        best: distance of the closest query that fooled the model; infinite before the first.
        moves: steps taken so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    target: Labels
    radius: Scalars
    best: Scalars
    moves: Integers


@attacks.register("fmn", white_box=True, cites="arXiv:2102.12827")
@dataclass(frozen=True)
class Fmn:
    """Fast minimum-norm attack for linf, l2, l1 and l0: seeks the nearest adversarial input.

    Pintor et al. 2021, algorithm 1: a step along the gradient of the margin, then a projection
    onto a ball around the clean point. Its radius shrinks by 1 − gamma (to the best distance at
    most) where the last query fooled the model, else grows by 1 + gamma; before the first success
    it grows from the distance at which the linearized model would be fooled. In l0 it is a whole
    number that changes by 1 at least. The step falls to a hundredth on a cosine schedule, gamma to
    a fiftieth. A run costs steps + 1 passes.

    Differs from the paper: steps are measured in radii of the ball, and in linf follow the sign of
    the gradient; gamma begins at 0.2, not 0.05. On robust models that finds closer inputs in fewer
    steps; `fmn(relative=false, gamma=0.05)` has the paper's constants (in l0 also step_size=1).
    The linearized boundary is overshot by the share gamma, since it would else be approached
    without being crossed. Queries are projected onto ball and box together. It starts at the clean
    point only. It can aim at one class after the other.

    Attributes:
        steps: steps of one run.
        relative: measure steps in radii; else their l2 length is given. In l0 it always is.
        step_size: of the first step; 0 takes what is usual for the norm.
        gamma: by which share the radius changes in the first step.
        targets: how many classes to aim at, by falling clean logit; 0 takes the nearest each time.
        surrogate: name of the surrogate to take gradients from; "" takes them from the model.
        eot: passes averaged at every query, for randomized models.
    """

    steps: Annotated[int, Field(ge=1)] = 100
    relative: bool = True
    step_size: Annotated[float, Field(ge=0)] = 0.0
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.2
    targets: Annotated[int, Field(ge=0)] = 0
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient = True
    stays_inside = False
    minimizes = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One run, or one per target."""
        return list_jobs(self.targets, 1, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at the clean point."""
        no, zero = torch.zeros_like(tasks.y, dtype=torch.bool), torch.zeros_like(tasks.y)
        none = tasks.x.new_zeros(len(tasks.x))
        return State(tasks.x, no, tasks.x, tasks.y, tasks.target, none, none + torch.inf, zero)

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin, of the target where there is one: positive where it is reached."""
        if self.targets:
            return targeted_margin(logits, state.y, state.target)
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Set the radius, step along the gradient, project."""
        fools = reply.logits.argmax(1) != state.y
        away = threat.distance(state.query, state.x).float()
        best = torch.where(fools, torch.minimum(away, state.best), state.best)
        gamma = cosine(self.gamma, self.gamma / 50, state.moves, self.steps)
        if threat.norm == "l0":
            radius = _count(state.radius, gamma, fools, best)
        else:
            # Distance at which the linearized margin is 0: |margin| / ‖gradient‖ in the dual norm.
            plane = away + reply.value.abs() / _length(reply.gradient, _DUAL[threat.norm])
            # Overshot by gamma: a boundary that is approached from inside is never crossed.
            grown = (1 + gamma) * torch.where(best < torch.inf, state.radius, plane)
            shrunk = torch.minimum(state.radius * (1 - gamma), best)
            radius = torch.where(fools, shrunk, grown)
        # Growing radii must not pass the box: from its diameter on, every input is inside.
        whole = Threat.whole(threat.norm, state.x[0].numel(), threat.lower, threat.upper)
        radius = radius.clamp_max(whole.eps)
        ahead = state.query + self._move(reply.gradient, radius, state.moves, threat)
        return state._replace(
            query=threat.project(ahead, state.x, radius),
            radius=radius,
            best=best,
            moves=state.moves + 1,
            done=state.done | (state.moves >= self.steps),
        )

    def _move(self, gradient: Images, radius: Scalars, moves: Integers, threat: Threat) -> Images:
        relative = self.relative and threat.norm != "l0"
        first = self.step_size or (_SHARE if relative else _LENGTH)[threat.norm]
        length = cosine(first, first / 100, moves, self.steps)
        sign = relative and threat.norm == "linf"
        # In linf the sign uses the whole step in every coordinate; an l2 direction leaves most of
        # them inside the ball.
        direction = gradient.sign() if sign else unit(gradient)
        return per_point(length * radius if relative else length, gradient) * direction


def _count(radius: Scalars, gamma: Scalars, fools: Mask, best: Scalars) -> Scalars:
    """Change a number of features by the share gamma, but by one at least."""
    fewer = torch.minimum(radius - 1, (radius * (1 - gamma)).floor())
    more = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
    return torch.where(fools, torch.minimum(fewer, best), more).clamp_min(0)


def _length(gradient: Images, order: float) -> Scalars:
    flat, least = gradient.flatten(1), torch.finfo(gradient.dtype).tiny
    # As in `unit`: squares of tiny entries would vanish.
    largest = torch.linalg.vector_norm(flat, torch.inf, dim=1).clamp_min(least)
    scaled: Scalars = torch.linalg.vector_norm(flat / largest[:, None], order, dim=1)
    length: Scalars = (largest * scaled).clamp_min(least)
    return length
