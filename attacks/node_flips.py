"""Attacks on the edges of a graph with a set of flips for each node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, nn

from robustkit.core.losses import margin
from robustkit.core.rng import generator
from robustkit.core.types import Images
from robustkit.data.graphs import Pairs, decode, encode
from robustkit.models.graphs import graph_model, reaching
from robustkit.registry import attacks
from robustkit.search.external import Batch

from ._edge_attack import EdgeAttack, count_passes
from ._flipping import Goal


@attacks.register("greedy_flips", white_box=True, cites="arXiv:1805.07984")
@dataclass(frozen=True)
class GreedyFlips(EdgeAttack):
    """For each node by itself: rank flips by the gradient, try the best, keep the worst for it.

    After Zügner et al. 2018. Candidates have an end at the node or its neighbours. `tries=0` tries
    all flips that can reach the node: exact for one flip (`exact_flip`).

    Attributes:
        tries: flips that the model is asked about at each step.
    """

    batch_size: int = field(default=25, init=False)
    tries: Annotated[int, Field(ge=0)] = 16

    shared = False

    def perturb(self, model: nn.Module, batch: Batch, threat: Any) -> Images:
        """Return each node under a set of flips of its own."""
        inner, (nodes, _, slots) = graph_model(model), decode(batch.x.cpu())
        rows, draw = [], generator(batch.seed, 0, 0)
        for node, label in zip(nodes.tolist(), batch.y.tolist(), strict=True):
            goal = Goal(inner.fixed, torch.tensor([node]), torch.tensor([label]), [0, 0])
            chosen = self.chosen(goal, threat.budget(len(inner.edges)), draw)
            rows.append(encode([node], len(inner.edges), slots.shape[1], chosen))
            count_passes(model, goal)
        return torch.cat(rows).to(batch.x)

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return a set for the only node."""
        model, node = goal.model, int(goal.nodes)
        chosen = torch.zeros(0, 2, dtype=torch.int64)
        hops = 1 if self.tries else 2
        every = goal.allowed(reaching(model.edges, node, model.nodes, hops))
        for _ in range(budget):
            pairs = every[~(every[:, None] == chosen).all(2).any(1)]
            if not len(pairs):
                break
            if self.tries and len(pairs) > self.tries:
                tape = goal.gradient(chosen, torch.ones(len(chosen)))
                pairs = pairs[goal.slope(tape, pairs).topk(self.tries).indices]
            goal.passes[0] += len(pairs)
            if len(chosen):
                sets = [torch.cat([chosen, pair[None]]) for pair in pairs]
                with torch.no_grad():
                    parts = [model.several(sets[k : k + 16]) for k in range(0, len(sets), 16)]
                logits = torch.cat(parts)[:, node]
            else:
                logits = model.single_flips(node, pairs)
            labels = goal.labels.expand(len(logits))
            broken = margin(logits, labels, labels)
            chosen = torch.cat([chosen, pairs[broken.argmax()][None]])
            if float(broken.max()) > 0:
                break
        return chosen


@attacks.register("exact_flip", white_box=False, cites="")
@dataclass(frozen=True)
class ExactFlip(GreedyFlips):
    """Try every single flip that can reach a node: exact for `edges@node:1`, no more beyond.

    For models of two convolutions on the given graph, or a part of it. In closed form for `gcn`.
    """

    tries: int = field(default=0, init=False)
