"""Branch and bound for one point and class: a pool of open subdomains, the worst bound first.

Anytime: what is proved stays proved, and a budget that ends leaves the pair undecided.
"""

from __future__ import annotations

import heapq
import os
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

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

Outcome = Literal["proved", "broken", "undecided"]
MARGIN = 1e-4  # above zero in float32 by this much before float64 is asked


@dataclass
class Budget:
    """Seconds and subdomains that a point may still take; both may be unlimited."""

    seconds: float = float("inf")
    nodes: float = float("inf")
    started: float = field(default_factory=time.monotonic)
    used: int = 0

    def over(self) -> bool:
        """Whether nothing is left."""
        return self.used >= self.nodes or time.monotonic() - self.started >= self.seconds


class Leaf(NamedTuple):
    """An open subdomain: its splits, where its bound stands, and what to split next."""

    root: Root
    unit: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    bound: float
    units: Tensor


@dataclass
class Options:
    """How the tree is searched; the defaults are what was fastest on the literature's nets."""

    iterations: int = 12
    first: int = 30
    filtered: int = 6
    plan: str = "llfl"
    replan: str = "l"
    every: int = 4
    tightening: int = 10


class Tree:
    """One point and class."""

    def __init__(
        self, prover: Prover, root: Root, wanted: Tensor, options: Options, budget: Budget,
        breaks: Callable[[Tensor], bool],
    ) -> None:  # fmt: skip
        self.prover, self.wanted, self.options, self.budget = prover, wanted, options, budget
        self.breaks = breaks
        self.heap: list[tuple[float, int, Leaf]] = []
        self.order = itertools.count()
        largest = max(torch.Size(n.shape).numel() for n in prover.fast.graph.nodes)
        self.size = max(4, CHUNK // largest // 2)
        self.root = root

    def objective(self, rows: int, dtype: torch.dtype = torch.float32) -> Objective:
        """Return the margin as the objective of some rows."""
        return Objective(self.prover.fast.last, self.wanted.to(dtype).expand(rows, -1))

    def run(self) -> Outcome:
        """Search until the margin is proved, an input breaks it, or the budget is over."""
        if not self.prepare():
            return "proved"
        while self.heap:
            if self.budget.over():
                return "undecided"
            picked = [heapq.heappop(self.heap)[2] for _ in range(min(self.size, len(self.heap)))]
            deep = [leaf for leaf in picked if len(leaf.unit) - leaf.root.depth >= self.options.every]
            if deep:
                picked = [leaf for leaf in picked if not any(leaf is d for d in deep)]
                for leaf in deep:
                    self.replant(leaf)
                if not picked:
                    continue
            if self.expand(picked):
                return "broken"
        return "proved"

    def prepare(self) -> bool:
        """Bound the root, tightening it round by round; return whether it stays open."""
        none = Splits(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1))
        alpha = (self.root.fast().high > -self.root.fast().low).float()
        begin = Multipliers(alpha, torch.zeros(1, 1), torch.ones(1))
        return self.settle(self.root, none, begin, self.options.plan)

    def settle(self, root: Root, splits: Splits, at: Multipliers, plan: str) -> bool:
        """Bound a root, tightening it as planned; return whether it stays open, in the pool."""
        spans = list(self.prover.fast.spans)
        for step in ("", *plan):
            layers = {"": [], "l": spans[-1:], "f": spans[1:]}[step]
            for index in layers:
                root.tighten(index, self.options.tightening, self.wanted, at, splits)
                if root.empty:
                    return False
            domain = root.fast()
            found = optimize(self.prover.fast, domain, self.objective(1), splits,
                             Multipliers(at.alpha.clone(), at.beta, torch.ones(1)), self.options.first)
            at = found.best
            if os.environ.get("TELL"): print("     ", step, len(splits.unit[0]), round(float(found.bound), 3), [int(((domain.low<0)&(domain.high>0))[:,s].sum()) for s in self.prover.fast.spans.values()], round(time.process_time(), 1))
            if float(found.bound) > MARGIN and self.sure(root, splits, found.best)[0]:
                return False
        self.push(root, domain, splits, found, [0])
        return True

    def replant(self, leaf: Leaf) -> bool:
        """Give a subdomain tighter boxes of its own; return whether it stays open, in the pool."""
        splits = Splits(leaf.unit[None], leaf.sign[None])
        root = leaf.root.copy()
        root.depth = len(leaf.unit)
        root.cut(splits)
        at = Multipliers(leaf.alpha[None].float(), leaf.beta[None], torch.ones(1))
        return not root.empty and self.settle(root, splits, at, self.options.replan)

    def sure(self, root: Root, splits: Splits, at: Multipliers) -> Tensor:
        """Return where the bound is above zero in float64 with rounding [b]."""
        domain = root.exact()
        splits = Splits(splits.unit, splits.sign.double())
        domain = splits.intersect(domain)
        rows = len(splits.unit)
        run = evaluate(self.prover.exact, domain, self.objective(rows, torch.float64), splits,
                       Multipliers(*(part.double() for part in at)))  # fmt: skip
        return run.bound > 0

    def push(self, root: Root, domain: Domain, splits: Splits, found: Found, rows: list[int]) -> None:
        """Add open subdomains to the pool."""
        units = candidates(self.prover.fast, domain, found, splits, self.options.filtered)
        for r in rows:
            leaf = Leaf(root, splits.unit[r], splits.sign[r], found.best.alpha[r].half(),
                        found.best.beta[r], float(found.bound[r]), units[r])  # fmt: skip
            heapq.heappush(self.heap, (leaf.bound, next(self.order), leaf))

    def expand(self, leaves: list[Leaf]) -> bool:
        """Split every leaf in two and bound the children; return whether an input breaks."""
        roots: dict[int, list[Leaf]] = {}
        for leaf in leaves:
            roots.setdefault(id(leaf.root), []).append(leaf)
        return any([self._expand(group) for group in roots.values()])

    def _expand(self, leaves: list[Leaf]) -> bool:
        root, fast = leaves[0].root, self.prover.fast
        depth = max(len(leaf.unit) for leaf in leaves)
        pad = torch.nn.functional.pad
        splits = Splits(*(
            torch.stack([pad(part, (0, depth - len(part))) for part in parts])
            for parts in ([leaf.unit for leaf in leaves], [leaf.sign for leaf in leaves])
        ))  # fmt: skip
        beta = torch.stack([pad(leaf.beta, (0, depth - len(leaf.beta))) for leaf in leaves])
        alpha = torch.stack([leaf.alpha for leaf in leaves]).float()
        at = Multipliers(alpha, beta, torch.ones(len(leaves)))
        units = torch.stack([leaf.units for leaf in leaves])
        domain = root.fast()
        unit = choose(fast, domain.expand(len(leaves)), self.objective(len(leaves)), splits, at, units)
        split, parent = children(splits, unit)
        inside = split.intersect(domain)
        begin = Multipliers(alpha[parent], pad(beta[parent], (0, 1)), at.gamma[parent])
        found = optimize(fast, inside, self.objective(len(parent)), split, begin, self.options.iterations)
        self.budget.used += len(parent)
        proved = found.bound > MARGIN
        if bool(proved.any()):
            rows = proved.nonzero().flatten()
            part = Multipliers(*(p[rows] for p in found.best))
            proved[rows] = self.sure(root, Splits(split.unit[rows], split.sign[rows]), part)
        rows = (~proved).nonzero().flatten().tolist()
        if not rows:
            return False
        self.push(root, inside, split, found, rows)
        return self.breaks(found.run.minimizer[rows])
