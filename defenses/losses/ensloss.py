"""EnsLoss: a calibrated loss drawn anew for every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from robustkit.core.types import Labels, Logits, Scalars
from robustkit.models.training import Step
from robustkit.registry import losses

from ._odds import odds


@losses.register("ensloss", cites="arXiv:2409.00908")
@dataclass(frozen=True)
class EnsLoss:
    """EnsLoss: derivatives of a convex, calibrated loss, drawn for each batch. [b, k], [b] -> [b].

    Dai 2024, for two classes: the margins s_i of a batch get derivatives g_i < 0 that rise with s,
    as those of a convex loss with a negative derivative at 0 do; beyond s = 1 they are divided by
    s, so that the loss is bounded below. Returned is g_i · s_i, with no gradient through g_i: the
    value means nothing, its gradient is the loss's. −g_i is an inverse Box-Cox transform of a
    normal draw, at most 1, plus 1e-6.
    Differs from the paper: with more classes, s = z_y − log Σ_{j≠y} exp(z_j), which is ours; the
    parameter of the transform is drawn anew after every `period` of the training, not after a
    number of epochs.

    Attributes:
        period: share of the training with one parameter of the transform, 0 at first, then uniform
            in (−1, 1); 0.1 is ours.
    """

    period: Annotated[float, Field(gt=0, le=1)] = 0.1

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return g · s of each point."""
        s = -odds(logits, y)
        return self.derivatives(s.detach(), step) * s

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return −s: every loss that can be drawn rises with it."""
        return odds(logits, y)

    def derivatives(self, s: Scalars, step: Step) -> Scalars:
        """Draw the derivative of the loss at each margin of the batch [b]."""
        power = self._power(step)
        normal = torch.randn(len(s), generator=step.generator)
        g = (-inverse_box_cox(normal, power)).sort().values.clamp_min(-1)
        found = torch.empty_like(s)
        found[s.argsort()] = g.to(s)
        return found / s.clamp_min(1) - 1e-6

    def _power(self, step: Step) -> float:
        """Return the parameter of this part of the training; every step draws one, used or not."""
        drawn = 2 * torch.rand((), generator=step.generator) - 1
        part = float(int(step.progress / self.period + 1e-9))
        kept = step.memory.get("ensloss")
        if kept is None or float(kept[0]) != part:
            kept = torch.tensor([part, float(drawn) if part else 0.0])
            step.memory["ensloss"] = kept
        return float(kept[1])


def inverse_box_cox(values: Tensor, power: float) -> Tensor:
    """(1 + power · v)₊^(1 / power); exp(v) at power 0."""
    if power == 0:
        return values.exp()
    base = (1 + power * values).clamp_min(0)
    return base.pow(1 / power)
