"""Decision trees and small forests of scikit-learn, searched exactly leaf by leaf.

scikit-learn turns inputs into float32 and goes left where x <= threshold, a comparison in float64.
So a leaf is a box of float32 numbers, bounds included. The point of a box nearest to x, in every
norm at once, is x with each feature clamped: a tree is robust at x unless the threat model contains
that point for a leaf of another class (Chen et al., "Robustness Verification of Tree-based Models",
NeurIPS 2019, arXiv:1906.03849, section 3.1: linear in the leaves).

A forest answers with the mean of its trees. Choices of one leaf a tree whose boxes meet are
searched depth first; a branch ends where the box is empty, or where the best leaves of the trees to
come cannot make up the margin (Kantchelian et al. 2016 show the problem to be NP-hard; the paper
above searches cliques of the same boxes, section 3.2). Sums are those of scikit-learn, in its
order, so that ties are its ties.

Gradient boosting adds its trees to a start. There classes are compared two at a time, by the trees
of these two, and what is within rounding of a tie is no proof.

Differs from the paper: exact within a number of branches, no bound beyond it; all norms, and the
rows of tables (`TabularThreat`), where a box is met exactly unless there are linear constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from robustkit.core.table_region import Region
from robustkit.core.tabular import TabularThreat
from robustkit.core.threat import Threat

_BRANCHES = 20_000  # of the search for one point
_ROUNDING = 1e-9  # of sums of shares: what may be lost in another order
_DEEP = 500  # trees that a search may descend through: each takes a frame of Python

Box = dict[int, tuple[float, float]]
Choice = tuple["NDArray[np.float32] | None", bool]


class Leaf(NamedTuple):
    """A leaf: bounds of the features on its path, included, and its scores [k]."""

    box: Box
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Forest:
    """Trees by their leaves; the scores of an input are the mean of one leaf a tree.

    Attributes:
        start: of gradient boosting the scores [k] that trees add to, in place of a mean.
    """

    trees: tuple[tuple[Leaf, ...], ...]
    start: NDArray[np.float64] | None = None

    @cached_property
    def rounding(self) -> float:
        """What sums of scores may lose in another order."""
        if self.start is None:
            return _ROUNDING
        sizes = (max(np.abs(leaf.scores).max() for leaf in tree) for tree in self.trees)
        return _ROUNDING * float(1 + np.abs(self.start).max() + sum(sizes))

    def scores(self, leaves: list[Leaf]) -> NDArray[np.float64]:
        """Return the scores [k] of one leaf a tree, as scikit-learn sums them."""
        if self.start is None and len(self.trees) == 1:
            return leaves[0].scores
        total = np.zeros_like(leaves[0].scores) if self.start is None else self.start.copy()
        for leaf in leaves:
            total += leaf.scores
        if self.start is None:
            total /= len(leaves)
        return total

    def search(
        self, x: NDArray[np.float32], y: int, threat: Threat, branches: int = _BRANCHES
    ) -> tuple[bool, NDArray[np.float32] | None]:
        """Search the threat model around x [d], whose class is column `y`.

        Returns:
            Whether every input has class y, and one that has another. (False, None): given up.
        """
        if y < 0:  # no column has the class
            return False, x
        low, high = _region(x, threat)
        choose, open_ = _chooser(x, threat), False
        near = [[leaf for leaf in tree if _meets(leaf.box, low, high)] for tree in self.trees]
        if len(near) == 1 and self.start is None:  # read to its end: no choices multiply
            branches = len(near[0]) * len(near[0][0].scores)
        budget = iter(range(branches))
        try:
            for target in range(len(near[0][0].scores)):
                if target == y:
                    continue
                for box in self._wrong(y, target, near, budget, low, high):
                    z, sure = choose(box)
                    if z is not None:
                        return False, z
                    open_ = open_ or not sure
        except _GivenUpError:
            return False, None
        return not open_, None

    def _wrong(
        self,
        y: int,
        target: int,
        near: list[list[Leaf]],
        budget: Iterator[int],
        low: list[float],
        high: list[float],
    ) -> Iterator[Box]:
        """Yield what every choice of leaves whose class is not y has in common.

        Choices are left out that cannot bring class `target` up to y.
        """

        def gain(leaf: Leaf) -> float:
            return float(leaf.scores[target] - leaf.scores[y])

        # The trees that decide most come first; of each the leaves that speak for the target.
        gains = [[gain(leaf) for leaf in leaves] for leaves in near]
        order = sorted(range(len(near)), key=lambda t: min(gains[t]) - max(gains[t]))
        if self.start is not None:  # trees of other classes say nothing about these two
            order = [tree for tree in order if any(gains[tree])]
        ahead = np.cumsum([0.0, *(max(gains[tree]) for tree in reversed(order))])[::-1]
        sorted_leaves = [sorted(near[tree], key=gain, reverse=True) for tree in order]
        chosen: list[Leaf] = [near[0][0]] * len(near)
        first = 0.0 if self.start is None else float(self.start[target] - self.start[y])
        if first + ahead[0] < -self.rounding:
            return
        if len(order) > _DEEP:
            raise _GivenUpError

        def descend(depth: int, box: Box, lead: float) -> Iterator[Box]:
            if depth == len(order):
                if self.start is not None or int(self.scores(chosen).argmax()) != y:
                    yield box
                return
            for leaf in sorted_leaves[depth]:
                if next(budget, None) is None:
                    raise _GivenUpError
                now = lead + gain(leaf)
                if now + ahead[depth + 1] < -self.rounding:
                    return  # leaves that follow gain less
                met = _meet(box, leaf.box, low, high)
                if met is not None:
                    chosen[order[depth]] = leaf
                    yield from descend(depth + 1, met, now)

        yield from descend(0, {}, first)


class _GivenUpError(Exception):
    """The branches of a point are used up."""


def _region(x: NDArray[np.float32], threat: Threat) -> tuple[list[float], list[float]]:
    """Return bounds of every feature [d] that hold all of the threat model around x."""
    if isinstance(threat, TabularThreat):
        region = threat.region(torch.from_numpy(x[None]))
        table, span = region.table, region.span
        ends = zip(span, region.ends, strict=True)
        low32, high32 = (torch.where(table.discrete, table.scaled(a), b) for a, b in ends)
        return low32[0].tolist(), high32[0].tolist()
    wide = np.inf if threat.norm == "l0" else threat.eps
    low = np.nextafter((x - wide).astype(np.float32), np.float32(-np.inf))
    high = np.nextafter((x + wide).astype(np.float32), np.float32(np.inf))
    return low.clip(threat.lower).tolist(), high.clip(None, threat.upper).tolist()


def _meets(box: Box, low: list[float], high: list[float]) -> bool:
    return all(lower <= high[f] and upper >= low[f] for f, (lower, upper) in box.items())


def _meet(box: Box, more: Box, low: list[float], high: list[float]) -> Box | None:
    """Return what two boxes share inside a region; None where that is nothing."""
    met = dict(box)
    for feature, (lower, upper) in more.items():
        known = met.get(feature) or (low[feature], high[feature])
        both = max(lower, known[0]), min(upper, known[1])
        if both[0] > both[1]:
            return None
        met[feature] = both
    return met


def _chooser(x: NDArray[np.float32], threat: Threat) -> Callable[[Box], Choice]:
    """Return what finds an input of the threat model around x [d] in a box; None: there is none.

    The second result is whether that is sure: of a table with constraints it may not be.
    """
    if isinstance(threat, TabularThreat):
        region = threat.region(torch.from_numpy(x[None]))
        return partial(_row, region)

    def nearest(box: Box) -> Choice:
        z = x.copy()
        for feature, (lower, upper) in box.items():
            z[feature] = min(max(z[feature], lower), upper)
        return (z if _contains(threat, z, x) else None), True

    return nearest


def _row(region: Region, box: Box) -> Choice:
    low, high = (torch.full((region.table.features,), end) for end in (-torch.inf, torch.inf))
    for feature, (lower, upper) in box.items():
        low[feature], high[feature] = lower, upper
    part = region.within(low, high)
    if part is None:
        return None, True
    z, found = part.repaired(region.table.raw(region.x), region.x)
    return (z[0].numpy() if bool(found[0]) else None), not len(region.table.rows)


def _contains(threat: Threat, z: NDArray[np.float32], x: NDArray[np.float32]) -> bool:
    """Whether the threat model around x [d] contains z [d]."""
    inside = threat.contains(torch.from_numpy(z[None]), torch.from_numpy(x[None]))
    return bool(inside[0])
