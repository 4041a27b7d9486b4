"""GCN-Jaccard: edges between nodes that share no words are dropped before the GCN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from robustkit.core.types import Images, Labels, Logits, Mask
from robustkit.data.graphs import Graph, Pairs
from robustkit.models.graphs import GraphModel
from robustkit.models.message_passing import Propagation, Tape
from robustkit.registry import defenses

from ._graph import GraphConvolutional, GraphDefense, flipped, side_by_side
from ._similarity import jaccard, jaccard_matrix
from ._single_flips import SingleFlips, proved


class _Cleaned(GraphConvolutional):
    """A GCN on the edges whose ends are similar.

    Attributes:
        least: Jaccard similarity of the words that an edge needs.
    """

    least: float

    def cleaned(self, edges: Pairs) -> Pairs:
        """Return the edges that are kept."""
        return edges[jaccard(self.features, edges) >= self.least]

    def along(self, edges: Pairs) -> Callable[[Tensor], Tensor]:
        """Pass messages along those."""
        return super().along(self.cleaned(edges))

    def several(self, sets: list[Pairs]) -> Logits:
        """Return logits [s, n, k] in one pass."""
        return side_by_side(self, [self.cleaned(one) for one in flipped(self, sets)])

    def relaxed(self, pairs: Pairs, weights: Tensor, tape: Tape) -> Logits:
        """Return those of a weighted graph without the edges that would be dropped."""
        kept = jaccard(self.features, pairs) >= self.least
        logits: Logits = self.network(
            self.projected, Propagation(pairs[kept], weights[kept], self.nodes, tape=tape)
        )
        return logits

    def survives(self) -> Tensor:
        """Return which pairs are similar enough [n, n]."""
        return jaccard_matrix(self.features) >= self.least

    def certificates(self) -> dict[str, object]:
        """Declare `budget-1`: every flip that can reach a node is tried, in closed form."""
        return {"budget-1": self._proved}

    def _proved(self, x: Images, y: Labels, threat: object) -> Mask:
        flips = SingleFlips(self.network, self.projected, self.cleaned(self.edges))
        return proved(flips, self.survives(), x, y, threat)


@defenses.register("gcn_jaccard", data="planted(n=60)", cites="arXiv:1903.01610")
@dataclass(frozen=True)
class GcnJaccard(GraphDefense):
    """A GCN that first drops edges between nodes with hardly a word in common.

    Wu et al. 2019, section 5. Tuned like `gcn`. Declares the certificate `budget-1`.

    Attributes:
        least: Jaccard similarity that an edge needs.
    """

    least: Annotated[float, Field(ge=0, le=1)] = 0.01

    def fit(self, graph: Graph) -> GraphModel:
        """Train on a graph, cleaned."""
        return _Cleaned(graph, hidden=64, dropout=0.9, decay=1e-3, seed=self.seed, least=self.least)
