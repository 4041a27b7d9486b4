"""Per-point losses, to be maximized by a search. All take logits [b, k] and return [b].

Positive margin means misclassified. Where a loss is not defined for the number of classes (DLR
needs three, targeted DLR four), its nearest defined relative is used and said so here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from robustkit.core.types import Labels, Logits, Scalars

LossName: TypeAlias = Literal[
    "ce", "dlr", "targeted_dlr", "margin", "targeted_margin", "probability"
]
Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def _pick(logits: Logits, index: Labels) -> Scalars:
    return logits.gather(1, index.clamp_min(0)[:, None]).squeeze(1)


def _runner_up(logits: Logits, y: Labels) -> Scalars:
    """Largest logit among the wrong classes."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)


def ce(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """Cross-entropy of the true class, log(1 + Σ_{i≠y} exp(z_i − z_y)).

    In this form nothing cancels: where the model is sure, a gradient of size exp(−margin) keeps
    all its digits, and an attack still sees which way to go.
    """
    others = torch.logsumexp(logits.scatter(1, y[:, None], -torch.inf), 1)
    return torch.nn.functional.softplus(others - _pick(logits, y))


def margin(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """Largest z_i over the wrong classes, minus z_y."""
    return _runner_up(logits, y) - _pick(logits, y)


def targeted_margin(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """z_target − z_y."""
    return _pick(logits, target) - _pick(logits, y)


def probability(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """Margin of the softmax probabilities, max_i p_i − p_y (PMA, arXiv:2411.15210)."""
    return margin(logits.softmax(1), y, target)


def dlr(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """Difference of logits ratio: margin / (z_(1) − z_(3)). Croce & Hein 2020, equation (6).

    With two classes, where the ratio is undefined, it is the margin.
    """
    value = margin(logits, y, target)
    if logits.shape[1] < 3:
        return value
    top = logits.topk(3, dim=1).values
    return value / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """(z_target − z_y) / (z_(1) − (z_(3) + z_(4)) / 2). Croce & Hein 2020, equation (7).

    With three classes the denominator is z_(1) − z_(3); with two it is 1.
    """
    value = targeted_margin(logits, y, target)
    classes = logits.shape[1]
    if classes < 3:
        return value
    top = logits.topk(min(4, classes), dim=1).values
    return value / (top[:, 0] - top[:, 2:].mean(1) + 1e-12)


LOSSES: dict[str, Loss] = {
    "ce": ce,
    "dlr": dlr,
    "targeted_dlr": targeted_dlr,
    "margin": margin,
    "targeted_margin": targeted_margin,
    "probability": probability,
}
TARGETED = frozenset({"targeted_dlr", "targeted_margin"})
