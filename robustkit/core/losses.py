"""Per-point losses for a search to maximize, and their gradient by the input.

All losses take logits [b, k] and return [b]; a positive margin means misclassified. Where a loss
is not defined for the number of classes (DLR needs three, targeted DLR four), the docstring names
what is computed instead.
"""

from __future__ import annotations

import math
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
_SURE, _CERTAIN = 64.0, 12.0  # nats from which on losses are straight; see there


def _pick(logits: Logits, index: Labels) -> Scalars:
    return logits.gather(1, index.clamp_min(0)[:, None]).squeeze(1)


def _runner_up(logits: Logits, y: Labels) -> Scalars:
    """Largest logit among the wrong classes."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)


def ce(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """Cross-entropy of the true class, log(1 + exp(u)) with u = log Σ_{i≠y} exp(z_i − z_y).

    Written by u, so that nothing cancels: at confident points the gradient, of size exp(u), keeps
    all its digits, where softmax minus one-hot would round to zero. Below u = −64 the loss goes on
    in a straight line: exp(u) would be 0 from −104 on. Its order of two points and the direction of
    its gradient are those of the cross-entropy.
    """
    others = torch.logsumexp(logits.scatter(1, y[:, None], -torch.inf), 1)
    odds = others - _pick(logits, y)
    near = odds.clamp_min(-_SURE)
    # Not softplus: like sigmoid and pow, it rounds the last elements of a tensor otherwise than
    # those that fill a vector register, so that a point's loss would depend on its batch.
    value = torch.maximum(near, torch.zeros_like(near)) + (-near.abs()).exp().log1p()
    return value + math.exp(-_SURE) * (odds - near)


def margin(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """Largest z_i over the wrong classes, minus z_y."""
    return _runner_up(logits, y) - _pick(logits, y)


def targeted_margin(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """z_target − z_y."""
    return _pick(logits, target) - _pick(logits, y)


def probability(logits: Logits, y: Labels, target: Labels) -> Scalars:
    """Margin of the softmax probabilities, max_i p_i − p_y (PMA, arXiv:2411.15210).

    Within exp(−12) of −1 and 1 it goes on in a straight line, in log(1 + margin) and
    log(1 − margin): in float32 it would be constant there.
    """
    # By differences to z_y: 1 ± margin are then ratios of two sums of exponentials, and the
    # gradients of their logarithms do not cancel.
    shifted = logits - _pick(logits, y)[:, None]
    other, runner = shifted.scatter(1, y[:, None], -torch.inf).max(1, keepdim=True)
    whole = shifted.logsumexp(1)
    above = shifted.scatter(1, y[:, None], other).logsumexp(1) - whole
    below = shifted.scatter(1, runner, 0.0).logsumexp(1) - whole
    return torch.where(other[:, 0] < 0, _expm1(above), -_expm1(below))


def _expm1(w: Scalars) -> Scalars:
    near = w.clamp_min(-_CERTAIN)
    return near.expm1() + math.exp(-_CERTAIN) * (w - near)


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
