"""The graph convolutional network, tuned: what every defense of a graph has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustkit.core.types import Images, Labels, Logits, Mask
from robustkit.data.graphs import Graph, Pairs
from robustkit.models.graphs import GraphModel
from robustkit.registry import defenses

from ._graph import GraphConvolutional, GraphDefense, flipped, side_by_side
from ._single_flips import SingleFlips, proved


class _Plain(GraphConvolutional):
    def several(self, sets: list[Pairs]) -> Logits:
        """Return logits [s, n, k] in one pass."""
        return side_by_side(self, flipped(self, sets))

    def single_flips(self, node: int, pairs: Pairs) -> Logits:
        """Return logits [p, k] in closed form."""
        return SingleFlips(self.network, self.projected, self.edges).logits(node, pairs)

    def certificates(self) -> dict[str, object]:
        """Declare `budget-1`: every flip that can reach a node is tried, in closed form."""
        return {"budget-1": self._proved}

    def _proved(self, x: Images, y: Labels, threat: object) -> Mask:
        return proved(SingleFlips(self.network, self.projected, self.edges), None, x, y, threat)


@defenses.register("gcn", data="planted(n=60)", cites="arXiv:1609.02907")
@dataclass(frozen=True)
class Gcn(GraphDefense):
    """A graph convolutional network of two layers, tuned: softmax(Â relu(Â X W1) W2).

    Kipf & Welling 2017. 64 hidden units, dropout 0.9 and weight decay 1e-3 as in the critique of
    Mujkanovic et al. 2022: an untuned GCN flatters every defense. Differs from the paper: the words
    are not normalized, dropout is of the hidden layer alone, weights decay in both layers. Declares
    the certificate `budget-1`.

    Attributes:
        hidden, dropout, decay: of the network and its training (Adam, 0.01, at most 200 epochs,
            the best validation is kept).
    """

    hidden: Annotated[int, Field(ge=1)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.9
    decay: Annotated[float, Field(ge=0)] = 1e-3

    def fit(self, graph: Graph) -> GraphModel:
        """Train on a graph."""
        return _Plain(
            graph, hidden=self.hidden, dropout=self.dropout, decay=self.decay, seed=self.seed
        )
