"""What defenses for graphs share: options, how they load, the base GCN, and poisoning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from robustkit.core.rng import generator
from robustkit.core.types import Logits
from robustkit.data.dataset import Dataset
from robustkit.data.graphs import Graph, Pairs, graph_of
from robustkit.models.graph_training import train
from robustkit.models.graphs import GraphModel
from robustkit.models.message_passing import Convolutions, Propagation, Tape, Words, toggled


@dataclass(frozen=True)
class GraphDefense(ABC):
    """A defense that is trained when it is loaded, which takes seconds: no weights are shipped.

    Attributes:
        poison: train anew on every flipped graph (poisoning); else on the clean graph (evasion).
        seed: of the first weights, dropout, and whatever else is drawn.
    """

    poison: bool = False
    seed: int = 0

    @abstractmethod
    def fit(self, graph: Graph) -> GraphModel:
        """Train on a graph."""

    def load(self, data: Dataset) -> GraphModel:
        """Train on the graph of the data.

        Raises:
            UsageError: for data that is no graph.
        """
        model = self.fit(graph_of(data)).eval()
        return Poisoned(self, graph_of(data), model).eval() if self.poison else model


class Poisoned(GraphModel):
    """Trains the defense anew on each flipped graph, with the same seed; attacks see the clean one.

    Gradients are those of the model that was trained on the clean graph.
    """

    def __init__(self, defense: GraphDefense, graph: Graph, clean: GraphModel) -> None:
        super().__init__(graph)
        self.defense, self.clean, self._graph = replace(defense, poison=False), clean, graph

    @property
    def fixed(self) -> GraphModel:
        """The model of the clean graph."""
        return self.clean

    def infer(self, edges: Pairs) -> Logits:
        """Train on the graph, and answer."""
        with torch.enable_grad():
            model = self.defense.fit(self._graph._replace(edges=edges))
        return model.infer(edges)

    def relaxed(self, pairs: Pairs, weights: Tensor, tape: Tape) -> Logits:
        """Return those of the model of the clean graph."""
        return self.clean.relaxed(pairs, weights, tape)

    def survives(self) -> Tensor | None:
        """Return those of the model of the clean graph."""
        return self.clean.survives()


class GraphConvolutional(GraphModel):
    """A GCN on the words of the nodes; subclasses change what messages run along.

    Args:
        hidden, dropout, decay: of the network and its training.
    """

    projected: Tensor

    def __init__(
        self, graph: Graph, *, hidden: int, dropout: float, decay: float, seed: int, **more: Any
    ) -> None:
        super().__init__(graph)
        for name, value in more.items():
            setattr(self, name, value)
        draw = generator(seed, 0, graph.nodes)
        classes = int(graph.labels.max()) + 1
        self.network = Convolutions(graph.features.shape[1], hidden, classes, draw)

        words = Words(graph.features)

        def project() -> Tensor:
            return words.times(self.network.w1)

        train(
            self.network, project, self.along(graph.edges), graph,
            dropout=dropout, decay=decay, generator=draw,
        )  # fmt: skip
        with torch.no_grad():
            self.register_buffer("projected", project())

    def along(self, edges: Pairs) -> Callable[[Tensor], Tensor]:
        """Return how messages are passed on a graph; here as they are."""
        return Propagation(edges, torch.ones(len(edges)), self.nodes)

    def infer(self, edges: Pairs) -> Logits:
        """Return the logits of all nodes [n, k]."""
        logits: Logits = self.network(self.projected, self.along(edges))
        return logits

    def relaxed(self, pairs: Pairs, weights: Tensor, tape: Tape) -> Logits:
        """Return those of a weighted graph."""
        logits: Logits = self.network(
            self.projected, Propagation(pairs, weights, self.nodes, tape=tape)
        )
        return logits


def side_by_side(model: GraphConvolutional, edges: list[Pairs]) -> Logits:
    """Return logits [s, n, k] of several graphs in one pass: they lie beside each other."""
    count, n = len(edges), model.nodes
    pairs = torch.cat([one + number * n for number, one in enumerate(edges)])
    along = Propagation(pairs, torch.ones(len(pairs)), count * n)
    logits: Logits = model.network(model.projected.repeat(count, 1), along)
    return logits.view(count, n, -1)


def flipped(model: GraphModel, sets: list[Pairs]) -> list[Pairs]:
    """Return the edges under each of some sets of flips."""
    return [toggled(model.edges, one, model.nodes) for one in sets]
