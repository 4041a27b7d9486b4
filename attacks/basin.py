"""Basin: gradient ascent from where a search without gradients came nearest, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from robustkit.core.losses import margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Search, Tasks, list_jobs

from ._warm_start import ascend


class State(NamedTuple):
    """The state of `square`, and `taken`: steps of the ascent so far, −1 in the random search."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    best: Images
    best_value: Scalars
    answered: Integers
    seed: Integers
    point: Integers
    task: Integers
    left: Integers
    draws: Float[Tensor, "s n m"]
    marks: Float[Tensor, "s 2"]
    taken: Integers

    @property
    def climbing(self) -> Mask:
        """Which slots need a gradient: those in an ascent."""
        return self.taken >= 0


@attacks.register("basin", white_box=False, cites="arXiv:1912.00049")
@dataclass(frozen=True)
class Basin:
    """Square attack and gradient ascent in turns, on the margin, each from the best query so far.

    Where gradients are masked, an ascent from a clean or a random point may never come into a basin
    of adversarial inputs that a search without gradients does reach, and there gradients may lead
    on. After every `queries` / `rounds` proposals of `square` an ascent of `steps` steps starts at
    the best query; what it finds is where the next proposals are made. Ours.

    Attributes:
        queries: proposals of a run in all.
        rounds: how many ascents they are interrupted by.
        steps: of one ascent.
        restarts: independent runs per point.
        surrogate: name of the surrogate that ascents follow; "" takes gradients from the model.
    """

    queries: Annotated[int, Field(ge=1)] = 1000
    rounds: Annotated[int, Field(ge=1)] = 5
    steps: Annotated[int, Field(ge=1)] = 40
    restarts: Annotated[int, Field(ge=1)] = 1
    surrogate: str = ""

    uses_gradient = True
    stays_inside = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run per restart.

        Raises:
            UsageError: for a norm that the attack does not support.
        """
        if threat.norm not in ("linf", "l2"):
            raise UsageError(
                f"basin supports linf and l2, got {threat.norm}. Use square, or apgd_{threat.norm}."
            )
        return list_jobs(0, self.restarts, classes)

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start as `square` does.

        Raises:
            UsageError: as `square`.
        """
        first: Any = _square(self.queries).start(tasks, threat)
        return State(**first._asdict(), taken=torch.full_like(tasks.y, -1))

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Keep the query if it is the best so far; propose a change of the best, or ascend."""
        # What is kept is chosen by the model, also where the value is a surrogate's.
        reply = reply._replace(value=margin(reply.logits, state.y, state.y))
        climbing, last = state.climbing, state.taken >= self.steps
        moved: State = _square(self.queries).step(state, reply, threat)
        share = -(-self.queries // self.rounds)
        due = ~climbing & (moved.answered % share == 0) & (moved.answered > 0)
        ahead = ascend(state.query, state.x, reply.gradient, state.taken.clamp_min(0),
                       self.steps, threat)  # fmt: skip
        query = torch.where(per_point(climbing & ~last, ahead), ahead, moved.query)
        query = torch.where(per_point(due, query), moved.best, query)
        answered = torch.where(climbing & ~last, state.answered, moved.answered)
        taken = torch.where(climbing & ~last, state.taken + 1, torch.where(due, 0, -1))
        return moved._replace(
            query=query,
            answered=answered,
            taken=taken,
            done=state.done | ((answered >= self.queries) & (taken < 0)),
        )


@lru_cache
def _square(queries: int) -> Search[Any]:
    built: Search[Any] = attacks.build(f"square(queries={queries})")
    return built
