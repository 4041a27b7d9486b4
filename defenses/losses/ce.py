"""Cross-entropy, the loss that the others stand beside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robustkit.core.types import Labels, Logits, Scalars
from robustkit.models.training import Step
from robustkit.registry import losses


@losses.register("ce", cites="")
@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy, −log p_y. Logits [b, k], y [b] -> [b]."""

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return it for each point."""
        return self.search(logits, y)

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return what the inner maximization climbs: the same."""
        return nn.functional.cross_entropy(logits, y, reduction="none")
