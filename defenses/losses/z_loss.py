"""The Z-loss: softplus of the standardized logit of the true class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from robustkit.core.types import Labels, Logits, Scalars
from robustkit.errors import UsageError
from robustkit.models.training import Step
from robustkit.registry import losses


@losses.register("z_loss", cites="arXiv:1604.08859")
@dataclass(frozen=True)
class ZLoss:
    """Z-loss: softplus(a · (b − z_y)) / a, z the standardized logits. Logits [b, k], y [b] -> [b].

    de Brébisson & Vincent 2016. It does not change when logits are shifted or scaled, and z_y is at
    most sqrt(k − 1). The scale of the logits stays free: attack a model trained with it by losses
    that do not depend on it; in `trades` the divergence falls with that scale alone. It is not the
    squared logsumexp that language models are regularized with.

    Attributes:
        a: slope; the authors' code has 1.
        b: the standardized logit that is asked for; 0 in the authors' code.
    """

    a: Annotated[float, Field(gt=0)] = 1.0
    b: float = 0.0

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return the loss of each point."""
        return nn.functional.softplus(self.a * (self.b - self._score(logits, y))) / self.a

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return −z_y: it rises with the loss and does not saturate."""
        return -self._score(logits, y)

    def _score(self, logits: Logits, y: Labels) -> Scalars:
        """Return the standardized logit of the true class [b].

        Raises:
            UsageError: for two classes, whose standardized logits are ±1 whatever the network says.
        """
        if logits.shape[1] < 3:
            raise UsageError(
                "z_loss: expected logits of three classes or more, got "
                f"{logits.shape[1]}: standardized, two are always 1 and −1. Choose another loss."
            )
        centered = logits - logits.mean(1, keepdim=True)
        spread = centered.square().mean(1).clamp_min(1e-24).sqrt()
        return centered.gather(1, y[:, None]).squeeze(1) / spread
