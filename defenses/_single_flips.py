"""Every single flip of a graph convolutional network, in closed form: the certificate `budget-1`.

The logits of node v depend on the rows of v and its neighbours, and on the degrees of theirs. One
flip of (a, b) changes two degrees and two entries; all that it does to v is a sum of a few terms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkit.core.types import Images, Labels, Logits, Mask
from robustkit.data.graphs import Pairs, decode

from ._graph import GraphConvolutional

_CHUNK = 20_000
_TIE = 1e-4  # of the logits' size: closer margins are not proved, for rounding


def proved(
    model: GraphConvolutional,
    edges: Pairs,
    survives: Tensor | None,
    x: Images,
    y: Labels,
    threat: Any,
) -> Mask:
    """Return which points keep their label under every flip of one pair [b]; false beyond one.

    Args:
        edges: that messages run along.
        survives: which pairs do so once they are added [n, n]; others change nothing. None: all.
    """
    holds = torch.zeros(len(x), dtype=torch.bool)
    if not 1 <= threat.eps < 2:
        return holds
    for row, (node, label) in enumerate(zip(decode(x.cpu())[0].tolist(), y.tolist(), strict=True)):
        pairs = reaching(edges, node, model.nodes)
        if survives is not None:
            pairs = pairs[survives[pairs[:, 0], pairs[:, 1]]]
        nothing = torch.tensor([[node, node]])
        margins = []
        for part in torch.cat([nothing, pairs]).split(_CHUNK):
            logits = single_flips(model, edges, node, part)
            other = logits.clone()
            other[:, label] = -torch.inf
            slack = _TIE * logits.abs().amax(1)
            margins.append((logits[:, label] - other.amax(1) - slack).amin())
        holds[row] = bool(torch.stack(margins).amin() > 0)
    return holds.to(x.device)


def reaching(edges: Pairs, node: int, nodes: int) -> Pairs:
    """Return the pairs u < v whose flip can change the answer to a node: an end within two hops."""
    matrix = torch.zeros(nodes, dtype=torch.bool)
    matrix[node] = True
    for _ in range(2):
        near = matrix[edges]
        matrix[edges[near[:, 0], 1]] = True
        matrix[edges[near[:, 1], 0]] = True
    inside = matrix.nonzero()[:, 0]
    ends = torch.cartesian_prod(inside, torch.arange(nodes))
    ends = ends[ends[:, 0] != ends[:, 1]].sort(1).values
    key = (ends[:, 0] * nodes + ends[:, 1]).unique()
    return torch.stack([key // nodes, key % nodes], 1)


def single_flips(
    model: GraphConvolutional, edges: Pairs, node: int, pairs: Pairs
) -> Logits:
    """Return the logits of `node` under the flip of each pair alone [p, k]; (v, v): none."""
    network, n = model.network, model.nodes
    a, b = pairs.unbind(1)
    key = edges[:, 0] * n + edges[:, 1]
    sign = 1 - 2 * torch.isin(a * n + b, key).float()
    sign = torch.where(a == b, 0.0, sign)
    degree = torch.bincount(edges.flatten(), minlength=n).float() + 1
    scale = degree**-0.5
    new_a, new_b = (degree[a] + sign) ** -0.5, (degree[b] + sign) ** -0.5
    m, near = model.projected, _neighbours(edges, node)
    answer = torch.zeros(len(pairs), len(network.b2))
    # Node v and its neighbours, and the far end of a flipped pair of v's own.
    far = torch.where(a == node, b, torch.where(b == node, a, node))
    for w in [*near, None]:
        place = far if w is None else torch.full_like(a, w)
        hidden = _hidden(model, edges, place, (a, b, sign, new_a, new_b), scale)
        own = torch.where(place == a, new_a, torch.where(place == b, new_b, scale[place]))
        if w is None:
            there = torch.where((far != node) & (sign > 0), 1.0, 0.0)
        else:
            gone = ((a == node) & (b == w)) | ((b == node) & (a == w))
            there = torch.where(gone & (sign < 0), 0.0, 1.0)
        act = (own[:, None] * hidden + network.b1).relu()
        answer += (there * own)[:, None] * (act @ network.w2)
    self_scale = torch.where(a == node, new_a, torch.where(b == node, new_b, scale[node]))
    del m
    return self_scale[:, None] * answer + network.b2


def _neighbours(edges: Pairs, node: int) -> list[int]:
    own = edges[(edges == node).any(1)]
    return [node, *own[own != node].tolist()]


def _hidden(
    model: GraphConvolutional,
    edges: Pairs,
    place: Tensor,
    flip: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    scale: Tensor,
) -> Tensor:
    """Return the sum over the neighbours u of `place` (and itself) of scale[u] · m[u] [p, h]."""
    a, b, sign, new_a, new_b = flip
    m, n = model.projected, model.nodes
    whole = scale[:, None] * m
    sums = whole.clone()
    sums.index_add_(0, edges[:, 0], whole[edges[:, 1]])
    sums.index_add_(0, edges[:, 1], whole[edges[:, 0]])
    key = torch.cat([edges[:, 0] * n + edges[:, 1], edges[:, 1] * n + edges[:, 0]])
    hears_a = (torch.isin(place * n + a, key) | (place == a)).float()
    hears_b = (torch.isin(place * n + b, key) | (place == b)).float()
    active = (sign != 0).float()
    found = sums[place]
    found = found + (active * hears_a * (new_a - scale[a]))[:, None] * m[a]
    found = found + (active * hears_b * (new_b - scale[b]))[:, None] * m[b]
    found = found + (sign * (place == a) * new_b)[:, None] * m[b]
    return found + (sign * (place == b) * new_a)[:, None] * m[a]
