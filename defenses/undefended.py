"""Standard training: the baseline for what robustness costs in clean accuracy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from robustkit.models.outer_loss import OneInputLossSpec
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses, losses

from ._net import Net, OnNet


@defenses.register("undefended", cites="")
@dataclass(frozen=True)
class Undefended(OnNet):
    """Cross-entropy on clean images, no defense. [b, c, h, w] in [0, 1] -> logits [b, k].

    Attributes:
        net: the network, small_cnn or preact_resnet.
        width: channels of its first convolution.
        loss: takes the place of cross-entropy; see `robustkit list losses`.
    """

    net: Net = "small_cnn"
    width: int = 32
    loss: OneInputLossSpec = "ce"

    @property
    def recipe(self) -> Recipe:
        """Two thirds of the passes are enough for clean images."""
        usual = super().recipe
        return replace(usual, epochs=2 * usual.epochs // 3)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss of x [b, c, h, w] and y [b]."""
        loss: Tensor = losses.build(self.loss)(model(x).float(), y, step).mean()
        return loss
