"""alpha-CROWN: the lower lines of ReLUs and both of smooth functions, optimized for each margin.

Xu et al. 2021 (arXiv:2011.13824).
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.certify.activations import Activation
from robustkit.certify.graph import Graph
from robustkit.certify.ibp import Box
from robustkit.certify.linear_bounds import bound, rows_at_once
from robustkit.certify.linearized import Linearized, Problem
from robustkit.certify.smooth import place_of

_RATE, _MEAN, _SQUARE = 0.1, 0.9, 0.999  # of Adam; the rate of Xu et al. 2021
_SMOOTH_RATE = 0.03  # of smooth functions: 0.1 and 0.01 close less of the gap in 20 steps


def optimize_slopes(problem: Problem, wanted: Tensor, lower: Tensor, iterations: int) -> Tensor:
    """Maximize the negative margins over the slopes; return the best bound of each margin.

    Every slope in [0, 1] gives a sound bound, so that the best of all iterations is one, and the
    result is never below the CROWN bound that it starts from. The search is in float32; what it
    finds is bounded again in the type of the problem.
    """
    best, last = lower.detach().clone(), len(problem.graph.nodes) - 1
    if not _optimized(problem.graph):
        return best
    counts = (best < 0).sum(1)
    # The open margins of each point first; points with as many of them share a block of rows.
    margins = (best < 0).sort(dim=1, descending=True, stable=True).indices
    one = torch.zeros(1, dtype=torch.long, device=best.device)
    block = rows_at_once(problem.of(one), last)
    for count in counts.unique().tolist():
        points = (counts == count).nonzero().flatten()
        for part in points.split(max(1, block // count)) if count else ():
            rows, columns = part[:, None], margins[part, :count]
            some = problem.of(part)
            some = some._replace(boxes=[Box(a.detach(), b.detach()) for a, b in some.boxes])
            asked, start = wanted[rows, columns], best[rows, columns]
            with torch.no_grad():
                slopes = _search(some, asked, start, iterations)
                found = bound(some._replace(slopes=slopes), last, asked)
            best[rows, columns] = torch.maximum(start, found)
    return best


def _optimized(graph: Graph) -> dict[int, Activation]:
    """Return the functions whose lines are optimized by input node: those alone on their input."""
    found: dict[int, list[Activation]] = {}
    for op, inputs, _ in graph.nodes:
        if isinstance(op, Activation):
            found.setdefault(inputs[0], []).append(op)
    return {
        index: ops[0]
        for index, ops in found.items()
        if all(op.name == "relu" for op in ops) or (len(ops) == 1 and ops[0].smooth is not None)
    }


def _search(problem: Problem, wanted: Tensor, lower: Tensor, iterations: int) -> dict[int, Tensor]:
    """Return slopes [b, s, *f] for each margin of `wanted` [b, s, k] by projected Adam.

    A margin depends on its own slopes alone, and stays as it is once it is proved: the result does
    not depend on what else is in the batch.
    """
    single, last = torch.float32, len(problem.graph.nodes) - 1
    light = problem._replace(rounding=False)
    known, asked, rows = Linearized(light, single), wanted.to(single), wanted.shape[1]
    slopes, optimized = {}, _optimized(problem.graph)
    for index, op in optimized.items():
        # CROWN's choice is the start: the first iteration repeats its bound.
        low, high = problem.boxes[index]
        if op.smooth is None:
            choice = (high > -low).to(single)
        else:
            choice = place_of(op.smooth, low, high, op.lines(low, high)).to(single)
        slopes[index] = choice[:, None].repeat(1, rows, *[1] * (choice.ndim - 1))
    kept = {index: slope.clone() for index, slope in slopes.items()}
    means = {index: torch.zeros_like(slope) for index, slope in slopes.items()}
    squares = {index: torch.zeros_like(slope) for index, slope in slopes.items()}
    best = goal = torch.full_like(lower, -torch.inf)
    for step in range(1, iterations + 1):
        for slope in slopes.values():
            slope.requires_grad_(True)
        with torch.enable_grad():
            found = bound(light._replace(slopes=slopes), last, asked, known)
            total = found.sum()
        gradients = torch.autograd.grad(total, list(slopes.values()), allow_unused=True)
        found = found.detach().to(lower.dtype)
        if step == 1:  # what rounding took from CROWN's bound, it will take from the best one
            goal = 2 * (found - lower).clamp_min(0)
        better = (found > best) & ~(best > goal)
        best = torch.where(better, found, best)
        for (index, slope), gradient in zip(slopes.items(), gradients, strict=True):
            slope = slope.detach()
            mask = better.view(*better.shape, *[1] * (slope.ndim - 2))
            kept[index] = torch.where(mask, slope, kept[index])
            if gradient is None:
                continue
            means[index].lerp_(gradient, 1 - _MEAN)
            squares[index].lerp_(gradient.square(), 1 - _SQUARE)
            scale = (squares[index] / (1 - _SQUARE**step)).sqrt_().add_(1e-8)
            rate = (_RATE if optimized[index].smooth is None else _SMOOTH_RATE) / (1 - _MEAN**step)
            slope = slope.addcdiv(means[index], scale, value=rate)
            slopes[index] = slope.clamp_(0, 1)
        if bool((best > goal).all()):
            break
    return kept
