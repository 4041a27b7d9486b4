"""A GCN whose mean over neighbours is a soft median: what lies far from the middle counts less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustkit.data.graphs import Graph, Pairs
from robustkit.models.graphs import GraphModel
from robustkit.registry import defenses

from ._graph import GraphConvolutional, GraphDefense


class SoftMedian:
    """H -> Σ_u a_vu · Σ_u s_vu a_vu H_u / Σ_u s_vu a_vu, a the normalized adjacency with loops.

    s = softmax(−‖H_u − median‖ / (T √d)), the median of the neighbours weighted by a, in each
    dimension. Neighbours are padded to the next power of two of their number.

    Args:
        temperature: T.
    """

    def __init__(self, edges: Pairs, nodes: int, temperature: float) -> None:
        self.temperature, loops = temperature, torch.arange(nodes)
        rows = torch.cat([edges[:, 0], edges[:, 1], loops])
        cols = torch.cat([edges[:, 1], edges[:, 0], loops])
        order = rows.argsort(stable=True)
        rows, cols = rows[order], cols[order]
        degree = torch.bincount(rows, minlength=nodes)
        a = (degree[rows] * degree[cols]).float() ** -0.5
        first = degree.cumsum(0) - degree
        place = torch.arange(len(rows)) - first[rows]
        size = 2 ** degree.double().log2().ceil().long()
        self.groups: list[tuple[Tensor, Tensor, Tensor]] = []
        for width in size.unique().tolist():
            inside = (size == width).nonzero()[:, 0]
            number = torch.full((nodes,), -1).index_put((inside,), torch.arange(len(inside)))
            own = number[rows] >= 0
            near = torch.zeros(len(inside), width, dtype=torch.int64)
            share = torch.zeros(len(inside), width)
            near[number[rows[own]], place[own]] = cols[own]
            share[number[rows[own]], place[own]] = a[own]
            self.groups.append((inside, near, share))

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, d]."""
        answer = torch.zeros_like(hidden)
        for inside, near, share in self.groups:
            answer = answer.index_copy(0, inside, self._aggregated(hidden[near], share))
        return answer

    def _aggregated(self, messages: Tensor, share: Tensor) -> Tensor:
        """[g, w, d], a [g, w] -> [g, d]."""
        with torch.no_grad():  # where the median is; which message it is has no gradient
            masked = messages.masked_fill((share == 0)[:, :, None], torch.inf)
            order = masked.argsort(1)
            passed = share[:, :, None].expand_as(masked).gather(1, order).cumsum(1)
            middle = (passed < passed[:, -1:] / 2).sum(1, keepdim=True)
            chosen = order.gather(1, middle)
        median = messages.gather(1, chosen)
        apart = (messages - median).square().sum(2).add(1e-12).sqrt()
        weight = (-apart / (self.temperature * messages.shape[2] ** 0.5)).masked_fill(
            share == 0, -torch.inf
        )
        weighted = weight.softmax(1) * share
        total = share.sum(1, keepdim=True)
        mean = (weighted[:, :, None] * messages).sum(1) / weighted.sum(1, keepdim=True)
        found: Tensor = total * mean
        return found


class _Median(GraphConvolutional):
    temperature: float

    def along(self, edges: Pairs) -> Callable[[Tensor], Tensor]:
        """Pass messages by the soft median."""
        return SoftMedian(edges, self.nodes, self.temperature)


@defenses.register("soft_median", data="planted(n=60)", cites="arXiv:2110.14038")
@dataclass(frozen=True)
class SoftMedianGcn(GraphDefense):
    """A GCN that aggregates by a soft median, which no few neighbours can move far.

    Geisler et al. 2021, section 4. Tuned like `gcn`. Attacks get the gradient of a GCN with the
    same weights, whose aggregation is the mean.

    Attributes:
        temperature: near 0 the median itself, large the mean.
        hidden: units.
    """

    temperature: Annotated[float, Field(gt=0)] = 0.5
    hidden: Annotated[int, Field(ge=1)] = 32

    def fit(self, graph: Graph) -> GraphModel:
        """Train on a graph."""
        return _Median(
            graph, hidden=self.hidden, dropout=0.5, decay=1e-3, seed=self.seed,
            temperature=self.temperature,
        )  # fmt: skip
