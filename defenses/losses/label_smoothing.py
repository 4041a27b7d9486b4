"""Label smoothing: cross-entropy to a target that leaves something to every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from robustkit.core.types import Labels, Logits, Scalars
from robustkit.models.training import Step
from robustkit.registry import losses


@losses.register("label_smoothing", cites="arXiv:1512.00567")
@dataclass(frozen=True)
class LabelSmoothing:
    """Cross-entropy to (1 − alpha) · onehot(y) + alpha / k. Logits [b, k], y [b] -> [b].

    Szegedy et al. 2016, section 7. It bounds how far logits are driven apart, which can hide
    gradients: attacks by margins are not misled (see the flag `scaled_logits`).

    Attributes:
        alpha: what all classes share.
    """

    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return the loss of each point."""
        return nn.functional.cross_entropy(logits, y, reduction="none", label_smoothing=self.alpha)

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return cross-entropy to the label alone, which rises without end."""
        return nn.functional.cross_entropy(logits, y, reduction="none")
