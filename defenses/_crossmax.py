"""The rule of CrossMax, by which predictors are aggregated, and the mean that attacks follow."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor

from robustkit.errors import UsageError

Rule: TypeAlias = Literal["kth", "median"]


def crossmax(z: Tensor, rule: Rule = "kth", top: int = 3) -> Tensor:
    """Aggregate the logits of n predictors [b, n, k] to [b, k].

    Fort & Lakshminarayanan 2024, algorithm 1: subtract every predictor's largest logit, then every
    class's largest over the predictors, then take per class the value of rank `top` (the smallest
    one where there are fewer predictors) or the median (the middle of two for an even n).

    The gradient of one output reaches at most four logits under "kth": the selected one, the
    largest of its predictor, the largest of its class, and that one's predictor's largest.

    Raises:
        UsageError: for logits of another shape, an unknown rule or a rank below 1.
    """
    if z.ndim != 3 or not z.shape[1]:
        raise UsageError(
            f"crossmax: expected logits [b, n, k] of n >= 1 predictors, got {list(z.shape)}. "
            "Stack the predictors along axis 1."
        )
    if rule not in get_args(Rule) or top < 1:
        raise UsageError(
            f"crossmax: expected rule 'kth' with top >= 1, or 'median', got {rule!r} and top={top}."
        )
    # First per predictor, so that none dominates by its scale; then per class, so that none wins by
    # a single predictor.
    z = z - z.max(dim=2, keepdim=True).values
    z = z - z.max(dim=1, keepdim=True).values
    n = z.shape[1]
    if rule == "median":
        ordered = z.sort(dim=1).values
        return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    return z.topk(min(top, n), dim=1).values[:, -1]


def mean_and_own(z: Tensor, rule: Rule, top: int) -> tuple[Tensor, Tensor]:
    """Return the mean of the predictors' logits [b, n, k], and the model's own: both [b, k]."""
    return z.mean(1), crossmax(z.detach(), rule, top)
