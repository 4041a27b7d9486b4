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
    """An open subdomain: its splits, the multipliers of its bound, and what to split next."""

    root: Root
    unit: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    bound: float
    units: Tensor


@dataclass(frozen=True)
class Options:
    """How a tree is searched.

    Attributes:
        plan: how its root is tightened: l, the last layer of ReLUs; f, all layers.
        first, tightening, iterations: steps of Adam at the root, for each of its intermediate
            bounds, and in each subdomain.
        filtered: units whose children are bounded before one is chosen.
        every: splits after which a subdomain gets boxes of its own, tightened by `replan`.
    """

    plan: str = "llfl"
    first: int = 30
    tightening: int = 10
    iterations: int = 12
    filtered: int = 6
    every: int = 10**6
    replan: str = "l"


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
        domain = self.root.fast()
        alpha = (domain.high > -domain.low).float()
        none = Splits.none(alpha)
        begin = Multipliers(alpha, alpha.new_zeros(1, 1), alpha.new_ones(1))
        self._settle(self.root, none, begin, self.options.plan)
        while self.heap:
            if self.budget.over():
                return "undecided"
            count = min(self.size, len(self.heap))
            picked = self._replant([heapq.heappop(self.heap)[2] for _ in range(count)])
            groups: dict[int, list[Leaf]] = {}
            for leaf in picked:
                groups.setdefault(id(leaf.root), []).append(leaf)
            if any([self._expand(group) for group in groups.values()]):
                return "broken"
        return "undecided" if self.stuck else "proved"

    def _settle(self, root: Root, splits: Splits, at: Multipliers, plan: str) -> None:
        """Bound a root, tightening it as planned; into the pool with it if it stays open."""
        spans = list(self.prover.fast.spans)
        for step in ("", *plan):
            for index in {"": [], "l": spans[-1:], "f": spans}[step]:
                root.tighten(index, self.options.tightening, self._objective(1), at, splits)
            if root.empty:
                return
            domain, begin = root.fast(), at._replace(gamma=torch.ones_like(at.gamma))
            objective = self._objective(1)
            found = optimize(self.prover.fast, domain, objective, splits, begin, self.options.first)
            at = found.best
            if float(found.bound) > MARGIN and sure(self.prover, root, objective, splits, at)[0]:
                return
            if self.budget.over():
                break
        self._push(root, domain, splits, found, [0])

    def _linear(self, root: Root, splits: Splits, at: Multipliers, rows: Tensor) -> None:
        """Bound subdomains whose units are all decided; those that stay open end the search."""
        part = Splits(splits.unit[rows], splits.sign[rows])
        begin, objective = Multipliers(*(p[rows] for p in at)), self._objective(len(rows))
        inside = part.intersect(root.fast())
        found = optimize(self.prover.fast, inside, objective, part, begin, _LINEAR)
        proved = sure(self.prover, root, objective, part, found.best)
        self.stuck = self.stuck or not bool(proved.all())
        self.breaks(found.run.minimizer)

    def _replant(self, leaves: list[Leaf]) -> list[Leaf]:
        """Give deep subdomains boxes of their own; return those that keep their root's."""
        kept = []
        for leaf in leaves:
            if len(leaf.unit) - leaf.root.depth < self.options.every:
                kept.append(leaf)
                continue
            splits, root = Splits(leaf.unit[None], leaf.sign[None]), leaf.root.copy()
            root.cut(splits)
            at = Multipliers(leaf.alpha[None].float(), leaf.beta[None], torch.ones(1))
            if not root.empty:
                self._settle(root, splits, at, self.options.replan)
        return kept

    def _push(
        self, root: Root, domain: Domain, splits: Splits, found: Found, rows: list[int]
    ) -> None:
        units = candidates(self.prover.fast, domain, found, splits, self.options.filtered)
        alpha = found.best.alpha.half()  # any α is sound: half the memory
        for r in rows:
            bound = float(found.bound[r])
            leaf = Leaf(root, splits.unit[r], splits.sign[r], alpha[r], found.best.beta[r], bound,
                        units[r])  # fmt: skip
            heapq.heappush(self.heap, (bound, next(self.order), leaf))

    def _expand(self, leaves: list[Leaf]) -> bool:
        """Split leaves of one root in two and bound the children; return whether one breaks."""
        root, fast, n = leaves[0].root, self.prover.fast, len(leaves)
        depth = max(len(leaf.unit) for leaf in leaves)

        def stack(parts: list[Tensor]) -> Tensor:
            return torch.stack([F.pad(part, (0, depth - len(part))) for part in parts])

        splits = Splits(stack([leaf.unit for leaf in leaves]), stack([le.sign for le in leaves]))
        at = Multipliers(torch.stack([leaf.alpha for leaf in leaves]).float(),
                         stack([leaf.beta for leaf in leaves]), torch.ones(n))  # fmt: skip
        units, domain = torch.stack([leaf.units for leaf in leaves]), root.fast()
        unit = choose(fast, domain.expand(n), self._objective(n), splits, at, units)
        if bool((unit < 0).any()):
            # Nothing left to split, and Adam has not converged: linear, so that time will do.
            self._linear(root, splits, at, (unit < 0).nonzero().flatten())
            rows = (unit >= 0).nonzero().flatten()
            return bool(len(rows)) and self._expand([leaves[r] for r in rows])
        split, parent = children(splits, unit)
        inside, objective = split.intersect(domain), self._objective(len(parent))
        begin = Multipliers(at.alpha[parent], F.pad(at.beta[parent], (0, 1)), at.gamma[parent])
        found = optimize(fast, inside, objective, split, begin, self.options.iterations)
        self.budget.used += len(parent)
        proved = found.bound > MARGIN
        if bool(proved.any()):
            rows = proved.nonzero().flatten()
            part = Splits(split.unit[rows], split.sign[rows])
            best = Multipliers(*(p[rows] for p in found.best))
            proved[rows] = sure(self.prover, root, self._objective(len(rows)), part, best)
        rows = found.bound.argsort()
        rows = rows[~proved[rows]]
        self._push(root, inside, split, found, rows.tolist())
        return bool(len(rows)) and self.breaks(found.run.minimizer[rows])
