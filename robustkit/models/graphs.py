"""Networks on graphs: what attacks may ask, and what a forward pass is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkit.core.types import Images, Logits
from robustkit.data.graphs import Graph, Pairs, decode, flips_of
from robustkit.errors import UsageError
from robustkit.models.message_passing import Tape, toggled, weighted

_KEPT = 64  # answers to flip sets that are remembered
_BATCH = 16


class GraphModel(nn.Module, ABC):
    """A classifier of the nodes of one graph, whose input is a node and flipped pairs.

    Every set of flips is answered for all nodes at once and remembered; the answer depends on the
    set alone. What is no code, or names no node of the graph, flips nothing.
    """

    features: Tensor
    edges: Pairs
    labels: Tensor
    train_nodes: Tensor
    val_nodes: Tensor

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        for name, part in (
            ("features", graph.features), ("labels", graph.labels), ("edges", graph.edges),
            ("train_nodes", graph.train), ("val_nodes", graph.val),
        ):  # fmt: skip
            self.register_buffer(name, part)
        self._answers: dict[tuple[tuple[int, int], ...], Logits] = {}

    @property
    def nodes(self) -> int:
        """How many nodes the graph has."""
        return len(self.labels)

    @abstractmethod
    def infer(self, edges: Pairs) -> Logits:
        """Return the logits of all nodes [n, k] on the graph of `edges`: the whole pipeline."""

    @abstractmethod
    def relaxed(self, pairs: Pairs, weights: Tensor, tape: Tape) -> Logits:
        """Return logits [n, k] of a weighted graph, whose backward pass fills the tape.

        Steps that have no gradient are held as they are on the clean graph, or left out.
        """

    def survives(self) -> Tensor | None:
        """Return which added pairs the defense keeps [n, n]; None: all."""
        return None

    @property
    def fixed(self) -> GraphModel:
        """What attacks work on: the model itself, whose weights stay when the graph changes."""
        return self

    def single_flips(self, node: int, pairs: Pairs) -> Logits:
        """Return the logits of a node under the flip of each pair alone [p, k]."""
        with torch.no_grad():
            parts = pairs[:, None].split(_BATCH)
            return torch.cat([self.several(list(part))[:, node] for part in parts])

    def several(self, sets: list[Pairs]) -> Logits:
        """Return logits [s, n, k] under each of some sets of flips; a subclass may batch them."""
        return torch.stack([self.infer(toggled(self.edges, one, self.nodes)) for one in sets])

    def answers(self, sets: list[tuple[tuple[int, int], ...]]) -> list[Logits]:
        """Return logits [n, k] under each of some sets of flips, remembered ones as they were."""
        known = dict(self._answers)
        new = [one for one in dict.fromkeys(sets) if one not in known]
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            pairs = [torch.tensor(one, dtype=torch.int64).reshape(-1, 2) for one in part]
            with torch.no_grad():
                known |= dict(zip(part, self.several(pairs).unbind(0), strict=True))
        for one in dict.fromkeys([(), *sets]):
            if one in known:  # the latest come last
                known[one] = known.pop(one)
        self._answers = dict(list(known.items())[-_KEPT:])
        return [known[one] for one in sets]

    def forward(self, x: Images) -> Logits:
        """[b, 1, 1, 2 + 2 B] -> logits [b, k]."""
        chosen, _, slots = decode(x.detach().cpu())
        slots = torch.where(((slots >= 0) & (slots < self.nodes)).all(2, keepdim=True), slots, -1)
        found = self.answers(flips_of(slots))
        rows = chosen.clamp(0, self.nodes - 1).tolist()
        return torch.stack([one[row] for one, row in zip(found, rows, strict=True)]).to(x)


def reaching(edges: Pairs, node: int, nodes: int, hops: int = 2) -> Pairs:
    """Return the pairs u < v with an end within so many hops of a node.

    Two: all whose flip can change what two convolutions answer, their degrees included.
    """
    inside = torch.zeros(nodes, dtype=torch.bool)
    inside[node] = True
    for _ in range(hops):
        near = inside[edges]
        inside[edges[near[:, 0], 1]] = True
        inside[edges[near[:, 1], 0]] = True
    ends = torch.cartesian_prod(inside.nonzero()[:, 0], torch.arange(nodes))
    ends = ends[ends[:, 0] != ends[:, 1]].sort(1).values
    key = (ends[:, 0] * nodes + ends[:, 1]).unique()
    return torch.stack([key // nodes, key % nodes], 1)


def graph_model(model: object) -> GraphModel:
    """Return the graph model inside whatever an attack is handed.

    Raises:
        UsageError: where there is none.
    """
    parts = model.modules() if isinstance(model, nn.Module) else ()
    found = next((part for part in parts if isinstance(part, GraphModel)), None)
    if found is None:
        raise UsageError(
            "attacks on edges need a model of a graph, as the defenses gcn and stable make it "
            f"(robustkit.models.graphs.GraphModel), got {type(model).__name__}."
        )
    return found


def pair_gradient(
    model: GraphModel,
    loss: Callable[[Logits], Tensor],
    flips: Pairs,
    shares: Tensor,
) -> Tape:
    """Return the gradient of a loss of the logits [n, k] by the weight of each pair of nodes."""
    tape = Tape()
    with torch.enable_grad():
        pairs, weights = weighted(model.edges, flips, shares, model.nodes)
        loss(model.relaxed(pairs, weights, tape)).backward()
    return tape
