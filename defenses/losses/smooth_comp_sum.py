"""The smooth adversarial comp-sum loss: a comp-sum loss, and what an attack does to margins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from robustkit.core.types import Labels, Logits, Scalars
from robustkit.models.training import Step
from robustkit.registry import losses

from ._odds import comp_sum, gaps, odds


@losses.register("smooth_comp_sum", cites="arXiv:2304.07288")
@dataclass(frozen=True)
class SmoothCompSum:
    """Smooth adversarial comp-sum: Phi_tau(x) + beta · max ‖D(x') − D(x)‖₂, for `trades`.

    Mao, Mohri & Zhong 2023; D(x) are the differences z_y − z_j, Phi_tau as in `comp_sum`, beta
    (nu in the paper) that of `trades`. From beta ≥ sqrt(k − 1) / rho on, it is an upper bound of
    the robust 0-1 loss times Phi_tau(1): exp(−t / rho) bounds the ramp 1 − t / rho, which is
    1 / rho-Lipschitz, Phi_tau' ≤ 1, and the Cauchy–Schwarz inequality does the rest.
    A large beta pulls the clean margins to 0 with the penalty: the default of `trades` is meant for
    its KL term, begin with 1 or less. Pairing logits under a weak search has masked gradients
    before: attack it by the margin.
    Differs from the paper: constants and inner search are ours; the straight line of `comp_sum`.

    Attributes:
        tau: 1: cross-entropy; see `comp_sum`.
        rho: temperature of the logits in Phi_tau.
    """

    tau: Annotated[float, Field(ge=0)] = 1.0
    rho: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, logits: Logits, y: Labels, step: Step) -> Scalars:
        """Return Phi_tau of each point, without the penalty."""
        return comp_sum(logits, y, self.tau, self.rho)

    def search(self, logits: Logits, y: Labels) -> Scalars:
        """Return the odds against the true class."""
        return odds(logits / self.rho, y)

    def penalty(self, logits: Logits, moved: Logits, y: Labels) -> Scalars:
        """Return ‖D(x') − D(x)‖₂ of each point [b]."""
        # The small number keeps the gradient finite where an attack moved nothing.
        return (gaps(moved - logits, y).square().sum(1) + 1e-12).sqrt()
