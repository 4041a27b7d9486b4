"""Messages along the edges of a graph, and gradients by the weight of every pair of nodes.

Weights of pairs are real numbers on the way to a gradient and 0 or 1 in a verdict. `Tape` keeps
what a backward pass needs for the gradient by every pair of nodes, those without an edge included:
a message pass is out = W z, so that the gradient by W[u, v] is a product of two rows, one of the
gradient by `out` and one of z; none of the n² entries is made before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustkit.core.types import Logits
from robustkit.data.graphs import Pairs


class Tape:
    """The factors of the gradient by the weight of each pair, of one backward pass."""

    def __init__(self) -> None:
        self.left: list[Tensor] = []
        self.right: list[Tensor] = []

    def at(self, pairs: Pairs) -> Tensor:
        """Return the gradient by the weights of `pairs` [p]."""
        g, z = torch.cat(self.left, 1), torch.cat(self.right, 1)
        u, v = pairs.unbind(1)
        return (g[u] * z[v]).sum(1) + (g[v] * z[u]).sum(1)

    def dense(self) -> Tensor:
        """Return the gradient by the weight of every pair [n, n], symmetric."""
        found = torch.cat(self.left, 1) @ torch.cat(self.right, 1).t()
        return found + found.t()


class _Product(torch.autograd.Function):
    """W z for a sparse, symmetric W; the backward pass writes on the tape."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, z: Tensor, index: Tensor, tape: Tape | None) -> Tensor:
        ctx.save_for_backward(values, z, index)
        ctx.tape = tape
        return product(index, values, z, len(z))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, z, index = ctx.saved_tensors
        (g,) = grads
        if ctx.tape is not None:
            ctx.tape.left.append(g.detach())
            ctx.tape.right.append(z.detach())
        by_values = (g[index[0]] * z[index[1]]).sum(1) if ctx.needs_input_grad[0] else None
        by_z = product(index, values, g, len(z)) if ctx.needs_input_grad[1] else None
        return by_values, by_z, None, None


def product(index: Tensor, values: Tensor, z: Tensor, rows: int) -> Tensor:
    """Return the sparse matrix (index [2, e], row by row, values [e]) times z: [rows, d]."""
    matrix = torch.sparse_coo_tensor(
        index, values, (rows, len(z)), check_invariants=False, is_coalesced=True
    )
    found: Tensor = torch.sparse.mm(matrix, z)
    return found


class Propagation:
    """H -> D^a (W + I) D^a H over the nodes, of a symmetric W with degrees D, loops counted.

    Kipf & Welling 2017 with a = −0.5.

    Args:
        pairs: u < v, each once [p, 2].
        weights: of the pairs [p].
        nodes: how many there are; several graphs may lie side by side.
        tape: for the gradient by pairs.
    """

    def __init__(
        self,
        pairs: Pairs,
        weights: Tensor,
        nodes: int,
        *,
        power: float = -0.5,
        tape: Tape | None = None,
    ) -> None:
        both = torch.cat([pairs, pairs.flip(1)])
        order = (both[:, 0] * nodes + both[:, 1]).argsort()
        self.index, self.tape = both[order].t().contiguous(), tape
        self.values = torch.cat([weights, weights])[order]
        ones = torch.ones(nodes, 1, dtype=weights.dtype)
        if tape is not None:
            ones.requires_grad_()  # else no backward pass would reach the tape
        self.scale = (self.raw(ones) + 1).clamp_min(1e-6) ** power

    def raw(self, z: Tensor) -> Tensor:
        """Return W z."""
        found: Tensor = _Product.apply(self.values, z, self.index, self.tape)
        return found

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, d]."""
        z = self.scale * hidden
        return self.scale * (self.raw(z) + z)


class Convolutions(nn.Module):
    """Two graph convolutions: P (relu(P X W1 + b1)) W2 + b2, P a `Propagation`.

    Args:
        generator: of the first weights (Glorot & Bengio 2010, uniform).
    """

    def __init__(self, inputs: int, hidden: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.w1 = nn.Parameter(glorot(inputs, hidden, generator))
        self.w2 = nn.Parameter(glorot(hidden, classes, generator))
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.b2 = nn.Parameter(torch.zeros(classes))

    def forward(
        self,
        projected: Tensor,
        propagate: Callable[[Tensor], Tensor],
        dropped: Callable[[Tensor], Tensor] | None = None,
    ) -> Logits:
        """[n, hidden], which is X W1 -> logits [n, k].

        Args:
            dropped: dropout of the hidden layer.
        """
        hidden = (propagate(projected) + self.b1).relu()
        hidden = hidden if dropped is None else dropped(hidden)
        return propagate(hidden @ self.w2) + self.b2


def glorot(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Draw a weight [rows, columns], uniform."""
    width = (6 / (rows + columns)) ** 0.5
    drawn: Tensor = (2 * torch.rand(rows, columns, generator=generator) - 1) * width
    return drawn


class Words:
    """Binary words X [n, d] as a sparse matrix: X W takes a few operations a word that is there."""

    def __init__(self, features: Tensor) -> None:
        self.index = features.nonzero().t().contiguous()
        self.turned = features.t().nonzero().t().contiguous()
        self.ones, self.rows = torch.ones(self.index.shape[1]), len(features)

    def times(self, weight: Tensor) -> Tensor:
        """Return X W [n, h], differentiable in W [d, h]."""
        found: Tensor = _Words.apply(weight, self)
        return found


class _Words(torch.autograd.Function):
    """X W for a constant X."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, words: Words) -> Tensor:
        ctx.words, ctx.columns = words, len(weight)
        return product(words.index, words.ones, weight, words.rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return product(ctx.words.turned, ctx.words.ones, grads[0], ctx.columns), None


def toggled(edges: Pairs, flips: Pairs, nodes: int) -> Pairs:
    """Return the edges after `flips`, distinct pairs u < v: those that are there go."""
    old, new = (pairs[:, 0] * nodes + pairs[:, 1] for pairs in (edges, flips))
    kept = torch.cat([edges[~torch.isin(old, new)], flips[~torch.isin(new, old)]])
    return kept[(kept[:, 0] * nodes + kept[:, 1]).argsort()]


def weighted(edges: Pairs, flips: Pairs, shares: Tensor, nodes: int) -> tuple[Pairs, Tensor]:
    """Return pairs and weights of a graph some of whose pairs are flipped in part.

    Args:
        shares: how far each of `flips` is flipped [p], from 0 to 1.
    """
    old, new = (pairs[:, 0] * nodes + pairs[:, 1] for pairs in (edges, flips))
    there = torch.isin(new, old)
    weights = torch.ones(len(edges)).index_put(
        (torch.searchsorted(old, new[there]),), 1 - shares[there]
    )
    return torch.cat([edges, flips[~there]]), torch.cat([weights, shares[~there]])
