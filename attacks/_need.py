"""How far from success a gradient search is, by a linear model; when a run may be given up."""

from __future__ import annotations

import torch

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Scalars


def need(value: Scalars, gradient: Images, threat: Threat) -> Scalars:
    """Return the extra radius, as a fraction of eps, at which the linear model reaches zero [s].

    −value / (eps ‖gradient‖*) in the dual norm; negative where the value is positive.

    Args:
        value: an objective that is positive on success [s].
        gradient: its gradient by the query [s, *f].
    """
    # ⟨g, steepest(g)⟩ is the dual norm of g: the most that the objective gains per unit of radius.
    slope = (gradient * threat.steepest(gradient)).flatten(1).sum(1)
    return -value / (threat.eps * slope).clamp_min(torch.finfo(slope.dtype).tiny)
