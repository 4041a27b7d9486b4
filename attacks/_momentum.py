"""The projected step with momentum that APGD and Relay share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from robustkit.core.threat import Threat
from robustkit.core.types import Images


def momentum(
    here: Images,
    previous: Images,
    gradient: Images,
    size: Tensor,
    share: Tensor,
    project: Callable[[Images], Images],
    threat: Threat,
) -> Images:
    """Return here + share (z − here) + (1 − share) (here − previous).

    z = P(here + size · steepest) is the projected step without momentum.

    Croce & Hein 2020, algorithm 1, before the last projection. `size` and `share` have one number
    per point. Images are many times a processor's cache: written over in place, each sum costs half
    the memory traffic.
    """
    ahead = project(threat.steepest(gradient).mul_(size).add_(here))
    drift = (here - previous).mul_(1 - share)
    return (ahead - here).mul_(share).add_(here).add_(drift)
