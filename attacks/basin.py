"""Basin: gradient ascent from where a search without gradients came nearest, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field

from robustkit.core.losses import margin
from robustkit.core.threat import Threat
from robustkit.core.types import Logits, Scalars, per_point
from robustkit.errors import UsageError
from robustkit.registry import attacks
from robustkit.search.protocol import Job, Reply, Search, Tasks, list_jobs

from ._square_state import State
from ._warm_start import ascend


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
        return _square(self.queries).start(tasks, threat)

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Keep the query if it is the best so far; propose a change of the best, or ascend."""
        # What is kept is chosen by the model, also where the value is a surrogate's.
        reply = reply._replace(value=margin(reply.logits, state.y, state.y))
        moved = _square(self.queries).step(state, reply, threat)
        share = -(-self.queries // self.rounds)
        due = ~state.climbing & (moved.answered % share == 0)
        taken = (self.steps + 1 - state.left).clamp_max(self.steps)
        ahead = ascend(state.query, state.x, reply.gradient, taken, self.steps, threat)
        query = torch.where(per_point(state.left > 1, ahead), ahead, moved.query)
        left = torch.where(due, self.steps + 1, moved.left)  # the best query is asked once more
        return moved._replace(
            query=torch.where(per_point(due, query), moved.best, query),
            left=left,
            done=state.done | ((moved.answered >= self.queries) & (left == 0)),
        )


@lru_cache
def _square(queries: int) -> Search[State]:
    built: Search[State] = attacks.build(f"square(queries={queries})")
    return built
