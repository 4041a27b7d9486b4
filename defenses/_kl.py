"""The divergence of TRADES, per point."""

from __future__ import annotations

from torch import Tensor, nn

from robustkit.core.types import Scalars


def kl(logits: Tensor, reference: Tensor) -> Scalars:
    """KL(p ‖ q) per point [b], p by its logarithms [b, k], q by its logits [b, k]."""
    moved = logits.log_softmax(1)
    return nn.functional.kl_div(moved, reference, log_target=True, reduction="none").sum(1)
