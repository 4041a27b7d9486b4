"""Every single flip of a graph convolutional network, in closed form: the certificate `budget-1`.

The logits of node v depend on the rows of v and its neighbours, and on the degrees of theirs. A
flip of (a, b) changes two degrees and two entries: what it does to v is a sum of a few terms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustkit.core.types import Images, Labels, Logits, Mask
from robustkit.data.graphs import Pairs, decode
from robustkit.models.graphs import reaching
from robustkit.models.message_passing import Convolutions

_CHUNK = 20_000
_TIE = 1e-4  # of the logits' size: closer margins are not proved, for rounding


class _Flip(NamedTuple):
    """Pairs (a, b) [p], +1 where the flip adds an edge, −1 where it removes one, and new scales."""

    a: Tensor
    b: Tensor
    sign: Tensor
    scale_a: Tensor
    scale_b: Tensor


class SingleFlips:
    """The answers to every single flip of one graph.

    Args:
        network, projected: the network and its X W1 [n, h].
        edges: that messages run along.
    """

    def __init__(self, network: Convolutions, projected: Tensor, edges: Pairs) -> None:
        self.network, self.m, self.edges, self.n = network, projected, edges, len(projected)
        self.degree = torch.bincount(edges.flatten(), minlength=self.n).float() + 1
        self.scale = self.degree**-0.5
        both = torch.cat([edges, edges.flip(1)])
        self.key = (both[:, 0] * self.n + both[:, 1]).sort().values
        z = self.scale[:, None] * projected
        self.sums = z.index_add(0, both[:, 0], z[both[:, 1]])  # loops included

    def logits(self, node: int, pairs: Pairs) -> Logits:
        """Return the logits of `node` under the flip of each pair alone [p, k]; (v, v): none."""
        a, b = pairs.unbind(1)
        sign = torch.where(a == b, 0.0, 1 - 2 * self._joined(a, b).float())
        scales = [(self.degree[end] + sign) ** -0.5 for end in (a, b)]
        flip = _Flip(a, b, sign, *scales)
        own = self.edges[(self.edges == node).any(1)]
        answer = torch.zeros(len(pairs), len(self.network.b2))
        for near in [node, *own[own != node].tolist()]:
            gone = ((a == node) & (b == near)) | ((b == node) & (a == near))
            answer += self._message(torch.full_like(a, near), flip, ~gone)
        far = torch.where(a == node, b, torch.where(b == node, a, node))
        answer += self._message(far, flip, (far != node) & (sign > 0))
        return self._scale(torch.full_like(a, node), flip)[:, None] * answer + self.network.b2

    def _joined(self, u: Tensor, v: Tensor) -> Mask:
        place = torch.searchsorted(self.key, u * self.n + v).clamp_max(len(self.key) - 1)
        joined: Mask = self.key[place] == u * self.n + v
        return joined

    def _scale(self, place: Tensor, flip: _Flip) -> Tensor:
        other = torch.where(place == flip.b, flip.scale_b, self.scale[place])
        return torch.where(place == flip.a, flip.scale_a, other)

    def _message(self, place: Tensor, flip: _Flip, heard: Mask) -> Logits:
        """Return scale[w] · relu(scale[w] Σ_u scale[u] m[u] + b1) W2 of w = `place`, if heard."""
        a, b, sign, scale_a, scale_b = flip
        share_a = torch.where(self._joined(place, a) | (place == a), scale_a - self.scale[a], 0)
        share_b = torch.where(self._joined(place, b) | (place == b), scale_b - self.scale[b], 0)
        share_a = (share_a + sign * scale_a * (place == b)) * (sign != 0)
        share_b = (share_b + sign * scale_b * (place == a)) * (sign != 0)
        total = self.sums[place] + share_a[:, None] * self.m[a] + share_b[:, None] * self.m[b]
        scale = self._scale(place, flip)[:, None]
        hidden = (scale * total + self.network.b1).relu()
        return heard[:, None] * scale * (hidden @ self.network.w2)


def proved(flips: SingleFlips, survives: Tensor | None, x: Images, y: Labels, threat: Any) -> Mask:
    """Return which points keep their label under every flip of one pair [b]; false beyond one.

    Args:
        survives: which pairs the defense keeps once they are added [n, n]: others change nothing.
    """
    holds = torch.zeros(len(x), dtype=torch.bool)
    if not 1 <= threat.eps < 2:
        return holds
    for row, (node, label) in enumerate(zip(decode(x.cpu())[0].tolist(), y.tolist(), strict=True)):
        pairs = reaching(flips.edges, node, flips.n)
        if survives is not None:
            pairs = pairs[survives[pairs[:, 0], pairs[:, 1]]]
        margins = []
        for part in torch.cat([torch.tensor([[node, node]]), pairs]).split(_CHUNK):
            logits = flips.logits(node, part)
            other = logits.index_fill(1, torch.tensor([label]), -torch.inf)
            slack = _TIE * logits.abs().amax(1)
            margins.append((logits[:, label] - other.amax(1) - slack).amin())
        holds[row] = bool(torch.stack(margins).amin() > 0)
    return holds.to(x.device)
