"""The steps with momentum that the attacks made for transfer share; each adds a view of the query.

They climb on what `surrogate` names, best another model (`source:NAME`), and look at its gradients
alone: the answers of the attacked model end a run, and choose no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field

from robustkit.core.losses import ce
from robustkit.core.rng import Keys
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Model, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.search.protocol import Job, Reply, Tasks

from ._skip import skipping


class State(NamedTuple):
    """Per slot six images and a few numbers.

    momentum: g of the paper; shift: from the query to where the gradient is taken; variance and
    total: of vmi, v of the paper and the sum of gradients nearby; answered: queries so far.
    """

    query: Images
    done: Mask
    x: Images
    y: Labels
    momentum: Images
    shift: Images
    variance: Images
    total: Images
    answered: Integers
    seed: Integers
    point: Integers
    task: Integers

    @property
    def keys(self) -> Keys:
        """The random stream of each slot."""
        return Keys(self.seed, self.point, self.task)


@dataclass(frozen=True)
class MomentumAttack:
    """Ascent on the cross-entropy by the direction of accumulated gradients.

    g ← decay · g + ∇ / mean |∇|, and a step along g. The gradient is that at views of the query.
    """

    steps: Annotated[int, Field(ge=1)] = 10
    step_size: Annotated[float, Field(gt=0)] = 0.1
    decay: Annotated[float, Field(ge=0)] = 1.0
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    surrogate: str = ""
    eot: Annotated[int, Field(ge=1)] = 1

    uses_gradient: ClassVar[bool] = True
    stays_inside: ClassVar[bool] = True
    name: ClassVar[str] = ""
    pictures: ClassVar[bool] = False

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm not in ("linf", "l2"):
            raise UsageError(
                f"{self.name} supports linf and l2, got {threat.norm}. To transfer in it, use pgd "
                "(l1) or sigma_zero (l0) with the same surrogate."
            )
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at the clean point.

        Raises:
            UsageError: for inputs of a shape that the attack does not take.
        """
        if self.pictures:
            self.check(list(tasks.x.shape[1:]))
        zero, none = torch.zeros_like(tasks.y), torch.zeros_like(tasks.x)
        return State(
            query=tasks.x,
            done=zero > 0,
            x=tasks.x,
            y=tasks.y,
            momentum=none,
            shift=none.clone(),
            variance=none.clone(),
            total=none.clone(),
            answered=zero,
            seed=tasks.seed,
            point=tasks.point,
            task=tasks.task,
        )

    def check(self, shape: Sequence[int]) -> None:
        """Refuse inputs that are no pictures (a UsageError)."""
        if len(shape) != 3:
            raise UsageError(
                f"{self.name} moves the pixels of pictures [c, h, w], got inputs {shape}. Use mi "
                "or vmi, which take any shape."
            )

    def least_side(self, shape: Sequence[int], side: int, what: str) -> None:
        """Refuse pictures with fewer pixels than `side` along an axis (a UsageError)."""
        if min(shape[1:]) < side:
            raise UsageError(
                f"{self.name}: expected pictures of at least {side} pixels a side for {what}, got "
                f"{shape}. Choose a smaller number."
            )

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the cross-entropy."""
        return ce(logits, state.y, state.y)

    def through(self, model: Model, state: State, draw: int) -> Model:
        """Return what is differentiated in place of `model` at one of `eot` draws."""
        skipped = model if self.gamma == 1 else skipping(model, self.gamma)
        stream = 1 + state.answered * self.eot + draw
        return lambda query: skipped(self.view(query, state, stream))

    def view(self, query: Images, state: State, stream: Integers) -> Images:
        """Return what the model is shown of the query [s, *f]; `stream` separates the draws."""
        return query + state.shift

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take one step along the momentum and project."""
        momentum = self.decay * state.momentum + scaled(self.smooth(reply.gradient))
        answered = state.answered + 1
        return state._replace(
            query=self.ahead(state, momentum, threat),
            momentum=momentum,
            answered=answered,
            # The last query is evaluated too: steps + 1 of them for `steps` steps.
            done=state.done | (answered > self.steps),
        )

    def smooth(self, gradient: Images) -> Images:
        """Return the gradient that is accumulated."""
        return gradient

    def ahead(self, state: State, momentum: Images, threat: Threat) -> Images:
        """Return the projected step from the query."""
        step = self.step_size * threat.eps * threat.steepest(momentum)
        return threat.project(state.query + step, state.x)


def scaled(gradient: Images) -> Images:
    """Divide by the mean size of an entry, for each point; zero stays zero.

    The paper divides by the l1 norm, its code by the mean: the direction is the same.
    """
    size = gradient.abs().flatten(1).mean(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / per_point(size, gradient)


def entry(threat: Threat, x: Images) -> float:
    """Return the size of the entries of a vector of all the same size and length 1 in the norm."""
    return 1.0 if threat.norm == "linf" else float(x[0].numel() ** -0.5)
