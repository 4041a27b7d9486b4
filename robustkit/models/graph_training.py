"""Training of two graph convolutions on the labelled nodes of one graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from robustkit.data.graphs import Graph
from robustkit.models.message_passing import Convolutions

_EPOCHS, _PATIENCE = 200, 50


def train(
    network: Convolutions,
    project: Callable[[], Tensor],
    propagate: Callable[[Tensor], Tensor],
    graph: Graph,
    *,
    dropout: float,
    decay: float,
    generator: torch.Generator,
) -> None:
    """Train by Adam (0.01) on the training nodes; the weights of the best validation are kept.

    Training ends after 200 epochs, or 50 without a better validation.

    Args:
        project: returns X W1 of the network as it is.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=decay)
    best, kept, waited = -torch.inf, [p.detach().clone() for p in network.parameters()], 0

    def dropped(hidden: Tensor) -> Tensor:
        there = torch.rand(hidden.shape, generator=generator) >= dropout
        return hidden * there / (1 - dropout)

    for _ in range(_EPOCHS):
        logits = network(project(), propagate, dropped)
        loss = functional.cross_entropy(logits[graph.train], graph.labels[graph.train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            answer = network(project(), propagate)[graph.val]
            right = (answer.argmax(1) == graph.labels[graph.val]).float().mean()
            # The loss only decides between epochs that are right equally often.
            score = float(right - 1e-3 * functional.cross_entropy(answer, graph.labels[graph.val]))
        waited += 1
        if score > best:
            best, kept, waited = score, [p.detach().clone() for p in network.parameters()], 0
        if waited >= _PATIENCE:
            break
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), kept, strict=True):
            parameter.copy_(value).requires_grad_(False)
