"""What attacks on the edges of a graph share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, nn

from robustkit.core.rng import generator
from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.data.graphs import Pairs, decode, encode
from robustkit.errors import UsageError
from robustkit.models.graphs import graph_model
from robustkit.registry import attacks
from robustkit.search.external import Batch, ExternalAttack, power
from robustkit.search.pass_counter import PassCounter

from ._flipping import Goal

_ALL = 10**6  # points of a batch: one set of flips is for all of them


@dataclass(frozen=True)
class EdgeAttack(ExternalAttack):
    """An attack that owns its loop; what it returns is judged like what any search does."""

    name: str = field(default="", init=False)
    options: tuple[tuple[str, Any], ...] = field(default=(), init=False)
    batch_size: int = field(default=_ALL, init=False)

    package = "robustkit"
    flips = True
    uses_gradient = False  # of the model: it asks the graph for gradients by pairs itself
    stays_inside = True
    shared = True  # whether it is for one set of flips for all nodes

    def check(self, threat: Threat, classes: int) -> None:
        """Refuse other threat models."""
        if not getattr(threat, "discrete", False) or self.shared != hasattr(threat, "shared"):
            own = next(entry.name for entry in attacks.entries() if entry.target is type(self))
            what = "edges:5%" if self.shared else "edges@node:3"
            raise UsageError(f"{own} supports {what}, got {threat.norm}.")

    def strength(self, threat: Threat, classes: int) -> dict[str, Any]:
        """Return its options."""
        return {**power(self), "targets": 0, "restarts": 1}

    def perturb(self, model: nn.Module, batch: Batch, threat: Any) -> Images:
        """Return every node under the one set of flips that is chosen for all."""
        inner, (nodes, _, slots) = graph_model(model), decode(batch.x.cpu())
        edges, draw = len(inner.edges), generator(batch.seed, 0, 0)
        goal = Goal(inner.fixed, nodes, batch.y.cpu(), [0, 0])
        chosen = self.chosen(goal, threat.budget(edges), draw)
        count_passes(model, goal)
        return encode(nodes.tolist(), edges, slots.shape[1], chosen).to(batch.x)

    @abstractmethod
    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return at most `budget` distinct pairs u < v."""


def count_passes(model: nn.Module, goal: Goal) -> None:
    """Add what the attack asked of the graph itself to the passes of the run."""
    if isinstance(model, PassCounter):
        model.forwards += goal.passes[0]
        model.backwards += goal.passes[1]
