"""A linear model, trained on the cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robustkit.models.training import Recipe, Step
from robustkit.registry import defenses


@defenses.register("example_linear", cites="")
@dataclass(frozen=True)
class Linear:
    """One linear layer."""

    recipe = Recipe(epochs=1)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the layer."""
        channels, height, width = shape
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        """Return the cross-entropy."""
        return nn.functional.cross_entropy(model(x), y)
