"""Attacks on the edges of a graph with one set of flips for all nodes, and their suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Generator

from robustkit.core.threat import Threat
from robustkit.data.graphs import Pairs
from robustkit.errors import UsageError
from robustkit.registry import attacks, suites
from robustkit.search.flips import open_flips

from ._edge_attack import EdgeAttack
from ._flipping import Ascent, Goal, by_classes, drawn_pairs, one_by_one
from ._meta import Labelled, meta_flips


@attacks.register("random_flips", white_box=False, cites="")
@dataclass(frozen=True)
class RandomFlips(EdgeAttack):
    """Flip pairs drawn at random, nearly all of which become new edges: what any attack must beat.

    One set of flips for all nodes.
    """

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return drawn pairs."""
        return drawn_pairs(goal.model.nodes, 2 * budget + 20, draw)[:budget]


@attacks.register("dice", white_box=False, cites="doi:10.1038/s41562-017-0290-3")
@dataclass(frozen=True)
class Dice(EdgeAttack):
    """Delete edges within classes, add edges between them, at random; needs labels, no gradients.

    Waniek et al. 2018. One set of flips for all nodes. Differs from the paper: half of the budget
    is for each, and the true labels of all nodes are known.
    """

    def chosen(self, goal: Goal, budget: int, draw: Generator) -> Pairs:
        """Return half deletions, half additions."""
        return by_classes(goal, goal.model.labels, budget, draw)


@attacks.register("fga", white_box=True, cites="arXiv:1809.02797")
@dataclass(frozen=True)
class Fga(EdgeAttack):
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
class PgdTopology(EdgeAttack):
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
class PrBcd(EdgeAttack):
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
class Metattack(EdgeAttack):
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
class ReplayFlips(EdgeAttack):
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
class BestFlips(EdgeAttack):
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
            if not isinstance(built, EdgeAttack) or not built.shared:
                raise UsageError(f"best_flips: expected attacks for edges:5%, got {spec!r}.")
            found.append(built.chosen(goal, budget, draw))
        return min(found, key=goal.right)


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
