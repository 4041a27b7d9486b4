"""TRADES: clean cross-entropy plus a penalty on how far the worst point moves the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.models.adversarial_training import perturb, ramp
from robustkit.models.training import Step
from robustkit.registry import defenses

from ._small import OnSmallCnn


@defenses.register("trades", cites="arXiv:1901.08573")
@dataclass(frozen=True)
class Trades(OnSmallCnn):
    """TRADES, linf: CE(x) + beta · KL(p(x) ‖ p(x')), x' maximizing the KL term.

    Zhang et al. 2019, equation (5).
    Differs from the paper: eps rises linearly over the first fifth of the training, the inner
    maximization starts from a uniform point of the ball, and the optimizer is AdamW with a cosine
    schedule.

    Attributes:
        eps: radius of the attack in training, in input units.
        beta: weight of the KL term (1 / lambda in the paper); larger is more robust and less
            accurate.
        steps: PGD steps of the inner maximization.
        width: channels of the first convolution.
    """

    eps: float = 0.1
    beta: float = 6.0
    steps: int = 7
    width: int = 32

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """CE on clean inputs plus beta times the mean KL divergence at the attacked ones."""
        threat = Threat("linf", ramp(self.eps, step.progress))
        with torch.no_grad():
            reference = model(x).log_softmax(1)

        def divergence(logits: Tensor) -> Tensor:
            moved = logits.log_softmax(1)
            return nn.functional.kl_div(moved, reference, log_target=True, reduction="sum")

        # At z = x the KL divergence and its gradient are 0: the random start of `perturb` is
        # needed.
        z = perturb(model, x, divergence, threat, steps=self.steps, generator=step.generator)
        logits = model(x)
        moved = model(z).log_softmax(1)
        kl = nn.functional.kl_div(
            moved, logits.log_softmax(1), log_target=True, reduction="batchmean"
        )
        return nn.functional.cross_entropy(logits, y) + self.beta * kl
