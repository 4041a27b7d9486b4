"""How sets of flips are found: by chance, by classes, one gradient after another, by ascent."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from robustkit.core.losses import margin
from robustkit.core.types import Logits, Mask
from robustkit.data.graphs import Pairs
from robustkit.models.graphs import GraphModel, pair_gradient
from robustkit.models.message_passing import Tape, toggled

_DENSE = 64  # candidates a node from which on the gradient of all pairs is cheaper


class Goal(NamedTuple):
    """What one set of flips is to do: to have `nodes` of a model misclassified.

    Attributes:
        adaptive: whether to leave out pairs that the defense would drop once they are added.
        passes: nodes asked about so far, forward and backward.
    """

    model: GraphModel
    nodes: Tensor
    labels: Tensor
    passes: list[int]
    adaptive: bool = True

    def loss(self, logits: Logits) -> Tensor:
        """Return the mean of tanh of the margins, which lost and safe nodes hardly move."""
        return margin(logits[self.nodes], self.labels, self.labels).tanh().mean()

    def right(self, flips: Pairs) -> int:
        """Return how many nodes are classified rightly on the flipped graph."""
        self.passes[0] += len(self.nodes)
        with torch.no_grad():
            logits = self.model.infer(toggled(self.model.edges, flips, self.model.nodes))
        return int((logits[self.nodes].argmax(1) == self.labels).sum())

    def gradient(self, flips: Pairs, shares: Tensor) -> Tape:
        """Return the gradient of the loss by pairs, where `flips` are flipped so far."""
        self.passes[0] += len(self.nodes)
        self.passes[1] += len(self.nodes)
        return pair_gradient(self.model, self.loss, flips, shares)

    def there(self, pairs: Pairs) -> Mask:
        """Return which pairs are edges."""
        n, edges = self.model.nodes, self.model.edges
        known, asked = edges[:, 0] * n + edges[:, 1], pairs[:, 0] * n + pairs[:, 1]
        place = torch.searchsorted(known, asked).clamp_max(len(known) - 1)
        there: Mask = known[place] == asked
        return there

    def allowed(self, pairs: Pairs) -> Pairs:
        """Return the pairs whose flip does not come to nothing: deletions always are among them."""
        survives = self.model.survives() if self.adaptive else None
        if survives is None:
            return pairs
        return pairs[survives[pairs[:, 0], pairs[:, 1]] | self.there(pairs)]

    def slope(self, tape: Tape, pairs: Pairs) -> Tensor:
        """Return the gradient of the loss by how far each pair is flipped [p]."""
        many = len(pairs) > _DENSE * self.model.nodes
        found = tape.dense()[pairs[:, 0], pairs[:, 1]] if many else tape.at(pairs)
        return found * torch.where(self.there(pairs), -1.0, 1.0)


def every_pair(nodes: int) -> Pairs:
    """Return all pairs u < v."""
    return torch.triu_indices(nodes, nodes, 1).t()


def drawn_pairs(nodes: int, count: int, draw: Generator) -> Pairs:
    """Return up to `count` distinct pairs u < v, drawn uniformly."""
    ends = torch.randint(nodes, (count, 2), generator=draw).sort(1).values
    ends = ends[ends[:, 0] != ends[:, 1]]
    key = (ends[:, 0] * nodes + ends[:, 1]).unique()
    key = key[torch.randperm(len(key), generator=draw)]
    return torch.stack([key // nodes, key % nodes], 1)


def by_classes(goal: Goal, labels: Tensor, budget: int, draw: Generator) -> Pairs:
    """Return half deletions within classes, half additions between them (DICE).

    Args:
        labels: of all nodes.
    """
    edges = goal.model.edges
    own = edges[labels[edges[:, 0]] == labels[edges[:, 1]]]
    gone = own[torch.randperm(len(own), generator=draw)[: budget // 2]]
    pairs = drawn_pairs(goal.model.nodes, 20 * budget + 100, draw)
    other = pairs[(labels[pairs[:, 0]] != labels[pairs[:, 1]]) & ~goal.there(pairs)]
    return torch.cat([gone, other[: budget - len(gone)]])


def one_by_one(goal: Goal, budget: int, rounds: int) -> Pairs:
    """Return the flips of the largest gradient, a few at a time."""
    pairs = goal.allowed(every_pair(goal.model.nodes))
    chosen = torch.zeros(0, 2, dtype=torch.int64)
    free = torch.ones(len(pairs), dtype=torch.bool)
    for left in range(rounds, 0, -1):
        more = -(-(budget - len(chosen)) // left)
        if not more:
            break
        tape = goal.gradient(chosen, torch.ones(len(chosen)))
        slope = goal.slope(tape, pairs).masked_fill(~free, -torch.inf)
        best = slope.topk(min(more, int(free.sum()))).indices
        free[best] = False
        chosen = torch.cat([chosen, pairs[best]])
    return chosen


def onto_budget(shares: Tensor, budget: int) -> Tensor:
    """Return the nearest shares in [0, 1] that sum to at most the budget: clip(s − μ), μ ≥ 0."""
    if float(shares.clamp(0, 1).sum()) <= budget:
        return shares.clamp(0, 1)
    low, high = float(shares.min()) - 1, float(shares.max())
    low = max(low, 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        if float((shares - middle).clamp(0, 1).sum()) > budget:
            low = middle
        else:
            high = middle
    return (shares - high).clamp(0, 1)


class Ascent(NamedTuple):
    """Projected gradient ascent over how far pairs are flipped.

    Attributes:
        steps: in all.
        block: pairs at a time; 0: all pairs.
        settle: last steps, without redrawn pairs.
        size: of the first step, in units of the mean gradient of the best pairs.
        samples: sets that are drawn from the shares in the end.
    """

    steps: int
    block: int = 0
    settle: int = 0
    size: float = 0.5
    samples: int = 20

    def run(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return the best set that was drawn."""
        nodes = goal.model.nodes
        pairs = goal.allowed(
            drawn_pairs(nodes, self.block, draw) if self.block else every_pair(nodes)
        )
        shares = torch.zeros(len(pairs))
        for step in range(self.steps):
            moved = shares > 0
            tape = goal.gradient(pairs[moved], shares[moved])
            slope = goal.slope(tape, pairs)
            unit = slope.topk(min(budget, len(slope))).values.abs().mean().clamp_min(1e-12)
            shares = onto_budget(shares + self.size / (step + 1) ** 0.5 * slope / unit, budget)
            if self.block and step < self.steps - self.settle:
                pairs, shares = self._redrawn(goal, pairs, shares, draw)
        return self._drawn(goal, pairs, shares, budget, draw)

    def _redrawn(
        self, goal: Goal, pairs: Pairs, shares: Tensor, draw: Generator
    ) -> tuple[Pairs, Tensor]:
        """Keep the pairs that are flipped the farthest, half of them at most; draw the others."""
        n = goal.model.nodes
        best = shares.argsort(descending=True)[: self.block // 2]
        best = best[shares[best] > 0]
        fresh = goal.allowed(drawn_pairs(n, self.block - len(best), draw))
        known = pairs[best][:, 0] * n + pairs[best][:, 1]
        fresh = fresh[~torch.isin(fresh[:, 0] * n + fresh[:, 1], known)]
        return torch.cat([pairs[best], fresh]), torch.cat([shares[best], torch.zeros(len(fresh))])

    def _drawn(
        self, goal: Goal, pairs: Pairs, shares: Tensor, budget: int, draw: Generator
    ) -> Pairs:
        """Return the best of the sets that the shares suggest, and of those drawn by them."""
        inside = shares > 0
        pairs, shares = pairs[inside], shares[inside]
        chosen = [pairs[shares.argsort(descending=True, stable=True)[:budget]]]
        for _ in range(self.samples):
            taken = pairs[torch.rand(len(shares), generator=draw) < shares]
            if 0 < len(taken) <= budget:
                chosen.append(taken)
        return min(chosen, key=goal.right)
