"""The inner maximization of adversarial training: a short projected gradient ascent, or one step.

It runs on the model in training, and so apart from the attacks of an evaluation: no verdict depends
on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from robustkit.core.threat import Threat
from robustkit.models.training import Step

_CHECKED, _STEPS, _FALLBACK = 1 / 64, 5, 3  # share of the batches, steps of a check and after one
_PAUSE = 0.05  # of the training
_GAP = 0.5  # in units of the loss: what counts as collapse at least
_UNTIL, _SEEN = "single_step.until", "log.collapses"


def ramp(eps: float, progress: float) -> float:
    """Return the radius at `progress` from 0 to 1: it rises from 5% of eps to eps at 0.19."""
    return eps * min(1.0, 0.05 + progress / 0.2)


def worst(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    threat: Threat,
    steps: int,
    step: Step,
) -> Tensor:
    """Return the points [b, *f] to train on: `perturb` of `steps`, or `single` for one step.

    Under single steps a network may learn to deceive that one step (catastrophic overfitting). One
    batch in 64 is checked: where the mean loss at the points of five steps of PGD exceeds that at
    the single step's by more than itself and by more than 0.5, three steps of PGD take over for the
    next twentieth of the training (the thresholds are ours; Li et al. 2020, arXiv:2006.03089,
    return to single steps likewise). `log.json` then tells the progress at which it was seen.
    """
    if steps > 1:
        return perturb(model, x, loss, threat, steps=steps, generator=step.generator)
    if float(step.memory.get(_UNTIL, -1.0)) > step.progress:
        return perturb(model, x, loss, threat, steps=_FALLBACK, generator=step.generator)
    z = single(model, x, loss, threat, step.generator)
    if float(torch.rand((), generator=step.generator)) >= _CHECKED:
        return z
    searched = perturb(model, x, loss, threat, steps=_STEPS, generator=step.generator)
    with torch.no_grad():
        reached, deceived = (float(loss(model(points))) / len(x) for points in (searched, z))
    if reached - deceived <= max(deceived, _GAP):
        return z
    step.memory[_UNTIL] = torch.tensor(step.progress + _PAUSE)
    seen = step.memory.get(_SEEN, torch.empty(0)).cpu()
    step.memory[_SEEN] = torch.cat([seen, torch.tensor([step.progress])])
    return searched


def single(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    threat: Threat,
    generator: Generator,
) -> Tensor:
    """Take one step of eps from a noisy input, without projection on the ball, clipped to the box.

    N-FGSM, de Jorge et al. 2022 (arXiv:2202.01181), algorithm 1, with noise of up to 2 eps. The
    points [b, *f] are to train on alone: they may lie outside the ball.
    """
    noise = torch.rand(x.shape, generator=generator).to(x.device) * 2 - 1
    z = (x + 2 * threat.eps * noise).clamp_(*threat.box)
    with frozen_weights(model):
        z.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(model(z)), z)
    return (z.detach() + threat.eps * threat.steepest(gradient)).clamp_(*threat.box)


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
