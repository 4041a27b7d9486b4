"""Metattack (Meta-Self) through a linear GCN: the gradient of a training by the graph, cheaply.

With one weight matrix, logits are F W, F = Â Â X. Training sees the labelled rows of F alone, so
that a hundred steps, and their backward pass, are products of [labelled, d] matrices. The gradient
by F then has dense rows at labelled nodes and rank k elsewhere, and each part of the gradient by Â
is a product with the sparse X or Â X.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from robustkit.core.rng import generator
from robustkit.data.graphs import Pairs
from robustkit.models.message_passing import glorot

Array = NDArray[np.float32]


class Labelled(NamedTuple):
    """What the attacker knows beside the edges: words, the labels to train on, and who has them."""

    features: Tensor
    labels: Tensor
    train: Tensor
    classes: int


def meta_gradient(
    known: Labelled, edges: Pairs, goal: Tensor, *, steps: int, seed: int
) -> tuple[Array, Tensor]:
    """Return the gradient by each pair [n, n] of the loss on unlabelled nodes, and all logits.

    Args:
        goal: labels of all nodes [n], of which those that are not trained on count.
        steps: of gradient descent (0.1, momentum 0.9) from drawn weights.
    """
    n = len(known.labels)
    words = sparse.csr_matrix(known.features.numpy().astype(np.float32))
    matrix, scale = _normalized(edges, n)
    once = (matrix @ words).tocsr()
    whole = torch.from_numpy((matrix @ once).toarray())
    rows = known.train
    own = whole[rows].requires_grad_()
    weight = _trained(own, known, steps, seed)
    logits = whole @ weight
    # Unlabelled rows of F take part in the loss alone: their gradient is G Wᵀ, of rank k.
    final = logits.detach().requires_grad_()
    free = torch.ones(n, dtype=torch.bool)
    free[rows] = False
    (g,) = torch.autograd.grad(functional.cross_entropy(final[free], goal[free]), final)
    (by_own,) = torch.autograd.grad((g.t() @ whole.detach() * weight.t()).sum(), own)
    w, g_free = weight.detach().numpy(), g.numpy()
    left = by_own.numpy()
    found = np.zeros((n, n), dtype=np.float32)
    # Γ (Â X)ᵀ, then (Â Γ) Xᵀ, each for the rows of the labelled and for G Wᵀ.
    found[rows.numpy()] = (once @ left.T).T
    found += g_free @ (once @ w).T
    spread = matrix[:, rows.numpy()] @ left
    reached = np.flatnonzero(np.abs(spread).sum(1))
    found[reached] += (words @ spread[reached].T).T
    found += (matrix @ g_free) @ (words @ w).T
    return _by_pair(found, matrix, scale), logits.detach()


def _trained(own: Tensor, known: Labelled, steps: int, seed: int) -> Tensor:
    """Return W after the descent, as a function of the labelled rows of F."""
    truth = functional.one_hot(known.labels[known.train], known.classes).float()
    weight = glorot(own.shape[1], known.classes, generator(seed, 0, own.shape[1]))
    speed = torch.zeros_like(weight)
    for _ in range(steps):
        error = (own @ weight).softmax(1) - truth
        speed = 0.9 * speed + own.t() @ error / len(truth)
        weight = weight - 0.1 * speed
    return weight


def _normalized(edges: Pairs, n: int) -> tuple[sparse.csr_matrix, Array]:
    u, v = edges.t().numpy()
    loops = np.arange(n)
    rows, cols = np.r_[u, v, loops], np.r_[v, u, loops]
    scale = (np.bincount(rows, minlength=n) ** -0.5).astype(np.float32)
    return sparse.csr_matrix((scale[rows] * scale[cols], (rows, cols)), (n, n)), scale


def _by_pair(found: Array, matrix: sparse.csr_matrix, scale: Array) -> Array:
    """Return the gradient by the weight of each pair from that by Â: its degrees take part."""
    both: Array = found + found.T
    # dÂ[u, v] / d scale[u] = Â[u, v] / scale[u], scale = degree^-1/2; loops count twice in both.
    by_scale = np.asarray(matrix.multiply(both).sum(1)).ravel() / scale
    by_degree = -0.5 * by_scale * scale**3
    both *= scale[:, None] * scale
    both += by_degree[:, None] + by_degree
    return both


def meta_flips(
    known: Labelled,
    edges: Pairs,
    budget: int,
    *,
    steps: int = 100,
    seed: int = 0,
    begun: Pairs | None = None,
) -> Pairs:
    """Return the flips of Meta-Self in the order in which they are chosen [budget, 2].

    Unlabelled nodes get the labels that the model predicts on the clean graph. No flip is taken
    back, and none leaves a node without an edge.

    Args:
        begun: flips that were chosen before; the search goes on from there.
    """
    n = len(known.labels)
    _, logits = meta_gradient(known, edges, known.labels, steps=steps, seed=seed)
    goal = logits.argmax(1)
    goal[known.train] = known.labels[known.train]
    there = np.zeros((n, n), dtype=bool)
    there[tuple(edges.t().numpy())] = True
    taken = np.tri(n, dtype=bool)  # the lower half and the diagonal
    chosen = [] if begun is None else [tuple(pair) for pair in begun.tolist()]
    for u, v in chosen:
        there[u, v], taken[u, v] = ~there[u, v], True
    for step in range(len(chosen), budget):
        now = torch.from_numpy(np.argwhere(there))
        score, _ = meta_gradient(known, now, goal, steps=steps, seed=seed + 1 + step)
        score *= np.where(there, -1.0, 1.0)
        degree = there.sum(0) + there.sum(1)
        last = there & ((degree[:, None] == 1) | (degree == 1))
        score[taken | last] = -np.inf
        u, v = divmod(int(score.argmax()), n)
        there[u, v], taken[u, v] = ~there[u, v], True
        chosen.append((u, v))
    return torch.tensor(chosen[:budget], dtype=torch.int64).reshape(-1, 2)
