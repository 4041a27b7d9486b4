"""Which ReLU to split: a few by the triangle's area, the best of them by the children's bounds.

BaBSR scores by the intercept of the upper line (Bunel et al. 2020; De Palma et al. 2021,
arXiv:2104.06718), filtered smart branching (kFSB) bounds both children of the first few.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.complete.beta_crown import Found, Multipliers, Objective, Splits, evaluate
from robustkit.certify.complete.relaxation import Domain, Lines, Relaxation


def candidates(
    relaxation: Relaxation, domain: Domain, found: Found, splits: Splits, count: int
) -> Tensor:
    """Return `count` units to split for every row [b, count], the most promising first.

    Half by the intercept, half by the gap between relaxed and true output at the minimizer. −1
    where fewer units are open.
    """
    lines = Lines.of(domain.low, domain.high)
    inputs = relaxation.ascend(found.run, lines, found.best.alpha, relaxation.last).inputs
    area, gap = torch.zeros_like(inputs), torch.zeros_like(inputs)
    for at, (a, up, mask) in found.run.through.items():
        span = relaxation.spans[relaxation.graph.nodes[at].inputs[0]]
        v, intercept = inputs[:, span], lines.intercept[:, span]
        area[:, span] += (up - a) * intercept
        upper = torch.addcmul(intercept, lines.chord[:, span], v)
        relaxed = torch.lerp(upper, found.best.alpha[:, span] * v, mask)
        gap[:, span] += a.abs() * (relaxed - v.clamp_min(0)).abs()
    closed = lines.ceiling <= lines.floor
    closed = closed.expand_as(area).scatter(1, splits.unit, splits.sign.abs() > 0) | closed
    best = []
    for score, part in ((area, (count + 1) // 2), (gap, count // 2)):
        part = min(part, score.shape[1])
        value, unit = score.masked_fill(closed, -1.0).topk(part, dim=1)
        best.append(unit.masked_fill(value < 0, -1))
        closed = closed.scatter(1, unit, True)
    return torch.cat(best, 1)


def children(splits: Splits, unit: Tensor) -> tuple[Splits, Tensor]:
    """Return the splits of both children of every row [2 b, s + 1], and the parent of each."""
    parent = torch.arange(len(unit)).repeat_interleave(2)
    sign = torch.tensor([1.0, -1.0]).repeat(len(unit))
    return Splits(
        torch.cat([splits.unit[parent], unit[parent][:, None]], 1),
        torch.cat([splits.sign[parent], sign[:, None]], 1),
    ), parent


def choose(
    relaxation: Relaxation, domain: Domain, objective: Objective, splits: Splits,
    at: Multipliers, units: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the unit of each row [b] whose children have the best bounds, of `units` [b, c].

    Returns also these bounds [2 b], in the order of `children`.
    """
    inside = splits.intersect(domain)
    _, parent = children(splits, units[:, 0])
    lines = Lines(*(part[parent] for part in Lines.of(inside.low, inside.high)))
    begin = at.rows(parent)
    alpha = lines.clamp(begin.alpha)
    begin = begin._replace(alpha=alpha, beta=F.pad(begin.beta, (0, 1)))
    wanted = objective._replace(wanted=objective.wanted[parent])
    scores, bounds = [], []
    for unit in units.T:  # one candidate of every row at a time: what fits the cache
        split, _ = children(splits, unit.clamp_min(0))
        # The lines of a child are those of its parent but for one unit: put it in, and out again.
        on, place = (split.sign[:, -1:] + 1) / 2, split.unit[:, -1:]
        parts, values = (*lines, alpha), (on, torch.zeros_like(on), on, on, on)
        kept = [part.gather(1, place) for part in parts]
        for part, value in zip(parts, values, strict=True):
            part.scatter_(1, place, value)
        bound = evaluate(relaxation, domain, wanted, split, begin, lines).bound
        for part, value in zip(parts, kept, strict=True):
            part.scatter_(1, place, value)
        # A child that is proved needs no more: its bound counts as 0.
        both = bound.view(-1, 2).clamp_max(0)
        score = both.amin(1) + 0.5 * both.amax(1)
        scores.append(score.masked_fill(unit < 0, -torch.inf))
        bounds.append(bound.view(-1, 2))
    best = torch.stack(scores, 1).argmax(1)
    found = torch.stack(bounds, 1)[torch.arange(len(best)), best]
    return units.gather(1, best[:, None])[:, 0], found.flatten()
