"""The two kinds of defense: one network with weights of its own, or one composed of others."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import nn

from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError


@runtime_checkable
class Network(Protocol):
    """A defense that is one network with weights of its own."""

    def network(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Build the untrained network for inputs of `shape` [c, h, w]."""
        ...


@runtime_checkable
class Composed(Protocol):
    """A defense that is composed of other models: it loads their weights itself.

    Where a part of it is trained or fitted (a gate, say), `learned(model)` returns that part, and a
    checkpoint of the defense holds this part alone.
    """

    def load(self, data: Dataset) -> nn.Module:
        """Return the model for `data`, its own part untrained."""
        ...


def assemble(defense: Network | Composed, data: Dataset) -> nn.Module:
    """Build the model of a defense for inputs and classes of `data`.

    Raises:
        UsageError: for one that builds a network of its own, where the inputs are no images.
    """
    if isinstance(defense, Composed):
        return defense.load(data)
    if len(data.shape) != 3:
        raise UsageError(
            f"{type(defense).__name__} builds a network for images [c, h, w], got inputs "
            f"{list(data.shape)} of {data.name}. Name a model of your own, as "
            "path/to/file.py:attr, or sklearn:FILE."
        )
    c, h, w = data.shape
    return defense.network((c, h, w), data.classes)


def learned(defense: Any, model: nn.Module) -> nn.Module | None:
    """Return the part of `model` whose weights are the defense's own; None: it has none."""
    if not isinstance(defense, Composed):
        return model
    part: nn.Module | None = defense.learned(model) if hasattr(defense, "learned") else None
    return part
