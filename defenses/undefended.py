"""Standard training: the baseline for what robustness costs in clean accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robustkit.models.architectures import small_cnn
from robustkit.models.outer_loss import OneInputLossSpec
from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses, losses


@defenses.register("undefended", cites="")
@dataclass(frozen=True)
class Undefended:
    """Cross-entropy on clean images, no defense. [b, c, h, w] in [0, 1] -> logits [b, k].

    Attributes:
        width: channels of the first convolution.
        loss: takes the place of cross-entropy; see `robustkit list losses`.
    """

    width: int = 32
    loss: OneInputLossSpec = "ce"

    @property
    def recipe(self) -> Recipe:
        """Ten passes are enough for clean images."""
        return Recipe(epochs=10)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the small CNN of `robustkit.models.architectures`."""
        return small_cnn(shape, classes, self.width)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Mean loss of x [b, c, h, w] and y [b]."""
        loss: Tensor = losses.build(self.loss)(model(x).float(), y, step).mean()
        return loss
