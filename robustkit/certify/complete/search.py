"""Branch and bound for one point and class: a pool of open subdomains, the worst bound first.

Anytime: what is proved stays proved, and a budget that ends leaves the pair undecided. What is done
depends on this point and class alone, not on others in a batch.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.complete.beta_crown import (
    CHUNK,
    Found,
    Multipliers,
    Objective,
    Splits,
    evaluate,
    optimize,
)
from robustkit.certify.complete.branching import candidates, children, choose
from robustkit.certify.complete.relaxation import Domain
from robustkit.certify.complete.root import Prover, Root
from robustkit.core.types import Images

Outcome: TypeAlias = Literal["proved", "broken", "undecided"]
_POOL = 2**30  # ReLUs of all open subdomains: about 3 GiB
_LINEAR = 300  # steps of Adam where nothing is left to split
MARGIN = 1e-4  # what float32 must find above the target before float64 is asked


@dataclass
class Budget:
    """Seconds and subdomains that a point may take."""

    seconds: float = float("inf")
    nodes: float = float("inf")
    clock: Callable[[], float] = time.monotonic
    used: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def over(self) -> bool:
        """Whether nothing is left."""
        return self.used >= self.nodes or self.clock() - self.started >= self.seconds


class Leaf(NamedTuple):
    """An open subdomain: its splits, the multipliers of its bound, and units to split next."""

    unit: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    units: Tensor


@dataclass(frozen=True)
class Options:
    """How a tree is searched.

    Attributes:
        plan: how its root is tightened: l, the last layer of ReLUs; f, all layers.
        first, tightening, iterations: steps of Adam at the root, for each of its intermediate
            bounds, and in each subdomain.
        filtered: units whose children are bounded before one is chosen.
    """

    plan: str = "lll"
    first: int = 30
    tightening: int = 10
    iterations: int = 6
    filtered: int = 6


def sure(
    prover: Prover, root: Root, objective: Objective, splits: Splits, at: Multipliers
) -> Tensor:
    """Return where the bound is above the target in float64 with rounding [b]."""
    exact = Splits(splits.unit, splits.sign.double())
    run = evaluate(prover.exact, exact.intersect(root.exact()), objective.double(), exact,
                   Multipliers(*(part.double() for part in at)))  # fmt: skip
    proved = run.bound > 0
    if root.record is not None:
        root.record.closed(objective, splits, at, proved.nonzero().flatten(), root.fast())
    return proved


class Tree:
    """The search for one point and class.

    `breaks` tries inputs [b, *f], the most promising first, and says whether one breaks the point.
    """

    def __init__(
        self, prover: Prover, root: Root, wanted: Tensor, target: float, options: Options,
        budget: Budget, breaks: Callable[[Images], bool],
    ) -> None:  # fmt: skip
        self.prover, self.root, self.wanted, self.target = prover, root, wanted, target
        self.options, self.budget, self.breaks = options, budget, breaks
        self.heap: list[tuple[float, int, Leaf]] = []
        self.order, self.stuck = itertools.count(), False
        largest = max(prod(node.shape) for node in prover.fast.graph.nodes)
        self.size = max(4, CHUNK // largest // 2)

    def _objective(self, rows: int) -> Objective:
        wanted = self.wanted.expand(rows, -1)
        return Objective(self.prover.fast.last, wanted, target=self.target)

    def run(self) -> Outcome:
        """Search until the margin is proved, an input breaks it, or the budget is over."""
        self._start()
        while self.heap:
            # Memory is a budget too.
            if self.budget.over() or len(self.heap) * self.prover.fast.width > _POOL:
                return "undecided"
            count = min(self.size, len(self.heap))
            if self._expand([heapq.heappop(self.heap)[2] for _ in range(count)]):
                return "broken"
        return "undecided" if self.stuck else "proved"

    def _start(self) -> None:
        """Bound the root, tightening it as planned; into the pool with it if it stays open."""
        fast, root, objective = self.prover.fast, self.root, self._objective(1)
        layers, alpha = list(fast.spans), (root.fast().high > -root.fast().low).float()
        none, at = Splits.none(alpha), Multipliers(alpha, alpha.new_zeros(1, 1), alpha.new_ones(1))
        found = optimize(fast, root.fast(), objective, none, at, self.options.first, MARGIN)
        for step in (*self.options.plan, None):
            bound, at = float(found.bound), found.best
            if bound > MARGIN and bool(sure(self.prover, root, objective, none, at)):
                return
            if step is None or self.budget.over():
                break
            for index in layers[-1:] if step == "l" else layers:
                root.tighten(index, self.options.tightening, objective, at, self.budget.over)
            if root.empty:  # no input of the ball has a margin that is not above the target
                return
            at = at._replace(gamma=torch.ones_like(at.gamma))
            found = optimize(fast, root.fast(), objective, none, at, self.options.first, MARGIN)
        self._push(root.fast(), none, found, [0])

    def _push(self, domain: Domain, splits: Splits, found: Found, rows: list[int]) -> None:
        units = candidates(self.prover.fast, domain, found, splits, self.options.filtered)
        alpha = found.best.alpha.half()  # any α is sound: half the memory
        for r in rows:
            bound = float(found.bound[r])
            leaf = Leaf(splits.unit[r], splits.sign[r], alpha[r], found.best.beta[r], units[r])
            heapq.heappush(self.heap, (bound, next(self.order), leaf))

    def _expand(self, leaves: list[Leaf]) -> bool:
        """Split leaves in two and bound the children; return whether an input breaks."""
        fast, n, domain = self.prover.fast, len(leaves), self.root.fast()
        depth = max(len(leaf.unit) for leaf in leaves)

        def stack(parts: list[Tensor]) -> Tensor:
            return torch.stack([F.pad(part, (0, depth - len(part))) for part in parts])

        splits = Splits(stack([leaf.unit for leaf in leaves]), stack([le.sign for le in leaves]))
        at = Multipliers(torch.stack([leaf.alpha for leaf in leaves]).float(),
                         stack([leaf.beta for leaf in leaves]), torch.ones(n))  # fmt: skip
        units = torch.stack([leaf.units for leaf in leaves])
        unit, bounds = choose(fast, domain, self._objective(n), splits, at, units)
        rest = (unit >= 0).nonzero().flatten().tolist()
        if len(rest) < n:
            rows = (unit < 0).nonzero().flatten()
            linear = Splits(splits.unit[rows], splits.sign[rows])
            begin = Multipliers(*(part[rows] for part in at))
            if self._linear(linear, begin):
                return True
            return bool(rest) and self._expand([leaves[r] for r in rest])
        split, parent = children(splits, unit)
        begin = Multipliers(at.alpha[parent], F.pad(at.beta[parent], (0, 1)), at.gamma[parent])
        self.budget.used += len(parent)
        # What the choice has proved on its way needs no step of Adam.
        left = (~self._sure(split, begin, bounds > MARGIN)).nonzero().flatten()
        if not len(left):
            return False
        split = Splits(*(part[left] for part in split))
        begin = Multipliers(*(part[left] for part in begin))
        found, inside, proved = self._bound(split, begin, self.options.iterations)
        rows = found.bound.argsort()
        rows = rows[~proved[rows]]
        self._push(inside, split, found, rows.tolist())
        return bool(len(rows)) and self.breaks(found.run.minimizer[rows])

    def _sure(self, splits: Splits, at: Multipliers, believed: Tensor) -> Tensor:
        """Return which of the rows believed to be proved are, in float64 [b]."""
        proved, rows = believed.clone(), believed.nonzero().flatten()
        if len(rows):
            part, best = Splits(*(p[rows] for p in splits)), Multipliers(*(p[rows] for p in at))
            proved[rows] = sure(self.prover, self.root, self._objective(len(rows)), part, best)
        return proved

    def _bound(
        self, splits: Splits, begin: Multipliers, iterations: int, asked: float = MARGIN
    ) -> tuple[Found, Domain, Tensor]:
        """Bound subdomains; return also their domains, and which are proved in float64.

        Args:
            asked: float64 is, where float32 finds more than this.
        """
        domain, n = splits.intersect(self.root.fast()), len(splits.unit)
        found = optimize(
            self.prover.fast, domain, self._objective(n), splits, begin, iterations, MARGIN
        )
        return found, domain, self._sure(splits, found.best, found.bound > asked)

    def _linear(self, splits: Splits, begin: Multipliers) -> bool:
        """Bound subdomains without a unit left to split; return whether an input breaks.

        They are linear programs, for which Adam needs time only; one that stays open all the same
        (a margin of zero, up to rounding) leaves the point undecided.
        """
        found, _, proved = self._bound(splits, begin, _LINEAR, -torch.inf)
        self.stuck = self.stuck or not bool(proved.all())
        return self.breaks(found.run.minimizer)
