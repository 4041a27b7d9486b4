"""alpha-CROWN: the slopes of the lower lines of ReLUs, optimized for each margin.

Xu et al. 2021 (arXiv:2011.13824).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certify.ibp import Box
from robustkit.certify.linear_bounds import Problem, bound, bound_in_chunks, rows_at_once

_RATE, _BETAS, _SMALL = 0.1, (0.9, 0.999), 1e-8  # Adam, as in Xu et al. 2021


def optimize_slopes(problem: Problem, wanted: Tensor, lower: Tensor, iterations: int) -> Tensor:
    """Maximize the negative margins over the slopes; return the best bound of each margin.

    Every slope in [0, 1] gives a sound bound, so that the best of all iterations is one, and the
    result is never below the CROWN bound that it starts from. The search is in float32; what it
    finds is bounded again in the type of the problem.
    """
    lower = lower.detach()
    indices = problem.graph.relu_inputs()
    open_count = (lower < 0).sum(1)
    if not indices or not int(open_count.max()):
        return lower
    best = lower.clone()
    # The open margins of each point first; points with as many open margins go together.
    margins = (lower < 0).sort(dim=1, descending=True, stable=True).indices
    for count in open_count.unique().tolist():
        if not count:
            continue
        points = (open_count == count).nonzero().flatten()
        for part in points.split(max(1, rows_at_once(problem.of(points[:1]), len(problem.boxes) - 1) // count)):
            rows, columns = part[:, None], margins[part, :count]
            some = problem.of(part)
            some = some._replace(boxes=[Box(a.detach(), b.detach()) for a, b in some.boxes])
            slopes = _search(some, wanted[rows, columns], indices, iterations)
            found = bound_in_chunks(some._replace(slopes=slopes), len(problem.boxes) - 1, wanted[rows, columns])
            best[rows, columns] = torch.maximum(best[rows, columns], found)
    return best
