"""Drift: steps of fixed length along the gradient of the margin; and a suite made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from robustkit.core.losses import margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Labels, Logits, Mask, Scalars
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites
from robustkit.search.protocol import Job, Reply, Tasks


class State(NamedTuple):
    """`taken`: steps so far."""

    query: Images
    done: Mask
    x: Images
    y: Labels
    taken: Integers


@attacks.register("example_drift", white_box=True, cites="")
@dataclass(frozen=True)
class Drift:
    """Steps of fixed length along the gradient of the margin."""

    steps: int = 10

    uses_gradient = True
    stays_inside = True

    def jobs(self, threat: Threat, classes: int) -> Sequence[Job]:
        """One untargeted run, for linf and l2."""
        if threat.norm == "l1":
            raise UsageError(f"example_drift supports linf and l2, got {threat.norm}.")
        return [Job()]

    def start(self, tasks: Tasks, threat: Threat) -> State:
        """Start at a random point."""
        zero = torch.zeros_like(tasks.y)
        return State(threat.sample(tasks.x, tasks.keys), zero > 0, tasks.x, tasks.y, zero)

    def objective(self, logits: Logits, state: State) -> Scalars:
        """Return the margin."""
        return margin(logits, state.y, state.y)

    def step(self, state: State, reply: Reply, threat: Threat) -> State:
        """Take the step."""
        ahead = state.query + threat.eps / 4 * threat.steepest(reply.gradient)
        return state._replace(
            query=threat.project(ahead, state.x),
            taken=state.taken + 1,
            done=state.taken >= self.steps,
        )


@suites.register("example_look", cites="")
@dataclass(frozen=True)
class Look:
    """A short look with the attack of this pack."""

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """Drift, and PGD where it does not apply."""
        return ["pgd(steps=5)" if threat.norm == "l1" else "example_drift(steps=5)"]
