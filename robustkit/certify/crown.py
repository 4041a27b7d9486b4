"""CROWN: lower bounds of the margins, from intervals that backward passes tighten.

Zhang et al. 2018 (arXiv:1811.00866); alpha-CROWN's slopes are optimized in alpha_crown.py, the
backward pass of both is in linear_bounds.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustkit.certify.activations import Activation
from robustkit.certify.alpha_crown import optimize_slopes
from robustkit.certify.graph import Graph
from robustkit.certify.ibp import Box, input_box, intervals
from robustkit.certify.linear_bounds import Problem, bound, bound_in_chunks, rows_at_once
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels

_PIECEWISE = ("relu", "leaky_relu")  # linear on either side of zero


def crown_margins(
    graph: Graph,
    x: Images,
    y: Labels,
    threat: Threat,
    *,
    intermediate: Literal["ibp", "crown"] = "ibp",
    rounding: bool = False,
    iterations: int = 0,
    boxes: list[Box] | None = None,
) -> Tensor:
    """Return lower bounds of z_y − z_j over the threat model around x: [b, k], 0 at j = y.

    Sound for every input of the threat model, whatever the slopes and iterations; in float64 with
    `rounding`, also for what a float32 evaluation of the network returns. With `iterations` > 0 the
    lower slopes of the ReLUs behind the margins are optimized by Adam (alpha-CROWN).

    Differs from the paper: the slopes behind intermediate bounds are CROWN's, and the margins of
    one point share their slopes.

    Args:
        x: clean points [b, *f], in [lower, upper] of the threat model.
        intermediate: bounds on the inputs of activations: intervals alone (CROWN-IBP, Zhang et al.
            2020), or backward passes too wherever intervals leave the sign open.
        rounding: hold for a float32 evaluation; give weights and x in float64.
        boxes: the result of `intervals`, where it is known.
    """
    if boxes is None:
        boxes = intervals(graph, input_box(x, threat), rounding=rounding, ball=(x, threat))
    problem = Problem(graph, list(boxes), x, threat, rounding, {})
    if intermediate == "crown":
        _tighten_intermediate(problem)
    k = graph.nodes[-1].shape[0]
    eye = torch.eye(k, dtype=x.dtype, device=x.device)
    wanted = eye[y][:, None] - eye[None]
    lower = bound_in_chunks(problem, len(graph.nodes) - 1, wanted)
    if iterations:
        lower = optimize_slopes(problem, wanted, lower, iterations)
    return lower.masked_fill(eye[y].bool(), 0.0)


def _tighten_intermediate(problem: Problem) -> None:
    """Tighten the boxes before activations by backward passes, and all boxes behind them."""
    graph, boxes = problem.graph, problem.boxes
    targets = {n.inputs[0] for n in graph.nodes if isinstance(n.op, Activation)}
    before = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, Activation)]
    first = before[0] if before else 0
    for index in sorted(targets):
        if index < first and problem.threat.norm == "linf":
            continue  # affine in the input box alone: the interval is exact
        low, high = boxes[index]
        # A piecewise linear unit of known sign is exact already; others gain from any tightening.
        piecewise = all(
            n.op.name in _PIECEWISE
            for n in graph.nodes
            if index in n.inputs and isinstance(n.op, Activation)
        )
        loose = (low < 0) & (high > 0) if piecewise else high > low
        # Units that are loose at any point: the rows of A are shared by the batch.
        open_units = loose.flatten(1).any(0).nonzero().flatten()
        if not len(open_units):
            continue
        b, features = len(low), low[0].numel()
        size = rows_at_once(problem, index)
        new_low, new_high = low.flatten(1).clone(), high.flatten(1).clone()
        for start in range(0, len(open_units), size):
            units = open_units[start : start + size]
            a = low.new_zeros(len(units), features)
            a[torch.arange(len(units)), units] = 1
            a = a.view(1, len(units), *low.shape[1:]).expand(b, *[-1] * low.ndim)
            new_low[:, units] = torch.maximum(new_low[:, units], bound(problem, index, a))
            new_high[:, units] = torch.minimum(new_high[:, units], -bound(problem, index, -a))
        boxes[index] = Box(new_low.view_as(low), new_high.view_as(high))
        _propagate(problem, index)


def _propagate(problem: Problem, changed: int) -> None:
    """Recompute the intervals behind a tightened node; keep the tighter bound of each unit."""
    fresh = intervals(
        problem.graph,
        input_box(problem.x, problem.threat),
        rounding=problem.rounding,
        ball=(problem.x, problem.threat),
        known=problem.boxes,
    )
    for index in range(changed + 1, len(fresh)):
        problem.boxes[index] = Box(
            torch.maximum(problem.boxes[index].low, fresh[index].low),
            torch.minimum(problem.boxes[index].high, fresh[index].high),
        )
