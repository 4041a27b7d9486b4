"""The label-distributionally robust loss whose regularization adapts to each training point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.types import Labels, Logits, Scalars
from robustkit.models.training import Step
from robustkit.registry import losses

from ._robust_labels import regularized_maximum, worst_labels


@losses.register("aldr_kl", cites="arXiv:2112.14869")
@dataclass(frozen=True)
class AldrKl:
    """ALDR-KL: LDR-KL with a lam of its own for every training point. Logits [b, k], y [b] -> [b].

    LDR(lam_i) − alpha · log k · (lam_i − lam0)² / (2 · lam0), Zhu, Ying & Yang 2023: stationary
    where lam_i = lam0 · (1 − KL(p_i ‖ uniform) / (alpha · log k)), p_i = softmax of the gains over
    lam_i. Every visit of a point is one step of that fixed-point equation, without gradient. Logits
    are divided by their mean absolute value, which leaves their scale free.
    Differs from the code: p_i counts the margin c, so that the fixed point is a maximum of what
    is minimized, and is not smoothed by 1e-5. A defense whose batches have no positions in the
    training data takes one step from lam0.

    Attributes:
        lam0: lam of a point that was not visited yet.
        alpha: above 1, so that lam stays positive.
        c: margin that wrong labels gain.
    """

    lam0: Annotated[float, Field(gt=0)] = 10.0
    alpha: Annotated[float, Field(gt=1)] = 2.0
    c: Annotated[float, Field(ge=0)] = 0.1

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return the loss of each point, and keep its lam in the memory of the step."""
        gains = self._gains(logits, y)
        lam = self.adapted(gains.detach(), self._kept(gains, step))
        if step.points is not None:
            at = step.points.to(lam.device)
            step.memory["aldr_kl"] = step.memory["aldr_kl"].index_copy(0, at, lam)
        away = self.alpha * math.log(logits.shape[1]) * (lam - self.lam0).square()
        return regularized_maximum(gains, lam) - away / (2 * self.lam0)

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return LDR-KL at lam0, which needs no memory."""
        return regularized_maximum(self._gains(logits, y), self.lam0)

    def adapted(self, gains: Logits, lam: Scalars) -> Scalars:
        """Return lam after one step of the fixed-point equation [b]."""
        most = math.log(gains.shape[1])
        entropy: Tensor = torch.special.entr((gains / lam[:, None]).softmax(1)).sum(1)
        return self.lam0 * (1 - (most - entropy) / (self.alpha * most))

    def _gains(self, logits: Logits, y: Labels) -> Logits:
        scale = logits.abs().mean(1, keepdim=True).clamp_min(1e-12)
        return worst_labels(logits / scale, y, self.c)

    def _kept(self, gains: Logits, step: Step) -> Tensor:
        """Return lam of each point as the last visit left it; the table grows with the points."""
        if step.points is None:
            return gains.new_full((len(gains),), self.lam0)
        table = step.memory.get("aldr_kl", gains.new_empty(0))
        more = max(0, int(step.points.max()) + 1 - len(table))
        step.memory["aldr_kl"] = torch.cat([table, table.new_full((more,), self.lam0)])
        return step.memory["aldr_kl"][step.points.to(gains.device)]
