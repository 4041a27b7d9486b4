"""Instance-reweighted adversarial training: doubly robust, with GAIRAT and MAIL beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Scalars
from robustkit.models.adversarial_training import ramp, worst
from robustkit.models.training import Step
from robustkit.registry import defenses

from ._kl import kl
from ._net import Net, OnNet
from ._reweighting import ascend, doubly_robust, gairat, mail, moving_log_mean, steps_to_break

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


@defenses.register("doubly_robust", cites="arXiv:2308.00311")
@dataclass(frozen=True)
class DoublyRobust(OnNet):
    """Doubly robust instance-reweighted adversarial training, linf.

    Minimizes F = r · log mean exp(l_i / r), the closed form of the KL-regularized maximum over
    weights on the simplex, l_i the loss of point i under attack (Sow et al. 2024, equations (5)
    and (6)): the weight of a point is exp(l_i / r) / u with a moving average u of mean exp(l / r).
    Differs from the paper: the inner problem is plain PGD, without log-barrier and implicit
    gradient; weights are clipped at `most` and begin after `warm_up`; eps ramps. The paper does
    not publish r and eta: the values here are ours.

    Attributes:
        r: temperature; large: plain adversarial training, small: the hardest points alone.
        eta: share of the batch in the moving average; 1: the batch alone.
        most: largest weight.
        warm_up: share of the training with equal weights.
        form: "at" weights the loss at the attacked points; "trades" adds weighted KL to clean CE.
        beta: weight of the KL term of "trades".
        steps: PGD steps of the inner maximization; 1 for guarded single steps, as in `pgd_at`.
        net: the network, small_cnn or preact_resnet.
        width: channels of its first convolution.
    """

    eps: Positive = 0.1
    r: Positive = 1.0
    eta: Share = 0.1
    most: Positive = 10.0
    warm_up: float = 0.4
    form: Literal["at", "trades"] = "at"
    beta: float = 6.0
    steps: int = 7
    net: Net = "small_cnn"
    width: int = 32

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean of the weighted losses under attack, plus clean cross-entropy in the TRADES form."""
        clean, losses = self._losses(model, x, y, step)
        log_u = moving_log_mean(losses, self.r, self.eta, step.memory.get("log_u"))
        step.memory["log_u"] = log_u
        # log u is averaged from the first step on, so that it has settled when the weights begin.
        if step.progress < self.warm_up:
            return clean + losses.mean()
        weights = doubly_robust(losses, self.r, log_u, self.most)
        return clean + (weights * losses).mean()

    def _losses(self, model: nn.Module, x: Images, y: Labels, step: Step) -> tuple[Tensor, Scalars]:
        """Return the unweighted part of the objective, and the loss of each point [b]."""
        threat = Threat("linf", ramp(self.eps, step.progress))
        if self.form == "at":
            z = worst(
                model,
                x,
                lambda logits: nn.functional.cross_entropy(logits, y, reduction="sum"),
                threat,
                self.steps,
                step,
            )
            return x.new_zeros(()), nn.functional.cross_entropy(model(z), y, reduction="none")
        with torch.no_grad():
            reference = model(x).log_softmax(1)
        z = worst(model, x, lambda logits: kl(logits, reference).sum(), threat, self.steps, step)
        logits = model(x)
        clean = nn.functional.cross_entropy(logits, y)
        return clean, self.beta * kl(model(z), logits.log_softmax(1))


@defenses.register("reweighted", cites="arXiv:2010.01736")
@dataclass(frozen=True)
class Reweighted(OnNet):
    """GAIRAT and MAIL, linf: adversarial training weighted by hardness, for comparison.

    GAIRAT (Zhang et al. 2021) weights by the PGD steps that break a point, MAIL (Wang et al. 2021,
    arXiv:2106.07904) by its margin of probabilities. Both are known to mask gradients (Hitaj et
    al. 2021, arXiv:2103.01914): evaluate them with losses that do not depend on the scale of the
    logits.
    Differs from the papers: network, optimizer and schedule are those of `pgd_at`.

    Attributes:
        warm_up: share of the training with equal weights (60 and 75 of 120 epochs in the papers).
    """

    rule: Literal["gairat", "mail"] = "gairat"
    eps: Positive = 0.1
    warm_up: float = 0.5
    steps: int = 7
    width: int = 32

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Weighted mean of the cross-entropies at the attacked points."""
        threat = Threat("linf", ramp(self.eps, step.progress))
        noise = torch.rand(x.shape, generator=step.generator).to(x.device) * 2 - 1
        path = ascend(model, x, y, threat, self.steps, threat.eps * noise)
        logits = model(path[-1])
        losses = nn.functional.cross_entropy(logits, y, reduction="none")
        if step.progress < self.warm_up:
            return losses.mean()
        if self.rule == "mail":
            return (mail(logits, y) * losses).mean()
        kappa = steps_to_break(model, path[:-1], y)
        return (gairat(kappa, self.steps) * losses).mean()
