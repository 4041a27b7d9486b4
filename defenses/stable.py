"""STABLE: embeddings learned without labels decide which edges a GCN hears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustkit.core.rng import generator
from robustkit.core.types import Logits
from robustkit.data.graphs import Graph, Pairs
from robustkit.models.graph_training import train
from robustkit.models.graphs import GraphModel
from robustkit.models.message_passing import Convolutions, Propagation, Tape, Words, glorot, product
from robustkit.registry import defenses

from ._graph import GraphDefense
from ._similarity import cosine_matrix, jaccard, jaccard_matrix


class Setting(NamedTuple):
    """What STABLE is tuned by: powers and thresholds.

    Attributes:
        words: Jaccard similarity that an edge needs before embeddings are learned.
        near: cosine of the embeddings that an edge needs afterwards.
        k: nearest nodes that each node hears as well, itself among them.
        power: a, of the degrees in the propagation.
        width: of the embeddings.
        patience, epochs: of their training.
    """

    words: float
    near: float
    k: int
    power: float
    width: int
    patience: int
    epochs: int


class _Encoder(nn.Module):
    """Deep graph infomax: one convolution and PReLU; nodes are told from shuffled ones."""

    def __init__(self, words: int, width: int, draw: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(glorot(words, width, draw))
        self.bias = nn.Parameter(torch.zeros(width))
        self.slope = nn.Parameter(torch.tensor(0.25))
        self.bilinear = nn.Parameter(glorot(width, width, draw))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, projected: Tensor, along: Propagation) -> Tensor:
        """[n, width], which is X W -> embeddings [n, width]."""
        return functional.prelu(_twice(along, projected) + self.bias, self.slope)

    def score(self, embeddings: Tensor, summary: Tensor) -> Tensor:
        """[n, width] -> [n], large for nodes of this graph."""
        return embeddings @ (self.bilinear @ summary) + self.offset


def _twice(along: Propagation, hidden: Tensor) -> Tensor:
    """Pass messages with loops of weight 2, normalized by degrees that count them twice."""
    degree = along.scale**-2 + 1
    scale = degree**-0.5
    z = scale * hidden
    return scale * (along.raw(z) + 2 * z)


def _propagation(edges: Pairs, nodes: int) -> Propagation:
    return Propagation(edges, torch.ones(len(edges)), nodes)


class Stable(GraphModel):
    """The pipeline of STABLE; encoder and classifier stay as they were trained."""

    embeddings: Tensor

    def __init__(self, graph: Graph, setting: Setting, hidden: int, seed: int) -> None:
        super().__init__(graph)
        self.setting, draw = setting, generator(seed, 1, graph.nodes)
        self.words = Words(graph.features)
        self.encoder = _Encoder(graph.features.shape[1], setting.width, draw)
        self._embed_train(graph.edges, draw)
        with torch.no_grad():
            self.register_buffer("embeddings", self.embedded(graph.edges))
            refined = self.refined(graph.edges, self.embeddings)
        classes = int(graph.labels.max()) + 1
        self.network = Convolutions(setting.width, hidden, classes, draw)
        train(
            self.network, lambda: self.embeddings @ self.network.w1, refined, graph,
            dropout=0.5, decay=5e-4, generator=draw,
        )  # fmt: skip

    def _embed_train(self, edges: Pairs, draw: torch.Generator) -> None:
        """Train the encoder on the cleaned graph and two views with some of the edges put back."""
        similar = jaccard(self.features, edges) >= self.setting.words
        kept, removed = edges[similar], edges[~similar]
        clean, views = _propagation(kept, self.nodes), list[Propagation]()
        for _ in range(2):
            back = removed[torch.randperm(len(removed), generator=draw)[: len(removed) // 5]]
            views.append(_propagation(torch.cat([kept, back]), self.nodes))
        optimizer = torch.optim.Adam(self.encoder.parameters(), lr=1e-3)
        best, waited = torch.inf, 0
        truth = torch.cat([torch.ones(self.nodes), torch.zeros(self.nodes)])
        for _ in range(self.setting.epochs):
            projected = self.words.times(self.encoder.weight)
            shuffled = projected[torch.randperm(self.nodes, generator=draw)]
            real, fake = (self.encoder(part, clean) for part in (projected, shuffled))
            loss = torch.zeros(())
            for view in views:
                summary = self.encoder(projected, view).mean(0).sigmoid()
                told = torch.cat([self.encoder.score(part, summary) for part in (real, fake)])
                loss = loss + functional.binary_cross_entropy_with_logits(told, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            waited = 0 if float(loss.detach()) < best else waited + 1
            best = min(best, float(loss.detach()))
            if waited >= self.setting.patience:
                break
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(False)

    def embedded(self, edges: Pairs) -> Tensor:
        """Return the embeddings of the nodes on a graph, cleaned [n, width]."""
        kept = edges[jaccard(self.features, edges) >= self.setting.words]
        found: Tensor = self.encoder(
            self.words.times(self.encoder.weight), _propagation(kept, self.nodes)
        )
        return found

    def refined(self, edges: Pairs, embeddings: Tensor) -> _OneWay:
        """Return how messages run: edges of near ends, and from the nearest nodes, one way."""
        near = cosine_matrix(embeddings)
        kept = edges[near[edges[:, 0], edges[:, 1]] > self.setting.near]
        degree = torch.bincount(edges.flatten(), minlength=self.nodes)
        near[:, degree <= 1] = -torch.inf  # candidates
        chosen = near.topk(min(self.setting.k, self.nodes), 1).indices
        rows = torch.arange(self.nodes)[:, None].expand_as(chosen)
        added = torch.stack([rows.flatten(), chosen.flatten()], 1)
        added = added[added[:, 0] != added[:, 1]]
        return _OneWay(torch.cat([kept, kept.flip(1), added]), self.nodes, self.setting.power)

    def infer(self, edges: Pairs) -> Logits:
        """Embed, refine and classify on a graph."""
        embeddings = self.embedded(edges)
        logits: Logits = self.network(embeddings @ self.network.w1, self.refined(edges, embeddings))
        return logits

    def relaxed(self, pairs: Pairs, weights: Tensor, tape: Tape) -> Logits:
        """Return those of the last step alone, on the given pairs that are near enough.

        Embeddings are those of the graph as it stands, without gradient (BPDA).
        """
        with torch.no_grad():
            embeddings = self.embedded(_sorted(pairs[weights > 0.5], self.nodes))
        near = cosine_matrix(embeddings)[pairs[:, 0], pairs[:, 1]] > self.setting.near
        power = self.setting.power
        along = Propagation(pairs[near], weights[near], self.nodes, power=power, tape=tape)
        whole = along(torch.ones(self.nodes, 1)) if power != -0.5 else torch.ones(1)
        logits: Logits = self.network(embeddings @ self.network.w1, lambda h: along(h) / whole)
        return logits

    def survives(self) -> Tensor:
        """Return which pairs are near enough by words and by embeddings [n, n]."""
        alike = jaccard_matrix(self.features) >= self.setting.words
        return alike & (cosine_matrix(self.embeddings) > self.setting.near)


class _OneWay:
    """H -> D^a (A + I) D^a H for edges that may run one way; rows sum to 1 unless a = −0.5."""

    def __init__(self, ends: Pairs, nodes: int, power: float) -> None:
        loops = torch.arange(nodes)
        key = torch.cat([ends[:, 0] * nodes + ends[:, 1], loops * nodes + loops]).unique()
        self.index = torch.stack([key // nodes, key % nodes])
        degree = torch.bincount(self.index[0], minlength=nodes).float()
        scale = degree**power
        values = scale[self.index[0]] * scale[self.index[1]]
        if power != -0.5:
            whole = torch.zeros(nodes).index_add(0, self.index[0], values)
            values = values / whole[self.index[0]]
        self.values = values
        turned = (self.index[1] * nodes + self.index[0]).argsort()
        self.back = self.index.flip(0)[:, turned], values[turned]

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, d]."""
        found: Tensor = _Directed.apply(hidden, self)
        return found


class _Directed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, hidden: Tensor, along: _OneWay) -> Tensor:
        ctx.along = along  # type: ignore[attr-defined]
        return product(along.index, along.values, hidden, len(hidden))

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        index, values = ctx.along.back  # type: ignore[attr-defined]
        return product(index, values, grads[0], len(grads[0])), None


def _sorted(pairs: Pairs, nodes: int) -> Pairs:
    return pairs[(pairs[:, 0] * nodes + pairs[:, 1]).argsort()]


@defenses.register("stable", data="planted(n=60)", cites="arXiv:2207.00012")
@dataclass(frozen=True)
class StableDefense(GraphDefense):
    """Embeddings learned without labels say which edges to drop and which to add; then a GCN.

    Li et al. 2022 and their code. An encoder (deep graph infomax) learns on the graph without
    edges of unlike words, contrasted over two views in which a fifth of those are back. Of the
    given graph, edges with a small cosine of the embeddings go; every node hears its k nearest as
    well, one way; a GCN on the embeddings, (D + I)^a (A + I) (D + I)^a, classifies. The authors
    tune a, k, words and near to the strength of the attack, which a defender does not know: the
    defaults are their setting for 10% of the edges, whatever the attack. Differs from the code:
    loops count twice in all views alike; the encoder trains at most `epochs` epochs, not 10,000.

    Attributes:
        words, near, k, power: see `Setting`.
        width, epochs, patience: of the embeddings.
    """

    words: Annotated[float, Field(ge=0, le=1)] = 0.03
    near: Annotated[float, Field(ge=-1, le=1)] = 0.1
    k: Annotated[int, Field(ge=1)] = 7
    power: float = 0.3
    width: Annotated[int, Field(ge=1)] = 512
    epochs: Annotated[int, Field(ge=1)] = 300
    patience: Annotated[int, Field(ge=1)] = 20

    def fit(self, graph: Graph) -> GraphModel:
        """Run the pipeline on a graph."""
        setting = Setting(
            self.words, self.near, self.k, self.power, self.width, self.patience, self.epochs
        )
        return Stable(graph, setting, 16, self.seed)
