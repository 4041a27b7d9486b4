"""GCN-SVD: the adjacency matrix is replaced by its best approximation of low rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import eigsh
from torch import Tensor

from robustkit.core.types import Logits
from robustkit.data.graphs import Graph, Pairs
from robustkit.models.graphs import GraphModel
from robustkit.models.message_passing import Propagation, Tape
from robustkit.registry import defenses

from ._graph import GraphConvolutional, GraphDefense


def largest_eigenvectors(edges: Pairs, nodes: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors [n, r] of the largest eigenvalues by size [r] of the adjacency.

    Of a symmetric matrix they make the truncated singular value decomposition.
    """
    u, v = edges.t().numpy()
    ones = np.ones(2 * len(u))
    matrix = coo_matrix((ones, (np.r_[u, v], np.r_[v, u])), (nodes, nodes)).tocsr()
    start = np.random.default_rng(0).normal(size=nodes)
    values, vectors = eigsh(matrix, k=min(rank, nodes - 1), which="LM", v0=start)
    return torch.from_numpy(vectors).float(), torch.from_numpy(values).float()


class _Frozen(Propagation):
    """Messages along B W B: the weighted graph in the span of fixed vectors, B = V Vᵀ."""

    def __init__(
        self, pairs: Pairs, weights: Tensor, nodes: int, vectors: Tensor, tape: Tape | None
    ) -> None:
        self.vectors = vectors
        super().__init__(pairs, weights, nodes, tape=tape)

    def _within(self, z: Tensor) -> Tensor:
        return self.vectors @ (self.vectors.t() @ z)

    def raw(self, z: Tensor) -> Tensor:
        """Return B W B z."""
        return self._within(super().raw(self._within(z)))


class _Fixed:
    """Messages along V diag(λ) Vᵀ, with its degrees."""

    def __init__(self, vectors: Tensor, values: Tensor) -> None:
        self.vectors, self.values = vectors, values
        ones = torch.ones(len(vectors), 1)
        self.scale = (self._raw(ones) + 1).clamp_min(1e-6) ** -0.5

    def _raw(self, z: Tensor) -> Tensor:
        return self.vectors @ (self.values[:, None] * (self.vectors.t() @ z))

    def __call__(self, hidden: Tensor) -> Tensor:
        z = self.scale * hidden
        return self.scale * (self._raw(z) + z)


class _LowRank(GraphConvolutional):
    rank: int

    def along(self, edges: Pairs) -> Callable[[Tensor], Tensor]:
        """Pass messages along the approximation."""
        return _Fixed(*largest_eigenvectors(edges, self.nodes, self.rank))

    def relaxed(self, pairs: Pairs, weights: Tensor, tape: Tape) -> Logits:
        """Return those in the eigenspace of the graph as it stands, which is held fixed."""
        whole = pairs[weights.detach() > 0.5]
        vectors, _ = largest_eigenvectors(whole, self.nodes, self.rank)
        along = _Frozen(pairs, weights, self.nodes, vectors, tape)
        logits: Logits = self.network(self.projected, along)
        return logits


@defenses.register("gcn_svd", data="planted(n=60)", cites="doi:10.1145/3336191.3371789")
@dataclass(frozen=True)
class GcnSvd(GraphDefense):
    """A GCN on the adjacency matrix of low rank that is nearest to the given one.

    Entezari et al. 2020. Tuned like `gcn`. Differs from the paper: degrees of the approximation
    are kept above zero, without which the normalization is not a number. Attacks get the gradient
    with the eigenspace held fixed.

    Attributes:
        rank: of the approximation.
    """

    rank: Annotated[int, Field(ge=1)] = 50

    def fit(self, graph: Graph) -> GraphModel:
        """Train on the approximation of a graph."""
        return _LowRank(graph, hidden=64, dropout=0.9, decay=1e-3, seed=self.seed, rank=self.rank)
