"""The network and schedule that the defenses trained on the small CNN share."""

from __future__ import annotations

from torch import nn

from robustkit.models.architectures import small_cnn
from robustkit.models.training import Recipe


class OnSmallCnn:
    """Trains `small_cnn` of robustkit.models with the schedule of the shipped weights."""

    width: int

    @property
    def recipe(self) -> Recipe:
        """The schedule of the shipped weights."""
        return Recipe(epochs=15)

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the small CNN, `width` channels wide."""
        return small_cnn(shape, classes, self.width)
