"""The comp-sum family: cross-entropy, its generalized form, sums of exponentials, 1 − p_y."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustkit.core.types import Labels, Logits, Scalars
from robustkit.models.training import Step
from robustkit.registry import losses

from ._odds import comp_sum, odds


@losses.register("comp_sum", cites="arXiv:2304.07288")
@dataclass(frozen=True)
class CompSum:
    """Comp-sum losses Phi_tau(Σ_{j≠y} exp((z_j − z_y) / rho)). Logits [b, k], y [b] -> [b].

    Mao, Mohri & Zhong 2023. Phi_tau(u) = ((1 + u)^(1 − tau) − 1) / (1 − tau): tau = 0 is the sum of
    exponentials, 1 cross-entropy, between 1 and 2 generalized cross-entropy, 2 is 1 − p_y.
    Differs from the paper: a straight line where log(1 + u) > 30 and tau < 1, for float32; the
    default tau is ours.

    Attributes:
        tau: from which on the loss saturates at misclassified points: it is bounded above 1.
        rho: temperature of the logits.
    """

    tau: Annotated[float, Field(ge=0)] = 1.5
    rho: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return the loss of each point."""
        return comp_sum(logits, y, self.tau, self.rho)

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return the odds against the true class: they rise with the loss and do not saturate."""
        return odds(logits / self.rho, y)
