"""Attacks on the edges of a graph: one set of flips for all nodes, or one for each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, nn

from robustkit.core.rng import generator
from robustkit.core.threat import Threat
from robustkit.core.types import Images
from robustkit.data.graphs import Pairs, decode, encode
from robustkit.errors import UsageError
from robustkit.models.graphs import graph_model, reaching
from robustkit.registry import attacks, suites
from robustkit.search.external import Batch, ExternalAttack, power
from robustkit.search.flips import open_flips
from robustkit.search.pass_counter import PassCounter

from ._flipping import Ascent, Goal, by_classes, drawn_pairs, one_by_one
from ._meta import Labelled, meta_flips

_ALL = 10**6  # points of a batch: one set of flips is for all of them


@dataclass(frozen=True)
class _OnEdges(ExternalAttack):
    """An attack that owns its loop; what it returns is judged like what any search does."""

    name: str = field(default="", init=False)
    options: tuple[tuple[str, Any], ...] = field(default=(), init=False)
    batch_size: int = field(default=_ALL, init=False)

    package = "robustkit"
    flips = True
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
        _count(model, goal)
        return encode(nodes.tolist(), edges, slots.shape[1], chosen).to(batch.x)

    @abstractmethod
    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return at most `budget` distinct pairs u < v."""


def _count(model: nn.Module, goal: Goal) -> None:
    """Add what the attack asked of the graph itself to the passes of the run."""
    if isinstance(model, PassCounter):
        model.forwards += goal.passes[0]
        model.backwards += goal.passes[1]


@attacks.register("random_flips", white_box=False, cites="")
@dataclass(frozen=True)
class RandomFlips(_OnEdges):
    """Flip pairs drawn at random, nearly all of which become new edges: what any attack must beat.

    One set of flips for all nodes.
    """

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return drawn pairs."""
        return drawn_pairs(goal.model.nodes, 2 * budget + 20, draw)[:budget]


@attacks.register("dice", white_box=False, cites="doi:10.1038/s41562-017-0290-3")
@dataclass(frozen=True)
class Dice(_OnEdges):
    """Delete edges within classes, add edges between them, at random; needs labels, no gradients.

    Waniek et al. 2018. One set of flips for all nodes. Differs from the paper: half of the budget
    is for each, and the true labels of all nodes are known.
    """

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return half deletions, half additions."""
        return by_classes(goal, goal.model.labels, budget, draw)


@attacks.register("fga", white_box=True, cites="arXiv:1809.02797")
@dataclass(frozen=True)
class Fga(_OnEdges):
    """Flip the pairs of the largest gradient of the margin, a few at a time: greedy.

    Chen et al. 2018, for all nodes at once: one set of flips. Differs from the paper: the loss is
    the mean of tanh of the margins, and a round flips several pairs.

    Attributes:
        rounds: gradients in all.
        adaptive: leave out pairs that the defense would drop once they are added.
    """

    rounds: Annotated[int, Field(ge=1)] = 25
    adaptive: bool = True

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return the flips of one round after the other."""
        return one_by_one(goal._replace(adaptive=self.adaptive), budget, self.rounds)


@attacks.register("pgd_topology", white_box=True, cites="arXiv:1906.04214")
@dataclass(frozen=True)
class PgdTopology(_OnEdges):
    """Projected gradient ascent over how far each pair is flipped, all pairs at once; then draws.

    Xu et al. 2019. One set of flips for all nodes; memory grows with n². Differs from the paper:
    the loss is the mean of tanh of the margins, steps are in units of the gradient of the best
    pairs, and the best of `samples` sets drawn from the shares and of their largest is kept.

    Attributes:
        steps: of the ascent.
        samples: sets that are drawn in the end.
        adaptive: leave out pairs that the defense would drop once they are added.
    """

    steps: Annotated[int, Field(ge=1)] = 50
    samples: Annotated[int, Field(ge=0)] = 20
    adaptive: bool = True

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return the best set that was drawn."""
        ascent = Ascent(self.steps, samples=self.samples)
        return ascent.run(goal._replace(adaptive=self.adaptive), budget, draw)


@attacks.register("prbcd", white_box=True, cites="arXiv:2110.14038")
@dataclass(frozen=True)
class PrBcd(_OnEdges):
    """PGD over a random block of pairs, most of which are drawn anew at every step (PR-BCD).

    Geisler et al. 2021, algorithm 1. One set of flips for all nodes; memory grows with the block,
    not with n². Differs from the paper: steps are in units of the gradient of the best pairs.

    Attributes:
        steps: of the ascent.
        block: pairs at a time.
        settle: last steps, in which the block stays.
        samples: sets that are drawn in the end.
        adaptive: leave out pairs that the defense would drop once they are added.
    """

    steps: Annotated[int, Field(ge=1)] = 200
    block: Annotated[int, Field(ge=2)] = 50_000
    settle: Annotated[int, Field(ge=0)] = 50
    samples: Annotated[int, Field(ge=0)] = 20
    adaptive: bool = True

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return the best set that was drawn."""
        ascent = Ascent(self.steps, self.block, self.settle, samples=self.samples)
        return ascent.run(goal._replace(adaptive=self.adaptive), budget, draw)


@attacks.register("metattack", white_box=False, cites="arXiv:1902.08412")
@dataclass(frozen=True)
class Metattack(_OnEdges):
    """Differentiate the training of a linear GCN by the graph it sees, flip the best pair, repeat.

    Zügner & Günnemann 2019 (Meta-Self): made for poisoning, with labels of the training nodes
    alone. One set of flips for all nodes; one gradient through `steps` steps of training a flip.
    Differs from the paper: one weight matrix, not two, and no test of the degree distribution.

    Attributes:
        steps: of the training that is differentiated.
    """

    steps: Annotated[int, Field(ge=1)] = 100

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return one flip after the other."""
        model = goal.model
        classes = int(model.labels.max()) + 1
        known = Labelled(model.features, model.labels, model.train_nodes, classes)
        return meta_flips(known, model.edges, budget, steps=self.steps, seed=draw.initial_seed())


@attacks.register("replay_flips", white_box=False, cites="")
@dataclass(frozen=True)
class ReplayFlips(_OnEdges):
    """Try the sets of flips of a file, as far as the budget goes, and keep the best: transfer.

    Attributes:
        file: that `robustkit.search.flips.write_flips` wrote.
    """

    file: str = ""

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return the best set."""
        return min((pairs[:budget] for pairs in open_flips(self.file).values()), key=goal.right)


@attacks.register("best_flips", white_box=True, cites="")
@dataclass(frozen=True)
class BestFlips(_OnEdges):
    """Run several attacks that choose one set of flips for all nodes, and keep the best set.

    One graph must fool all nodes: attacks one after the other, each on the nodes that are left,
    would show a graph of its own to each part of them.

    Attributes:
        attacks: their specs, separated by semicolons.
    """

    attacks: str = "random_flips;dice;fga;prbcd"

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return the set that leaves the fewest nodes right."""
        found = []
        for spec in self.attacks.split(";"):
            built = attacks.build(spec.strip())
            if not isinstance(built, _OnEdges) or not built.shared:
                raise UsageError(f"best_flips: expected attacks for edges:5%, got {spec!r}.")
            found.append(built.chosen(goal, budget, draw))
        return min(found, key=goal.right)


@attacks.register("greedy_flips", white_box=True, cites="arXiv:1805.07984")
@dataclass(frozen=True)
class GreedyFlips(_OnEdges):
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
        rows = []
        for node, label in zip(nodes.tolist(), batch.y.tolist(), strict=True):
            goal = Goal(inner.fixed, torch.tensor([node]), torch.tensor([label]), [0, 0])
            chosen = self._around(goal, threat.budget(len(inner.edges)))
            rows.append(encode([node], len(inner.edges), slots.shape[1], chosen))
            _count(model, goal)
        return torch.cat(rows).to(batch.x)

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return a set for the only node."""
        return self._around(goal, budget)

    def _around(self, goal: Goal, budget: int) -> Pairs:
        model, node, label = goal.model, int(goal.nodes), int(goal.labels)
        chosen = torch.zeros(0, 2, dtype=torch.int64)
        hops = 1 if self.tries else 2
        every = goal.allowed(reaching(model.edges, node, model.nodes, hops))
        for _ in range(budget):
            pairs = every[~(every[:, None] == chosen).all(2).any(1)]
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
            others = logits.index_fill(1, goal.labels, -torch.inf).amax(1)
            margins = logits[:, label] - others
            chosen = torch.cat([chosen, pairs[margins.argmin()][None]])
            if float(margins.min()) < 0:
                break
        return chosen


@attacks.register("exact_flip", white_box=False, cites="")
@dataclass(frozen=True)
class ExactFlip(GreedyFlips):
    """Try every single flip that can reach a node: exact for `edges@node:1`, no more beyond.

    For models of two convolutions on the given graph, or a part of it. In closed form for `gcn`.
    """

    tries: int = field(default=0, init=False)


@suites.register("edges", cites="")
@dataclass(frozen=True)
class OnEdges:
    """What a threat model of flipped edges is evaluated by.

    One set for all nodes: `best_flips`. A set for each node: `greedy_flips`.
    """

    flips = True

    def attacks(self, threat: Threat, surrogates: Sequence[str] = ()) -> Sequence[str]:
        """One attack.

        Raises:
            UsageError: for a norm.
        """
        if hasattr(threat, "shared"):
            return ["best_flips"]
        if not getattr(threat, "discrete", False):
            told = f"edges supports edges:5% and edges@node:3, got {threat.norm}."
            raise UsageError(f"the suite {told}")
        return ["greedy_flips"]
