"""The inner maximization of adversarial training: a short projected gradient ascent.

It runs on the model in training, and so apart from the attacks of an evaluation: no verdict depends
on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from robustkit.core.threat import Threat


def ramp(eps: float, progress: float) -> float:
    """Return the radius at `progress` from 0 to 1: it rises from 5% of eps to eps at 0.19."""
    return eps * min(1.0, 0.05 + progress / 0.2)


def perturb(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    threat: Threat,
    *,
    steps: int,
    generator: Generator,
    step_size: float | None = None,
    start: float = 1.0,
) -> Tensor:
    """Maximize `loss(logits)` (a scalar, summed over the batch) inside the threat model.

    Args:
        x: clean inputs [b, *f] in [0, 1].
        step_size: in input units; 2.5 eps / steps when not given.
        start: radius of the random start, as a fraction of eps.

    Returns:
        The last iterate [b, *f], detached. Weights get no gradient here.
    """
    step_size = 2.5 * threat.eps / steps if step_size is None else step_size
    noise = torch.rand(x.shape, generator=generator).to(x.device) * 2 - 1
    z = threat.project(x + start * threat.eps * noise, x)
    with frozen_weights(model):
        for _ in range(steps):
            z.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(model(z)), z)
            with torch.no_grad():
                z = threat.project(z.detach() + step_size * threat.steepest(gradient), x)
    return z.detach()


@contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Inside, weights get no gradient, which halves the cost of a search's backward pass."""
    flags = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
