"""The projected step with momentum of APGD, and its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
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


@lru_cache
def checkpoints(steps: int, device: torch.device) -> Tensor:
    """Return the length of the window that ends at each iteration, 0 where there is none.

    p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06) of the steps (Croce & Hein
    2020, section 3); rounded as in their code. For 100 steps: 22, 41, 57, 70, 80, 87, 93, 99.
    """
    window, shortest = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    shrink = max(int(0.03 * steps), 1)
    # Checkpoints get denser toward the end, from exploration to exploitation (section 3).
    ends, last = [0] * (steps + 1), 0
    while last + window <= steps:
        last += window
        ends[last] = window
        window = max(window - shrink, shortest)
    return torch.tensor(ends, device=device)
