"""What every outer loss must do: judge each point, stay finite, and be a reason to learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from robustkit.core.rng import generator
from robustkit.integrations.conformance.fixtures import need
from robustkit.models.outer_loss import OuterLoss
from robustkit.models.training import Step
from robustkit.registry import Entry, losses

_LABELS = torch.tensor([0, 1, 2, 3, 3, 1])


def checks(entry: Entry) -> Iterator[tuple[str, Callable[[], None]]]:
    """List the checks of one loss, by name."""
    yield "judges each point", partial(_judges, entry)
    yield "stays finite", partial(_finite, entry)
    yield "is lowered by learning the labels", partial(_learns, entry)
    yield "gives the inner search a way up", partial(_searches, entry)


def _logits(scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return scale * torch.randn(len(_LABELS), 4, generator=draw)


def _step(progress: float = 0.5, draw: int = 0) -> Step:
    return Step(progress, generator(0, 1, draw), {}, torch.arange(len(_LABELS)) + 3)


def _judges(entry: Entry) -> None:
    loss: OuterLoss = losses.build(entry.name)
    for value in (loss(_logits(), _LABELS, _step()), loss.search(_logits(), _LABELS)):
        need(value.shape == (len(_LABELS),), f"expected a value a point, got {list(value.shape)}")
    again = [loss(_logits(), _LABELS, _step()) for _ in range(2)]
    need(torch.equal(*again), "the same step gave two losses: draw from step.generator")


def _finite(entry: Entry) -> None:
    loss: OuterLoss = losses.build(entry.name)
    for logits in (_logits(), _logits(1e4), torch.zeros(len(_LABELS), 4)):
        for value in (loss(query := logits.requires_grad_(), _LABELS, _step()),
                      loss.search(query, _LABELS)):  # fmt: skip
            (gradient,) = torch.autograd.grad(value.sum(), query, retain_graph=True)
            sound = bool(value.isfinite().all() and gradient.isfinite().all())
            need(sound, f"not finite for logits up to {float(logits.detach().abs().max()):.0f}")


def _learns(entry: Entry) -> None:
    """Train the logits themselves: they must come to name the labels."""
    loss: OuterLoss = losses.build(entry.name)
    logits, memory = _logits().requires_grad_(), dict[str, Tensor]()
    for number in range(100):
        step = replace(_step(number / 100, number), memory=memory)
        (gradient,) = torch.autograd.grad(loss(logits, _LABELS, step).mean(), logits)
        logits = (logits - 0.1 * gradient.sign()).detach().requires_grad_()
    right = int((logits.argmax(1) == _LABELS).sum())
    need(right == len(_LABELS), f"after 100 steps {right} of {len(_LABELS)} points are right")


def _searches(entry: Entry) -> None:
    """Climb from confident logits: they must come to name other labels."""
    loss: OuterLoss = losses.build(entry.name)
    sure = 40 * torch.nn.functional.one_hot(_LABELS, 4)
    logits = (sure + _logits()).requires_grad_()
    for _ in range(100):
        (gradient,) = torch.autograd.grad(loss.search(logits, _LABELS).sum(), logits)
        logits = (logits + gradient.sign()).detach().requires_grad_()
    wrong = int((logits.argmax(1) != _LABELS).sum())
    need(wrong == len(_LABELS), f"after 100 sign steps {wrong} of {len(_LABELS)} points are wrong")
