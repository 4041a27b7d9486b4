"""The label-distributionally robust loss with a KL regularizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from robustkit.core.types import Labels, Logits, Scalars
from robustkit.models.training import Step
from robustkit.registry import losses

from ._robust_labels import regularized_maximum, worst_labels


@losses.register("ldr", cites="arXiv:2112.14869")
@dataclass(frozen=True)
class Ldr:
    """LDR-KL: the worst distribution over labels within lam · KL. Logits [b, k], y [b] -> [b].

    lam · log mean_j exp((c · 1[j ≠ y] + z_j − z_y) / lam), Zhu, Ying & Yang 2023: without `c` and
    normalization, cross-entropy − log k at lam = 1, the hinge of the largest margin as lam → 0, the
    mean of z_j − z_y as lam → ∞. The normalization leaves the scale of large logits free: attack a
    model trained with it by losses that do not depend on it.

    Attributes:
        lam: weight of the KL divergence; 1 is ours.
        c: margin that wrong labels gain.
        normalized: replaces z by softplus(z) / mean softplus(z), as the authors' code does.
    """

    lam: Annotated[float, Field(gt=0)] = 1.0
    c: Annotated[float, Field(ge=0)] = 0.1
    normalized: bool = True

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return the loss of each point."""
        return self.search(logits, y)

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return what the inner maximization climbs: the loss."""
        if self.normalized:
            positive = nn.functional.softplus(logits)
            logits = positive / positive.mean(1, keepdim=True).clamp_min(1e-12)
        return regularized_maximum(worst_labels(logits, y, self.c), self.lam)
