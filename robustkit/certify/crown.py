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
from robustkit.certify.ibp import Box, input_box, intervals, margins_of
from robustkit.certify.linear_bounds import BLOCK, bound_in_chunks, bound_units
from robustkit.certify.linearized import Linearized, Problem
from robustkit.certify.nonlinear import LogSoftmax, Nonlinear, Softmax
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
    last = graph.nodes[-1]
    if boxes is None:
        boxes = intervals(graph, input_box(x, threat), rounding=rounding, ball=(x, threat))
    if isinstance(last.op, (Softmax, LogSoftmax)):  # of the same sign as the margins before it
        before = last.inputs[0]
        inner = Graph(graph.nodes[: before + 1])
        lower = crown_margins(
            inner, x, y, threat, intermediate=intermediate, rounding=rounding,
            iterations=iterations, boxes=boxes[: before + 1],
        )  # fmt: skip
        return last.op.margins(lower, boxes[before], rounding)
    problem = Problem(graph, list(boxes), x, threat, rounding, {})
    if intermediate == "crown":
        _tighten_intermediate(problem)
    k = graph.nodes[-1].shape[0]
    eye = torch.eye(k, dtype=x.dtype, device=x.device)
    wanted = eye[y][:, None] - eye[None]
    lower = bound_in_chunks(problem, len(graph.nodes) - 1, wanted)
    if any(isinstance(n.op, Nonlinear) for n in graph.nodes):  # planes may be wider than boxes
        lower = torch.maximum(lower, margins_of(graph, problem.boxes, y, rounding=rounding))
    if iterations:
        lower = optimize_slopes(problem, wanted, lower, iterations)
    return lower.masked_fill(eye[y].bool(), 0.0)


def _tighten_intermediate(problem: Problem) -> None:
    """Tighten the boxes before activations by backward passes, and all boxes behind them."""
    graph, boxes = problem.graph, problem.boxes
    bent = (Activation, Nonlinear)
    targets = {index for n in graph.nodes if isinstance(n.op, bent) for index in n.inputs}
    before = [i for i, n in enumerate(graph.nodes) if isinstance(n.op, bent)]
    first = before[0] if before else 0
    for index in sorted(targets):
        if index < first and problem.threat.norm == "linf":
            continue  # affine in the input box alone: the interval is exact
        low, high = boxes[index]
        # A piecewise linear unit of known sign is exact already; others gain from any tightening.
        piecewise = all(
            isinstance(n.op, Activation) and n.op.name in _PIECEWISE
            for n in graph.nodes
            if index in n.inputs and isinstance(n.op, bent)
        )
        loose = (low < 0) & (high > 0) if piecewise else high > low
        if not bool(loose.any()):
            continue
        boxes[index] = _tightened(problem, index, loose.flatten(1))
        _propagate(problem, index)


def _tightened(problem: Problem, index: int, loose: Tensor) -> Box:
    """Bound the units of a node that are `loose` [b, features] by backward passes."""
    box, known = problem.boxes[index], Linearized(problem, _precision(problem))
    # Units that share what is known of their inputs form a group [g, s]: those of a point, or the
    # channels at one position, which see the same window.
    channels = problem.graph.nodes[index].shape[0] if problem.local(index) else loose.shape[1]

    def grouped(units: Tensor) -> Tensor:
        return units.view(len(units), channels, -1).transpose(1, 2).flatten(0, 1)

    low, high = (grouped(part.flatten(1)).clone() for part in box)
    loose = grouped(loose)
    # The loose units of each group first; groups with similar counts share a block of rows.
    counts, units = loose.sum(1), loose.sort(dim=1, descending=True, stable=True).indices
    order = counts.sort(descending=True, stable=True).indices
    start, largest = 0, problem.largest_row(index)
    width = max(1, BLOCK // (2 * largest))
    while start < len(order) and (most := int(counts[order[start]])):
        groups = order[start : start + max(1, width // most)]
        groups = groups[counts[groups] > 0]
        for columns in units[groups, :most].split(max(1, width // len(groups)), dim=1):
            found, largest = bound_units(known, index, columns, groups)
            # Groups with fewer loose units fill up with others: left as they are, so that the
            # result does not depend on the batch.
            row, column = loose[groups[:, None], columns].nonzero(as_tuple=True)
            at = groups[row], columns[row, column]
            low[at] = torch.maximum(low[at], found.low[row, column])
            high[at] = torch.minimum(high[at], found.high[row, column])
        start, width = start + len(groups), max(1, BLOCK // (2 * largest))

    def back(units: Tensor) -> Tensor:
        return units.view(len(box.low), -1, channels).transpose(1, 2).reshape(box.low.shape)

    return Box(back(low), back(high))


def _precision(problem: Problem) -> torch.dtype:
    """Return the type of the coefficients: float32 where their rounding is accounted for."""
    exact = torch.get_float32_matmul_precision() == "highest"  # no products in bfloat16
    cpu = problem.x.device.type == "cpu"  # a GPU may use TF32 in convolutions
    return torch.float32 if problem.rounding and exact and cpu else problem.x.dtype


def _propagate(problem: Problem, changed: int) -> None:
    """Recompute the intervals behind a tightened node; keep the tighter bound of each unit."""
    problem.boxes[:] = intervals(
        problem.graph,
        input_box(problem.x, problem.threat),
        rounding=problem.rounding,
        ball=(problem.x, problem.threat),
        known=problem.boxes,
        done=changed + 1,
    )
