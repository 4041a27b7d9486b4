"""beta-CROWN: the bound of a subdomain, its slopes and multipliers optimized by projected Adam.

Wang et al. 2021 (arXiv:2103.06624). A split s v ≥ 0 (s = ±1) adds −β s v to the objective, β ≥ 0.
The bound holds for every α in [0, 1] and β ≥ 0, so that soundness does not depend on convergence;
that of a subdomain without a point grows without limit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certify.complete.relaxation import Domain, Lines, Pass, Relaxation

_RATES = (0.1, 0.05, 0.05, 0.05)  # of α, β, γ and those of cuts; Wang et al. 2021
_DECAY = 0.98
CHUNK = 2**18  # numbers of one layer in one pass: what fits the second-level cache of a core


class Splits(NamedTuple):
    """The splits of every row: index of the ReLU [b, s] and sign; sign 0 fills shorter rows."""

    unit: Tensor
    sign: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Splits:
        """Return no splits for as many rows as `like` has."""
        return cls(like.new_zeros(len(like), 1, dtype=torch.long), like.new_zeros(len(like), 1))

    def rows(self, rows: Tensor) -> Splits:
        """Return those of some rows."""
        return Splits(self.unit[rows], self.sign[rows])

    def double(self) -> Splits:
        """Return them in float64."""
        return Splits(self.unit, self.sign.double())

    def reduced(self, keep: Tensor) -> Splits:
        """Return those that `keep` [b, s] says; the others are filled up."""
        return Splits(self.unit, self.sign * keep)

    def listed(self) -> list[dict[int, float]]:
        """Return sign by unit of every row."""
        rows = zip(self.unit.tolist(), self.sign.tolist(), strict=True)
        return [{u: s for u, s in zip(*row, strict=True) if s} for row in rows]

    def intersect(self, domain: Domain) -> Domain:
        """Return the domain with the intervals of the split units cut at zero."""
        low = domain.low.expand(len(self.unit), -1).clone()
        high = domain.high.expand(len(self.unit), -1).clone()
        sign = self.sign.to(low)
        low.scatter_reduce_(1, self.unit, torch.log((sign > 0).to(low)), "amax")
        high.scatter_reduce_(1, self.unit, -torch.log((sign < 0).to(low)), "amin")
        return domain._replace(low=low, high=high)


class Objective(NamedTuple):
    """What is bounded: `wanted` · (value of node `start`) + `fixed` · (inputs of ReLUs).

    Attributes:
        wanted: [b, *shape of the node].
        fixed: [b, width].
        scaled: `wanted` may be multiplied by any γ ≥ 0: it is not above zero at the inputs that
            matter, where a counterexample is sought (Kotha et al. 2023, arXiv:2302.01404).
        target: subtracted from `wanted` · (value), and multiplied with it.
    """

    start: int
    wanted: Tensor
    fixed: Tensor | None = None
    scaled: bool = False
    target: float = 0.0

    def double(self) -> Objective:
        """Return it in float64."""
        fixed = None if self.fixed is None else self.fixed.double()
        return self._replace(wanted=self.wanted.double(), fixed=fixed)


class Multipliers(NamedTuple):
    """α [b, width] of the ReLUs, β [b, s] of the splits, γ [b] of the objective.

    `cut`: [b, c], of the cuts of the domain; not looked at where it has none.
    """

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    cut: Tensor

    @classmethod
    def start(cls, alpha: Tensor, splits: int = 1, cuts: int = 0) -> Multipliers:
        """Return these slopes, no part of any split or cut, and the objective as it is."""
        n = len(alpha)
        return cls(alpha, alpha.new_zeros(n, splits), alpha.new_ones(n), alpha.new_zeros(n, cuts))

    def rows(self, rows: Tensor) -> Multipliers:
        """Return those of some rows."""
        return Multipliers(*(part[rows] for part in self))

    def double(self) -> Multipliers:
        """Return them in float64."""
        return Multipliers(*(part.double() for part in self))


class Found(NamedTuple):
    """The best bound of every row [b], multipliers near it, and the last pass."""

    bound: Tensor
    best: Multipliers
    run: Pass


def evaluate(
    relaxation: Relaxation, domain: Domain, objective: Objective, splits: Splits,
    at: Multipliers, lines: Lines | None = None,
) -> Pass:  # fmt: skip
    """Return the bound at these multipliers; `domain` is intersected with the splits already."""
    if lines is None:
        lines, at = _lines(domain, at)
    added = torch.zeros_like(at.alpha)
    if splits.unit.shape[1]:
        added.scatter_add_(1, splits.unit, -splits.sign * at.beta)
    if objective.fixed is not None:
        added += objective.fixed
    after, constant = None, torch.zeros_like(at.gamma)
    if domain.cuts is not None:
        inputs, after, constant = domain.cuts.terms(at.cut, lines.floor, lines.ceiling)
        added += inputs
    wanted = objective.wanted
    if objective.scaled:
        wanted = wanted * at.gamma.view(-1, *[1] * (wanted.ndim - 1))
    run = relaxation.descend(domain, lines, at.alpha, objective.start, wanted, added, after)
    return run._replace(bound=run.bound + constant - at.gamma * objective.target)


def _lines(domain: Domain, at: Multipliers) -> tuple[Lines, Multipliers]:
    width = at.alpha.shape[1]
    lines = Lines.of(domain.low[:, :width], domain.high[:, :width])
    return lines, at._replace(alpha=lines.clamp(at.alpha))


def optimize(
    relaxation: Relaxation, domain: Domain, objective: Objective, splits: Splits,
    at: Multipliers, iterations: int, enough: float = torch.inf,
) -> Found:  # fmt: skip
    """Maximize the bound of every row; `domain` is intersected with the splits already.

    Rows above `enough` keep the multipliers that brought them there, others the last.
    """
    lines, (alpha, *others) = _lines(domain, at)
    now = Multipliers(alpha, *(part.clone() for part in others))
    kept: Multipliers | None = None
    best = torch.full_like(now.gamma, -torch.inf)
    rates = [{"params": [p], "lr": lr} for p, lr in zip(now, _RATES, strict=True)]
    adam = torch.optim.Adam(rates, maximize=True, fused=True)
    step = 0
    while True:
        run = evaluate(relaxation, domain, objective, splits, now, lines)
        crossed = ((best <= enough) & (run.bound > enough)).nonzero().flatten()
        best = torch.maximum(best, run.bound)
        if len(crossed):
            kept = kept or Multipliers(*(part.clone() for part in now))
            for whole, part in zip(kept, now, strict=True):
                whole[crossed] = part[crossed]
        if step == iterations or bool((best > enough).all()):
            break
        up = relaxation.ascend(run, lines, now.alpha, objective.start)
        now.alpha.grad = up.slopes
        now.beta.grad = -splits.sign * up.inputs.gather(1, splits.unit)
        gain = (objective.wanted * up.output).flatten(1).sum(1) - objective.target
        now.gamma.grad = gain * objective.scaled
        if domain.cuts is not None:
            now.cut.grad = domain.cuts.slopes(now.cut, lines.floor, lines.ceiling, up)
        for group in adam.param_groups:
            group["lr"] *= _DECAY if step else 1.0
        step += 1
        adam.step()
        now.alpha.copy_(lines.clamp(now.alpha))
        now.beta.clamp_min_(0)
        now.gamma.clamp_min_(0)
        now.cut.clamp_min_(0)
    if kept is not None:
        still = (best <= enough).nonzero().flatten()
        for whole, part in zip(kept, now, strict=True):
            whole[still] = part[still]
    return Found(best, kept or now, run)
