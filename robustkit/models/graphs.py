"""Networks on graphs: how messages are passed, what attacks may ask, and what a forward pass is.

Weights of pairs are real numbers on the way to a gradient and 0 or 1 in a verdict. `Tape` keeps
what a backward pass needs for the gradient by every pair of nodes, those without an edge included:
a message pass is out = W z, so that the gradient by W[u, v] is a product of two rows, one of the
gradient by `out` and one of z; none of the n² entries is made before it is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustkit.core.types import Images, Logits
from robustkit.data.graphs import Graph, Pairs, decode, flips_of
from robustkit.errors import UsageError

_KEPT = 64  # answers to flip sets that are remembered


class Tape:
    """The factors of the gradient by the weight of each pair, of one backward pass."""

    def __init__(self) -> None:
        self.left: list[Tensor] = []
        self.right: list[Tensor] = []

    def at(self, pairs: Pairs) -> Tensor:
        """Return the gradient by the weights of `pairs` [p]."""
        g, z = torch.cat(self.left, 1), torch.cat(self.right, 1)
        u, v = pairs.unbind(1)
        return (g[u] * z[v]).sum(1) + (g[v] * z[u]).sum(1)

    def dense(self) -> Tensor:
        """Return the gradient by the weight of every pair [n, n], symmetric."""
        found = torch.cat(self.left, 1) @ torch.cat(self.right, 1).t()
        return found + found.t()


class _Product(torch.autograd.Function):
    """W z for a sparse, symmetric W; the backward pass writes on the tape."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, z: Tensor, index: Tensor, tape: Tape | None) -> Tensor:
        ctx.save_for_backward(values, z, index)
        ctx.tape = tape
        return product(index, values, z, len(z))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, z, index = ctx.saved_tensors
        (g,) = grads
        if ctx.tape is not None:
            ctx.tape.left.append(g.detach())
            ctx.tape.right.append(z.detach())
        by_values = (g[index[0]] * z[index[1]]).sum(1) if ctx.needs_input_grad[0] else None
        by_z = product(index, values, g, len(z)) if ctx.needs_input_grad[1] else None
        return by_values, by_z, None, None


def product(index: Tensor, values: Tensor, z: Tensor, rows: int) -> Tensor:
    """Return the sparse matrix (index [2, e], row by row, values [e]) times z: [rows, d]."""
    matrix = torch.sparse_coo_tensor(
        index, values, (rows, len(z)), check_invariants=False, is_coalesced=True
    )
    found: Tensor = torch.sparse.mm(matrix, z)
    return found


class Propagation:
    """H -> D^a (W + I) D^a H over the nodes, of a symmetric W with degrees D, loops counted.

    Kipf & Welling 2017 with a = −0.5.

    Args:
        pairs: u < v, each once [p, 2].
        weights: of the pairs [p].
        nodes: how many there are; several graphs may lie side by side.
        tape: for the gradient by pairs.
    """

    def __init__(
        self,
        pairs: Pairs,
        weights: Tensor,
        nodes: int,
        *,
        power: float = -0.5,
        tape: Tape | None = None,
    ) -> None:
        both = torch.cat([pairs, pairs.flip(1)])
        order = (both[:, 0] * nodes + both[:, 1]).argsort()
        self.index, self.tape = both[order].t().contiguous(), tape
        self.values = torch.cat([weights, weights])[order]
        ones = torch.ones(nodes, 1, dtype=weights.dtype)
        if tape is not None:
            ones.requires_grad_()  # else no backward pass would reach the tape
        self.scale = (self.raw(ones) + 1).clamp_min(1e-6) ** power

    def raw(self, z: Tensor) -> Tensor:
        """Return W z."""
        found: Tensor = _Product.apply(self.values, z, self.index, self.tape)
        return found

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, d]."""
        z = self.scale * hidden
        return self.scale * (self.raw(z) + z)


class Convolutions(nn.Module):
    """Two graph convolutions: P (relu(P X W1 + b1)) W2 + b2, P a `Propagation`.

    Args:
        generator: of the first weights (Glorot & Bengio 2010, uniform).
    """

    def __init__(self, inputs: int, hidden: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.w1 = nn.Parameter(glorot(inputs, hidden, generator))
        self.w2 = nn.Parameter(glorot(hidden, classes, generator))
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.b2 = nn.Parameter(torch.zeros(classes))

    def forward(
        self,
        projected: Tensor,
        propagate: Callable[[Tensor], Tensor],
        dropped: Callable[[Tensor], Tensor] | None = None,
    ) -> Logits:
        """[n, hidden], which is X W1 -> logits [n, k].

        Args:
            dropped: dropout of the hidden layer.
        """
        hidden = (propagate(projected) + self.b1).relu()
        hidden = hidden if dropped is None else dropped(hidden)
        return propagate(hidden @ self.w2) + self.b2


def glorot(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a weight [rows, columns], uniform."""
    width = (6 / (rows + columns)) ** 0.5
    drawn: Tensor = (2 * torch.rand(rows, columns, generator=generator) - 1) * width
    return drawn


class Words:
    """Binary words X [n, d] as a sparse matrix: X W takes a few operations a word that is there."""

    def __init__(self, features: Tensor) -> None:
        self.index = features.nonzero().t().contiguous()
        self.turned = features.t().nonzero().t().contiguous()
        self.ones, self.rows = torch.ones(self.index.shape[1]), len(features)

    def times(self, weight: Tensor) -> Tensor:
        """Return X W [n, h], differentiable in W [d, h]."""
        found: Tensor = _Words.apply(weight, self)
        return found


class _Words(torch.autograd.Function):
    """X W for a constant X."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, words: Words) -> Tensor:
        ctx.words, ctx.columns = words, len(weight)
        return product(words.index, words.ones, weight, words.rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return product(ctx.words.turned, ctx.words.ones, grads[0], ctx.columns), None


def toggled(edges: Pairs, flips: Pairs, nodes: int) -> Pairs:
    """Return the edges after `flips`, distinct pairs u < v: those that are there go."""
    old, new = (pairs[:, 0] * nodes + pairs[:, 1] for pairs in (edges, flips))
    kept = torch.cat([edges[~torch.isin(old, new)], flips[~torch.isin(new, old)]])
    return kept[(kept[:, 0] * nodes + kept[:, 1]).argsort()]


def weighted(edges: Pairs, flips: Pairs, shares: Tensor, nodes: int) -> tuple[Pairs, Tensor]:
    """Return pairs and weights of a graph some of whose pairs are flipped in part.

    Args:
        shares: how far each of `flips` is flipped [p], from 0 to 1.
    """
    old, new = (pairs[:, 0] * nodes + pairs[:, 1] for pairs in (edges, flips))
    there = torch.isin(new, old)
    weights = torch.ones(len(edges)).index_put(
        (torch.searchsorted(old, new[there]),), 1 - shares[there]
    )
    return torch.cat([edges, flips[~there]]), torch.cat([weights, shares[~there]])


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


_BATCH = 16


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


def graph_model(model: Any) -> GraphModel:
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


def train(
    network: Convolutions,
    project: Callable[[], Tensor],
    propagate: Callable[[Tensor], Tensor],
    graph: Graph,
    *,
    dropout: float,
    decay: float,
    generator: torch.Generator,
    epochs: int = 200,
    patience: int = 50,
) -> None:
    """Train by Adam (0.01) on the training nodes; the weights of the best validation are kept.

    Args:
        project: returns X W1 of the network as it is.
        patience: epochs without a better validation after which it stops.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=decay)
    best, kept, waited = -torch.inf, [p.detach().clone() for p in network.parameters()], 0

    def dropped(hidden: Tensor) -> Tensor:
        there = torch.rand(hidden.shape, generator=generator) >= dropout
        return hidden * there / (1 - dropout)

    for _ in range(epochs):
        logits = network(project(), propagate, dropped)
        loss = functional.cross_entropy(logits[graph.train], graph.labels[graph.train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            answer = network(project(), propagate)[graph.val]
            right = (answer.argmax(1) == graph.labels[graph.val]).float().mean()
            # The loss only decides between epochs that are right equally often.
            score = float(right - 1e-3 * functional.cross_entropy(answer, graph.labels[graph.val]))
        waited += 1
        if score > best:
            best, kept, waited = score, [p.detach().clone() for p in network.parameters()], 0
        if waited >= patience:
            break
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), kept, strict=True):
            parameter.copy_(value).requires_grad_(False)
