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
from robustkit.certify.complete.cuts import Cuts
from robustkit.certify.complete.learning import Pool, needed
from robustkit.certify.complete.leaves import solve
from robustkit.certify.complete.relaxation import Domain, Pass
from robustkit.certify.complete.root import Prover, Root
from robustkit.core.types import Images

Outcome: TypeAlias = Literal["proved", "broken", "undecided"]
_POOL = 2**30  # ReLUs of all open subdomains: about 3 GiB
_LINEAR = 300  # steps of Adam where nothing is left to split
MARGIN = 1e-4  # what float32 must find above the target before float64 is asked
_AGAIN = 1.2  # times what rounding has cost, before a bound that float64 has refused is left


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
    cut: Tensor
    units: Tensor


@dataclass(frozen=True)
class Options:
    """How a tree is searched.

    Attributes:
        plan: how its root is tightened: l, the last layer of ReLUs; f, all layers.
        first, tightening, iterations: steps of Adam at the root, for each of its intermediate
            bounds, and in each subdomain.
        filtered: units whose children are bounded before one is chosen.
        cuts: how many are kept; 0, the default: none is learned. Cuts save a few subdomains in a
            hundred and cost more time than that (docs/reference/benchmarks.md).
    """

    plan: str = "lll"
    first: int = 30
    tightening: int = 10
    iterations: int = 6
    filtered: int = 6
    cuts: int = 0


def sure(
    prover: Prover, root: Root, objective: Objective, splits: Splits, at: Multipliers,
    cuts: Cuts | None = None,
) -> tuple[Tensor, Pass]:  # fmt: skip
    """Return where the bound is above the target in float64 with rounding [b], and its pass."""
    exact, domain = splits.double(), root.exact()._replace(cuts=cuts)
    run = evaluate(prover.exact, exact.intersect(domain), objective.double(), exact, at.double())
    proved = run.bound > 0
    if root.record is not None:
        root.record.closed(objective, splits, at, proved.nonzero().flatten(), root.fast())
    return proved, run


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
        self.order, self.stuck, self.enough = itertools.count(), False, MARGIN
        self.pool = Pool(options.cuts if root.record is None else 0)  # stored proofs know no cuts
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
        none, at = Splits.none(alpha), Multipliers.start(alpha)
        found = optimize(fast, root.fast(), objective, none, at, self.options.first, MARGIN)
        for step in (*self.options.plan, None):
            bound, at = float(found.bound), found.best
            if bound > MARGIN and bool(sure(self.prover, root, objective, none, at)[0]):
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
            bound, used = float(found.bound[r]), splits.sign[r] != 0
            leaf = Leaf(splits.unit[r][used], splits.sign[r][used], alpha[r],
                        found.best.beta[r][used], found.best.cut[r], units[r])  # fmt: skip
            heapq.heappush(self.heap, (bound, next(self.order), leaf))

    def _domain(self) -> Domain:
        return self.root.fast()._replace(cuts=self.pool.fast)

    def _stack(self, leaves: list[Leaf]) -> tuple[Splits, Multipliers, Tensor]:
        """Put leaves of several depths below each other; return also their candidates."""

        def stack(name: str, most: int) -> Tensor:
            parts = [getattr(leaf, name) for leaf in leaves]
            return torch.stack([F.pad(part, (0, most - len(part))) for part in parts])

        depth = max(1, *(len(leaf.unit) for leaf in leaves))
        alpha = torch.stack([leaf.alpha for leaf in leaves]).float()
        at = Multipliers(alpha, stack("beta", depth), torch.ones(len(leaves)),
                         stack("cut", len(self.pool.sets)))  # fmt: skip
        splits = Splits(stack("unit", depth), stack("sign", depth))
        return splits, at, torch.stack([leaf.units for leaf in leaves])

    def _expand(self, leaves: list[Leaf]) -> bool:
        """Split leaves in two and bound the children; return whether an input breaks."""
        splits, at, units = self._stack(leaves)
        grown, begin, empty = self.pool.infer(splits, at)
        more = (grown.sign != 0).sum(1) > (splits.sign != 0).sum(1)
        implied, rest = ((part & ~empty).nonzero().flatten() for part in (more, ~more))
        # A leaf that cuts have split meanwhile has better candidates after a bound.
        if self._keep(grown.rows(implied), begin.rows(implied)):
            return True
        splits, at = splits.rows(rest), at.rows(rest)
        return bool(len(rest)) and self._split(splits, at, units[rest])

    def _split(self, splits: Splits, at: Multipliers, units: Tensor) -> bool:
        objective = self._objective(len(units))
        unit, bounds = choose(self.prover.fast, self._domain(), objective, splits, at, units)
        rest = unit >= 0
        if not bool(rest.all()) and self._linear(splits.rows(~rest), at.rows(~rest)):
            return True
        split, parent = children(splits.rows(rest), unit[rest])
        begin = at.rows(rest).rows(parent)
        begin = begin._replace(beta=F.pad(begin.beta, (0, 1)))
        self.budget.used += len(parent)
        split, begin, empty = self.pool.infer(split, begin)
        # What the choice has proved on its way needs no step of Adam.
        bounds = bounds.view(-1, 2)[rest].flatten().masked_fill(empty, -torch.inf)
        left = ~empty & ~self._sure(split, begin, bounds, MARGIN)
        return self._keep(split.rows(left), begin.rows(left))

    def _keep(self, splits: Splits, begin: Multipliers) -> bool:
        """Bound subdomains and keep those that stay open; return whether an input breaks."""
        if not len(splits.unit):
            return False
        found, inside, proved = self._bound(splits, begin, self.options.iterations)
        rows = found.bound.argsort()
        rows = rows[~proved[rows]]
        self._push(inside, splits, found, rows.tolist())
        return bool(len(rows)) and self.breaks(found.run.minimizer[rows])

    def _sure(self, splits: Splits, at: Multipliers, bounds: Tensor, asked: float) -> Tensor:
        """Return which rows are proved in float64 [b], of those above `asked` in float32.

        Cuts are learned from them; where rounding costs more than expected, more is expected.
        """
        proved = bounds > asked
        rows = proved.nonzero().flatten()
        if len(rows):
            splits, at, objective = splits.rows(rows), at.rows(rows), self._objective(len(rows))
            shown, run = sure(self.prover, self.root, objective, splits, at, self.pool.exact)
            proved[rows] = shown
            lost = (bounds[rows] - run.bound)[~shown & (bounds[rows] > MARGIN)]
            self.enough = max(self.enough, *(MARGIN + _AGAIN * lost).tolist(), MARGIN)
            if self.pool.most:
                self._learn(splits, at, run, shown)
        return proved

    def _learn(self, splits: Splits, at: Multipliers, run: Pass, shown: Tensor) -> None:
        """Add cuts of the closed subdomains that need only some of their splits."""
        objective = self._objective(len(shown))
        keep = needed(self.prover.fast, self._domain(), objective, splits, at, run, MARGIN)
        rows = (shown & (keep.sum(1) < splits.sign.abs().sum(1))).nonzero().flatten()
        few, fewer = splits.reduced(keep).rows(rows), at._replace(beta=at.beta * keep).rows(rows)
        if len(rows):
            objective = self._objective(len(rows))
            shown, _ = sure(self.prover, self.root, objective, few, fewer, self.pool.exact)
            self.pool.add(few.rows(shown).listed(), self.root.exact())

    def _bound(
        self, splits: Splits, begin: Multipliers, iterations: int, asked: float = MARGIN
    ) -> tuple[Found, Domain, Tensor]:
        """Bound subdomains; return also their domains, and which are proved in float64.

        Args:
            asked: float64 is, where float32 finds more than this.
        """
        fresh = len(self.pool.sets) - begin.cut.shape[1]
        begin = begin._replace(cut=F.pad(begin.cut, (0, fresh)))
        domain, n = splits.intersect(self._domain()), len(splits.unit)
        found = optimize(
            self.prover.fast, domain, self._objective(n), splits, begin, iterations, self.enough
        )
        return found, domain, self._sure(splits, found.best, found.bound, asked)

    def _linear(self, splits: Splits, begin: Multipliers) -> bool:
        """Bound subdomains without a unit left to split; return whether an input breaks.

        They are linear programs; in l2 they are not, and Adam needs time only. One that stays open
        all the same (a margin of zero, up to rounding) leaves the point undecided.
        """
        objective, inside = self._objective(len(splits.unit)), splits.double()
        domain = inside.intersect(self.root.exact())
        solved = solve(self.prover.exact, domain, objective.double(), splits)
        if solved is None:
            found, _, proved = self._bound(splits, begin, _LINEAR, -torch.inf)
            z = found.run.minimizer
        else:
            beta, z = solved
            at = begin._replace(beta=beta, gamma=torch.ones_like(begin.gamma))
            proved, _ = sure(self.prover, self.root, objective, splits, at)
        self.stuck = self.stuck or not bool(proved.all())
        return self.breaks(z.to(splits.sign.dtype))
