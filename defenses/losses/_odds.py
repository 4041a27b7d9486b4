"""What several losses are made of: the odds against the true class, and the comp-sum family."""

from __future__ import annotations

import torch
from torch import nn

from robustkit.core.types import Labels, Logits, Scalars

_STEEP = 30.0  # from this s on, losses of tau < 1 are straight: exp(s) would overflow float32


def gaps(logits: Logits, y: Labels) -> Logits:
    """z_j − z_y of every class j [b, k]; 0 for the true class."""
    return logits - logits.gather(1, y[:, None])


def odds(logits: Logits, y: Labels) -> Scalars:
    """Log Σ_{j≠y} exp(z_j − z_y) [b]: the log-odds against the true class.

    The cross-entropy is softplus of it, so that both rise together, but its gradient does not
    vanish at confident points.
    """
    return gaps(logits, y).scatter(1, y[:, None], -torch.inf).logsumexp(1)


def comp_sum(logits: Logits, y: Labels, tau: float, rho: float) -> Scalars:
    """Phi_tau(Σ_{j≠y} exp((z_j − z_y) / rho)) [b].

    With s = log(1 + u), Phi_tau(u) = (exp((1 − tau) s) − 1) / (1 − tau), and s at tau = 1. Where
    s > 30 and tau < 1 it goes on in a straight line.
    """
    s = nn.functional.softplus(odds(logits / rho, y))
    slope = 1 - tau
    if slope == 0:
        return s
    near = s.clamp_max(_STEEP) if slope > 0 else s
    value = torch.expm1(slope * near) / slope
    return value + (slope * near).exp().detach() * (s - near) if slope > 0 else value
