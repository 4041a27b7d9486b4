"""Adversarial training: minimize the loss at the worst point that a short PGD finds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.models.adversarial_training import perturb, ramp
from robustkit.models.training import Step
from robustkit.registry import defenses

from ._small import OnSmallCnn


@defenses.register("pgd_at", cites="arXiv:1706.06083")
@dataclass(frozen=True)
class PgdAt(OnSmallCnn):
    """PGD adversarial training, linf.

    Madry et al. 2018, equation (2.1): min E[max over the ball of CE(x', y)].
    Differs from the paper: eps rises linearly over the first fifth of the training, and the
    optimizer is AdamW with a cosine schedule.

    Attributes:
        eps: radius of the attack in training, in input units.
        steps: PGD steps of the inner maximization, each of 2.5 eps / steps.
        width: channels of the first convolution.
    """

    eps: float = 0.1
    steps: int = 7
    width: int = 32

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean cross-entropy at the attacked inputs; x [b, c, h, w], y [b]."""
        threat = Threat("linf", ramp(self.eps, step.progress))

        def loss(logits: Tensor) -> Tensor:
            return nn.functional.cross_entropy(logits, y, reduction="sum")

        z = perturb(model, x, loss, threat, steps=self.steps, generator=step.generator)
        return nn.functional.cross_entropy(model(z), y)
