"""TRADES: clean cross-entropy plus a penalty on how far the worst point moves the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from robustkit.core.losses import margin
from robustkit.core.threat import Threat
from robustkit.core.types import Labels, Logits, Scalars
from robustkit.errors import RobustkitError
from robustkit.models.adversarial_training import ramp, worst
from robustkit.models.outer_loss import LossSpec, Penalized
from robustkit.models.training import Step
from robustkit.registry import defenses, losses

from ._kl import kl
from ._net import Net, OnNet

_LEAST = 0.1  # mean clean margin


@defenses.register("trades", cites="arXiv:1901.08573")
@dataclass(frozen=True)
class Trades(OnNet):
    """TRADES, linf: CE(x) + beta · KL(p(x) ‖ p(x')), x' maximizing the KL term.

    Zhang et al. 2019, equation (5). A loss with a penalty of its own (`smooth_comp_sum`) brings it
    in place of the KL divergence.
    Differs from the paper: eps rises linearly over the first fifth of the training, the inner
    maximization starts from a uniform point of the ball, and the schedule is that of the network:
    AdamW or SGD, with a cosine.

    Attributes:
        eps: radius of the attack in training, in input units.
        beta: weight of the KL term (1 / lambda in the paper) or other penalty; larger is more
            robust and less accurate.
        steps: PGD steps of the inner maximization; 1 for guarded single steps, as in `pgd_at`.
        net: the network, small_cnn or preact_resnet.
        width: channels of its first convolution.
        loss: takes the place of cross-entropy; see `robustkit list losses`.
    """

    eps: float = 0.1
    beta: float = 6.0
    steps: int = 7
    net: Net = "small_cnn"
    width: int = 32
    loss: LossSpec = "ce"

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss on clean inputs plus beta times the mean penalty at the attacked ones.

        Raises:
            RobustkitError: at the end of an epoch of the second half, when a penalty of the loss's
                own has pressed the logits together.
        """
        outer, threat = losses.build(self.loss), Threat("linf", ramp(self.eps, step.progress))
        apart = outer.penalty if isinstance(outer, Penalized) else _divergence
        with torch.no_grad():
            reference = model(x).float()

        def climbed(logits: Tensor) -> Tensor:
            return apart(reference, logits.float(), y).sum()

        # At z = x the penalty and its gradient are 0: the noise of `worst` is needed.
        z = worst(model, x, climbed, threat, self.steps, step)
        logits = model(x).float()
        if isinstance(outer, Penalized) and step.last and step.progress >= 0.5:
            _refuse_collapse(-float(margin(logits.detach(), y, y).mean()))
        penalty = apart(logits, model(z).float(), y).mean()
        return cast(Tensor, outer(logits, y, step)).mean() + self.beta * penalty


def _divergence(logits: Logits, moved: Logits, y: Labels) -> Scalars:
    return kl(moved, logits.log_softmax(1))


def _refuse_collapse(lead: float) -> None:
    """Stop where the true class no longer leads: the penalty is least for constant logits."""
    if not lead >= _LEAST:
        raise RobustkitError(
            f"trades: the logits have collapsed under the penalty: expected a mean clean margin of "
            f"at least {_LEAST:g}, got {lead:.3g}. Take a smaller beta, or train for longer."
        )
