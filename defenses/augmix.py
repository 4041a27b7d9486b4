"""AugMix: consistent answers on an image and on mixtures of its simple distortions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkit.core.types import Logits, Scalars
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses

from ._augmix import augmented
from ._net import OnNet


@defenses.register("augmix", cites="arXiv:1912.02781", against="corruption")
@dataclass(frozen=True)
class AugMix(OnNet):
    """AugMix, against common corruptions: CE(x) + weight · JS(p(x), p(x~1), p(x~2)).

    Hendrycks et al. 2020, equations (1) to (3): x~ is a mixture of three chains of one to three
    operations on x, and of x. No defense against attacks: nothing in it sees an adversary.
    Differs from the paper: the network and the optimizer are those of `undefended`, and the
    schedule is short.

    Attributes:
        weight: of the Jensen-Shannon divergence.
        width: channels of the first convolution.
    """

    weight: Annotated[float, Field(ge=0)] = 12.0
    width: int = 32

    @property
    def recipe(self) -> Recipe:
        """Four passes, each over three versions of every image."""
        return Recipe(epochs=4)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean cross-entropy of x [b, c, h, w] plus the weighted divergence of three answers."""
        views = torch.cat([x, *augmented(x, step.points, step.generator, 2)])
        logits = model(views).float().chunk(3)
        apart = jensen_shannon(logits).mean()
        return nn.functional.cross_entropy(logits[0], y) + self.weight * apart


def jensen_shannon(logits: tuple[Logits, ...]) -> Scalars:
    """Mean KL(p_i ‖ mean p) of the answers [b, k] to the views of a point, in nats [b].

    The mixture is kept from 1e-7, as in the authors' code.
    """
    answers = [one.log_softmax(1) for one in logits]
    mean = torch.stack([one.exp() for one in answers]).mean(0).clamp(1e-7, 1).log()
    return torch.stack([(one.exp() * (one - mean)).sum(1) for one in answers]).mean(0)
