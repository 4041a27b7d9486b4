"""alpha-CROWN: the slopes of the lower lines of ReLUs, optimized for each point.

Xu et al. 2021 (arXiv:2011.13824).
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.certify.ibp import Box
from robustkit.certify.linear_bounds import Problem, bound


def optimize_slopes(problem: Problem, wanted: Tensor, lower: Tensor, iterations: int) -> Tensor:
    """Maximize the negative margins over the slopes; return the best bound of each margin.

    Every slope in [0, 1] gives a sound bound, so that the best of all iterations is one, and the
    result is never below the CROWN bound that it starts from.
    """
    slopes = {}
    problem = problem._replace(
        boxes=[Box(low.detach(), high.detach()) for low, high in problem.boxes]
    )
    for index in problem.graph.relu_inputs():
        low, high = problem.boxes[index]
        # CROWN's choice is the start: the first iteration repeats its bound.
        slopes[index] = (high > -low).to(low.dtype).requires_grad_(True)
    if not slopes:
        return lower
    optimizer = torch.optim.Adam(list(slopes.values()), lr=0.1)  # as in Xu et al. 2021
    best = lower.detach()
    for _ in range(iterations):
        with torch.enable_grad():
            found = bound(problem._replace(slopes=slopes), len(problem.graph.nodes) - 1, wanted)
            loss = -found.clamp_max(0).sum()  # a margin that is proved needs no more
        if not loss.requires_grad:
            break
        gradients = torch.autograd.grad(loss, list(slopes.values()), allow_unused=True)
        for slope, gradient in zip(slopes.values(), gradients, strict=True):
            slope.grad = gradient  # autograd.grad, not backward(): the weights get none
        best = torch.maximum(best, found.detach())
        if bool((best >= 0).all()):
            break
        optimizer.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0, 1)
    return best
