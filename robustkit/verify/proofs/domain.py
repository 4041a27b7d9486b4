"""Bounds on a network over one point's ball, in float64, rounded outward.

They hold for whatever order float32 sums in: a value v of a node is W v' + b + e with |e| at most
gamma (|W| |v'| + |b|), gamma = n u / (1 − n u) (Higham 2002, section 3.1). The error of the float64
arithmetic here is bounded likewise, with `self.fine` in place of gamma.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.verify.proofs.network import Network

U32, U64, TINY = 2.0**-24, 2.0**-53, 1e-280


def gamma(n: int, unit: float) -> float:
    """Bound the relative error of n roundings."""
    return n * unit / (1 - n * unit)


class Ball(NamedTuple):
    """Every x' with ‖x' − x‖ ≤ eps and lower ≤ x' ≤ upper; x [1, *f]."""

    x: Tensor
    norm: str
    eps: float
    lower: float
    upper: float


class Domain:
    """Intervals of all nodes [1, *shape] that hold on the ball, or on a part of it."""

    def __init__(self, net: Network, ball: Ball, known: list[tuple[Tensor, Tensor]]) -> None:
        self.net, self.ball, self.known = net, ball, known
        largest = max(torch.Size(node.shape).numel() for node in net.nodes)
        self.fine = gamma(4 * (largest + len(net.nodes) + 64), U64)
        self.boxes = list[tuple[Tensor, Tensor]]()
        self.size, self.slack = list[Tensor](), list[Tensor]()
        for at in range(len(net.nodes)):
            low, high, slack = self._step(at)
            if low.shape != (1, *net.nodes[at].shape):
                raise ValueError(f"node {at} of the network returns {tuple(low.shape[1:])}")
            if at < len(known):
                low, high = torch.maximum(low, known[at][0]), torch.minimum(high, known[at][1])
            self.boxes.append((low, high))
            self.size.append(torch.maximum(low.abs(), high.abs()))
            self.slack.append(slack + self.fine * self.size[at] + TINY)
        self.empty = any(bool((low > high).any()) for low, high in self.boxes)
        low, high = (torch.cat([self.boxes[at][s].flatten(1) for at in net.spans], 1)
                     for s in (0, 1))  # fmt: skip
        self.on, self.open = low >= 0, (low < 0) & (high > 0)
        self.chord = torch.where(self.open, high / (high - low), self.on.double())
        above = torch.maximum(-self.chord * low, (1 - self.chord) * high) * (1 + 2.0**-50)
        self.shift = torch.where(self.open, above + TINY, 0.0)
        self.steep = (high > -low).double()  # the usual slope: CROWN's

    def cut(self, at: int, low: Tensor, high: Tensor) -> Domain:
        """Return the domain with the interval of a node intersected with another."""
        part = torch.maximum(self.boxes[at][0], low), torch.minimum(self.boxes[at][1], high)
        return Domain(self.net, self.ball, [*self.boxes[:at], part, *self.boxes[at + 1 :]])

    def _step(self, at: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the interval of a node from those of its inputs, and what float32 adds."""
        node, ball = self.net.nodes[at], self.ball
        sources, none = [self.boxes[i] for i in node.inputs], torch.zeros(())
        if node.op == "input":
            low, high = (torch.nextafter(ball.x + s * ball.eps, ball.x + 2 * s * ball.eps)
                         for s in (-1, 1))  # fmt: skip
            return low.clamp_min(ball.lower), high.clamp_max(ball.upper), none
        low, high = sources[0]
        if node.op == "relu":
            return low.relu(), high.relu(), none
        if node.op == "concat":
            low, high = (torch.cat(part, **node.options) for part in zip(*sources, strict=True))
            return low, high, none
        if node.op == "add":
            sign, other = node.options["sign"], sources[1][:: node.options["sign"]]
            low, high = low + sign * other[0], high + sign * other[1]
            off = (2 * U32 + self.fine) * torch.maximum(low.abs(), high.abs())
            return low - off, high + off, off
        weight = node.weight.abs()
        off = node.push(self.size[node.inputs[0]], weight) + node.bulk
        terms = node.terms(int((self.size[node.inputs[0]] > 0).sum()))
        off = (gamma(terms + 2, U32) + self.fine) * off * (1 + self.fine) + TINY
        center = node.push((low + high) / 2, node.weight) + node.bias
        radius = node.push((high - low) / 2, weight) + off
        return center - radius, center + radius, off

    def bound(
        self, start: int, wanted: Tensor, alpha: Tensor, added: Tensor, units: Tensor,
        signs: Tensor, *, early: bool = False,
    ) -> Tensor:  # fmt: skip
        """Bound `wanted` · (node `start`) + `added` · (inputs of ReLUs) from below [b].

        Args:
            wanted: [b, *shape].
            alpha: slopes below the ReLUs, in [0, 1] [b or 1, width].
            added: [b, width].
            units, signs: [b, s]: row r holds where signs · (input of ReLU `units`) ≥ 0; 0: all.
            early: take the intervals of inner nodes where they show more.
        """
        b, best = len(wanted), wanted.new_full((len(wanted),), -torch.inf)
        slope = torch.where(self.open, alpha, self.on.double()).expand(b, -1).clone()
        chord, shift = (p.expand(b, -1).clone() for p in (self.chord, self.shift))
        row, split = (signs != 0).nonzero()[:, 0], units[signs != 0]
        slope[row, split] = chord[row, split] = (signs[signs != 0] > 0).double()
        shift[row, split] = 0.0
        carried, total, size = {start: wanted}, wanted.new_zeros(b), wanted.new_zeros(b)
        for at in range(start, -1, -1):
            node, a = self.net.nodes[at], carried.pop(at, None)
            if at in self.net.spans and at < start:
                a = added[:, self.net.spans[at]].view(-1, *node.shape) + (0.0 if a is None else a)
            if a is None:
                continue
            if at == 0 or (early and not carried):
                least, magnitude = self._least(at, a)
                best = torch.maximum(best, total + least - self.fine * (size + magnitude) - TINY)
            lost = _weigh(a, self.slack[at])
            total, size = total - lost, size + lost
            parts = [a]
            if node.op == "relu":
                span, flat = self.net.spans[node.inputs[0]], a.flatten(1)
                up, down = flat.clamp_min(0), flat.clamp_max(0)
                fall = (down * shift[:, span]).sum(1)
                total, size = total + fall, size - fall
                parts = [(up * slope[:, span] + down * chord[:, span]).view_as(a)]
            elif node.op == "add":
                parts = [a, node.options["sign"] * a]
            elif node.op == "concat":
                axis, nodes = node.options["axis"], self.net.nodes
                parts = list(a.split([nodes[i].shape[axis - 1] for i in node.inputs], axis))
            elif at:
                gain = (a * node.bias).flatten(1).sum(1)
                total, size = total + gain, size + gain.abs()
                parts = [node.pull(a, self.net.nodes[node.inputs[0]].shape)]
            for source, part in zip(node.inputs, parts if at else [], strict=True):
                if source in carried:  # the sum of two rounds once more
                    part = carried[source] + part
                    size = size + _weigh(part, self.size[source])
                carried[source] = part
        return best

    def _least(self, at: int, a: Tensor) -> tuple[Tensor, Tensor]:
        """Bound a · (node) from below [b], and the size of what was added up for that.

        Ball and box together, by the Lagrangian a · (x + d) + price (‖d‖^p − eps^p) / p: its least
        d has a closed form, every price ≥ 0 gives a bound, and the best is sought by bisection.
        """
        low, high = self.boxes[at]
        least, size = torch.where(a > 0, a * low, a * high).flatten(1).sum(1), self.size[at]
        if at or self.ball.norm == "linf":
            return least, _weigh(a, size)
        x, eps, p = self.ball.x, self.ball.eps, 2 if self.ball.norm == "l2" else 1
        price, top = 0.0 * least, a.flatten(1).norm(2 if p == 2 else torch.inf, 1) / eps ** (p - 1)
        size = _weigh(a, size + x.abs()) + top * ((high - low).norm(p) ** p + eps**p)
        for halving in range(1, 31):
            each = (price + top / 2**halving).clamp_min(TINY).view(-1, *[1] * (a.ndim - 1))
            far, cost = a / each if p == 2 else a * (a.abs() > each) / TINY, each.flatten()
            d = torch.clamp(-far, low - x, high - x)
            reach = d.flatten(1).norm(p, 1) ** p
            price = torch.where(reach > eps**p, cost, price)
            gain = (a * (x + d)).flatten(1).sum(1)
            least = torch.maximum(least, gain + cost * (reach - eps**p) / p)
        return least, size


def _weigh(a: Tensor, size: Tensor) -> Tensor:
    """|a| · size [b]."""
    return (a.abs() * size).flatten(1).sum(1)
