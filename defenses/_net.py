"""The networks and schedules that the defenses with an option `net` share."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import nn

from robustkit.models.architectures import small_cnn
from robustkit.models.preact_resnet import preact_resnet
from robustkit.models.training import Recipe

Net: TypeAlias = Literal["small_cnn", "preact_resnet"]
_BUILD = {"small_cnn": small_cnn, "preact_resnet": preact_resnet}
SGD = Recipe(epochs=26, lr=0.15, weight_decay=5e-4, optimizer="sgd", average=0.998, validation=1000)
"""The schedule of the residual network under attack."""


class OnNet:
    """Trains the network `net` with the schedule of the shipped weights."""

    net: Net = "small_cnn"
    width: int

    @property
    def recipe(self) -> Recipe:
        """The schedule of the shipped weights."""
        return Recipe(epochs=15) if self.net == "small_cnn" else SGD

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the network `net`, `width` channels wide."""
        return _BUILD[self.net](shape, classes, self.width)
