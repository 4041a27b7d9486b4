"""Per-point losses for a search to maximize, and their gradient by the input.

All losses take logits [b, k] and return [b]; a positive margin means misclassified. Where a loss
is not defined for the number of classes (DLR needs three, targeted DLR four), the docstring names
what is computed instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from robustkit.core.types import Images, Labels, Logits, Model, Scalars

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

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

    Written as softplus of a difference, so that nothing cancels: at confident points the gradient,
    of size exp(−margin), keeps all its digits, where softmax minus one-hot would round to zero.
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


def lead(logits: Logits) -> Scalars:
    """Largest minus second largest logit [b]: the margin of the predicted class."""
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def input_gradient(
    model: Model, x: Images, value: Callable[[Logits], Scalars] = lead
) -> tuple[Logits, Images | None]:
    """Return the logits of `model` at `x` [b, *f], and the gradient of Σ value(logits) by `x`.

    One forward pass per input, and one backward pass unless no logit requires a gradient. Both
    results are detached; logits are float32. The gradient is as autograd gives it: it may hold NaN.

    Args:
        value: of the logits of each row [b, k] -> [b]; rows that do not influence each other make
            the gradient of the sum that of every row.

    Returns:
        The gradient is None where `value` does not depend on `x` by autograd.
    """
    query = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model(query).float()
        total = value(logits).sum()
        if not total.requires_grad:
            return logits.detach(), None
        (gradient,) = torch.autograd.grad(total, query, allow_unused=True)
    return logits.detach(), gradient
