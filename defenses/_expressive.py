"""Expressive losses: between an adversarial loss and that of interval bounds, by one weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.core.types import Labels, Logits

_LEAST = 1e-12  # keeps the logarithm of a loss finite


def expressive(loss: str, attacked: Logits, lower: Tensor, y: Labels, a: float) -> Tensor:
    """Blend the loss at adversarial inputs and that of bounds: a scalar, the mean over the batch.

    De Palma et al. 2024 (arXiv:2305.13991). z are margins z_y − z_j, L(z) = CE(−z, y):
    "cc_ibp": L((1 − a) z(x_adv) + a z_lower);
    "mtl_ibp": (1 − a) L(z(x_adv)) + a L(z_lower);
    "exp_ibp": L(z(x_adv))^(1 − a) · L(z_lower)^a, per point.
    Each equals L(z(x_adv)) at a = 0 and L(z_lower) at a = 1, and rises with a.

    Args:
        attacked: logits [b, k] at adversarial inputs.
        lower: lower bounds of the margins [b, k], 0 at y.
    """
    margins = attacked.gather(1, y[:, None]) - attacked
    if loss == "cc_ibp":
        return F.cross_entropy(-((1 - a) * margins + a * lower), y)
    below = F.cross_entropy(-margins, y, reduction="none")
    above = F.cross_entropy(-lower, y, reduction="none")
    if loss == "mtl_ibp":
        return ((1 - a) * below + a * above).mean()
    logs = (1 - a) * below.clamp_min(_LEAST).log() + a * above.clamp_min(_LEAST).log()
    return torch.exp(logs).mean()
