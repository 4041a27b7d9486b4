"""Adversarial training: minimize the loss at the worst point that a short PGD finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.models.adversarial_training import ramp, worst
from robustkit.models.outer_loss import OneInputLossSpec
from robustkit.models.training import Step
from robustkit.registry import defenses, losses

from ._net import Net, OnNet


@defenses.register("pgd_at", cites="arXiv:1706.06083")
@dataclass(frozen=True)
class PgdAt(OnNet):
    """PGD adversarial training, linf.

    Madry et al. 2018, equation (2.1): min E[max over the ball of CE(x', y)], or of another loss.
    Differs from the paper: eps rises linearly over the first fifth of the training, and the
    schedule is that of the network: AdamW or SGD, with a cosine.

    Attributes:
        eps: radius of the attack in training, in input units.
        steps: PGD steps of the inner maximization, each of 2.5 eps / steps; 1 for single steps that
            are guarded (see `robustkit.models.adversarial_training.worst`).
        net: the network, small_cnn or preact_resnet.
        width: channels of its first convolution.
        loss: takes the place of cross-entropy; see `robustkit list losses`. PGD climbs what rises
            with it.
    """

    eps: float = 0.1
    steps: int = 7
    net: Net = "small_cnn"
    width: int = 32
    loss: OneInputLossSpec = "ce"

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss at the attacked inputs; x [b, c, h, w], y [b]."""
        outer, threat = losses.build(self.loss), Threat("linf", ramp(self.eps, step.progress))

        def climbed(logits: Tensor) -> Tensor:
            return cast(Tensor, outer.search(logits.float(), y)).sum()

        z = worst(model, x, climbed, threat, self.steps, step)
        return cast(Tensor, outer(model(z).float(), y, step)).mean()
