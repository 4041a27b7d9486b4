"""Subdomains without a unit left to split: linear programs, solved by HiGHS through SciPy.

Inside one the network is affine, and so are the conditions of its splits. What is believed is not
the solver's optimum: its dual values become the multipliers β, and the bound is evaluated with
them like any other. The solver's point is tried on the model.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from robustkit.certify.complete.beta_crown import Objective, Splits
from robustkit.certify.complete.relaxation import Domain, Lines, Relaxation
from robustkit.core.types import Images

_PENALTY = 1e6  # of a violated split: the bound of a subdomain without a point grows to this


def solve(
    relaxation: Relaxation, domain: Domain, objective: Objective, splits: Splits
) -> tuple[Tensor, Images] | None:
    """Minimize the margin over every subdomain; `domain` is intersected with the splits already.

    Args:
        relaxation: in float64, as all others.

    Returns:
        β [b, s] and the minimizers [b, *f]; None in l2, where it is no linear program.
    """
    if relaxation.threat.norm == "l2":
        return None
    beta, minimizers = torch.zeros_like(splits.sign), []
    for row in range(len(splits.unit)):
        inside = _row(domain, row)
        used = splits.sign[row].nonzero().flatten()
        wanted = objective.wanted[row : row + 1]
        parts = [_affine(relaxation, inside, objective.start, wanted, objective.target)]
        for at in used.tolist():
            parts.append(_unit(relaxation, inside, int(splits.unit[row, at]), splits.sign[row, at]))
        multipliers, z = _program(relaxation, inside, parts)
        beta[row, used] = multipliers.to(beta)
        minimizers.append(z)
    return beta, torch.cat(minimizers)


def _row(domain: Domain, row: int) -> Domain:
    one = slice(row, row + 1)
    return domain._replace(low=domain.low[one], high=domain.high[one], slack={}, cuts=None)


def _unit(relaxation: Relaxation, domain: Domain, unit: int, sign: Tensor) -> tuple[Tensor, float]:
    """Return what is not below zero where a split holds, as `_affine`."""
    node, span = next((i, s) for i, s in relaxation.spans.items() if s.start <= unit < s.stop)
    wanted = domain.low.new_zeros(1, span.stop - span.start)
    wanted[0, unit - span.start] = sign
    shape = relaxation.graph.nodes[node].shape
    return _affine(relaxation, domain, node, wanted.view(1, *shape), 0.0)


def _affine(
    relaxation: Relaxation, domain: Domain, start: int, wanted: Tensor, target: float
) -> tuple[Tensor, float]:
    """Return coefficients [1, *f] and constant of `wanted` · (value of a node) − `target`."""
    span = relaxation.spans.get(start)
    width = relaxation.width if span is None else span.start
    lines = Lines.of(domain.low[:, :width], domain.high[:, :width])
    run = relaxation.descend(domain, lines, lines.floor, start, wanted)
    return run.at_input, float(run.bound - (run.at_input * run.minimizer).sum()) - target


def _program(
    relaxation: Relaxation, domain: Domain, parts: list[tuple[Tensor, float]]
) -> tuple[Tensor, Images]:
    """Return the dual values of the splits [s], and the minimizer [1, *f].

    Variables: how far every feature goes up and down from x, and the largest violation of a split.
    """
    x = domain.x.flatten().numpy()
    up, down = (domain.x_high.flatten().numpy() - x, x - domain.x_low.flatten().numpy())
    rows = np.stack([a.flatten().numpy() for a, _ in parts])
    values = rows @ x + np.array([c for _, c in parts])
    d, s = len(x), len(parts) - 1
    limits = [-np.concatenate([rows[1:], -rows[1:], np.ones((s, 1))], 1)]
    if relaxation.threat.norm == "l1":
        limits.append(np.concatenate([np.ones((1, 2 * d)), np.zeros((1, 1))], 1))
    found = linprog(
        np.concatenate([rows[0], -rows[0], [_PENALTY]]),
        np.concatenate(limits),
        np.concatenate([values[1:], [relaxation.threat.eps] * (len(limits) - 1)]),
        bounds=np.stack([np.zeros(2 * d + 1), np.concatenate([up, down, [np.inf]])], 1),
        method="highs",
    )
    if found.x is None:  # numbers that the solver cannot scale: no multipliers, no better point
        return torch.zeros(s), domain.x.clone()
    step = torch.from_numpy(found.x[:d] - found.x[d : 2 * d]).view_as(domain.x)
    return torch.from_numpy(-found.ineqlin.marginals[:s]).clamp_min(0), domain.x + step
