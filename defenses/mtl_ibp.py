"""MTL-IBP: adversarial training with a small weight of interval bounds, for complete verifiers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robustkit.registry import defenses

from .ibp import Count, Ibp, Positive, Share


@defenses.register("mtl_ibp", cites="arXiv:2305.13991")
@dataclass(frozen=True)
class MtlIbp(Ibp):
    """CNN-A trained by (1 − a) · L_adv + a · L_ibp, L_adv at PGD's points (De Palma et al. 2024).

    With so small an `a` intervals prove little; branch and bound (`--certify auto`) proves most of
    what attacks leave.
    Differs from the paper: as `ibp`, whose options these are with other defaults; a smaller network
    and fewer epochs.
    """

    loss: Literal["mtl_ibp"] = "mtl_ibp"
    kappa: Share = 1.0
    a: Share = 0.01
    steps: Count = 2
    train_eps: Positive | None = 0.12
    net: Literal["cnn3", "cnn_a", "cnn7"] = "cnn_a"
