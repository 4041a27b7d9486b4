"""One point after the other: cheap bounds for all classes, then a tree for each that stays open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.certify.complete.beta_crown import Multipliers, Objective, Splits, optimize
from robustkit.certify.complete.counterexample import Breaker
from robustkit.certify.complete.record import Recorder
from robustkit.certify.complete.root import Prover, Root
from robustkit.certify.complete.search import MARGIN, Budget, Options, Outcome, Tree, sure
from robustkit.core.criterion import UNTARGETED
from robustkit.core.threat import Threat
from robustkit.core.types import Images

_LARGEST = 2**21  # ReLUs: about 1 GiB for ten classes


class Verified(NamedTuple):
    """What became of a point, after how many subdomains; `example` is believed to break it."""

    outcome: Outcome
    nodes: int
    example: Images | None = None
    open: int = 0


@dataclass(frozen=True)
class PointVerifier:
    """Verifies points of one network.

    Attributes:
        model: decides whether an input breaks a point; it may be more than the bounded network.
        target: margins must exceed this for a proof (0 but for mixtures).
    """

    prover: Prover
    model: Callable[[Images], Tensor]
    threat: Threat
    options: Options = field(default_factory=Options)
    target: float = 0.0

    def verify(self, x: Images, y: int, budget: Budget, record: Recorder | None = None) -> Verified:
        """Verify one point x [1, *f], within a budget; `record` hears what proves it."""
        with torch.no_grad():
            return self._verify(x, y, budget, record)

    def _verify(self, x: Images, y: int, budget: Budget, record: Recorder | None) -> Verified:
        if self.prover.fast.width > _LARGEST:  # memory is a budget too
            return Verified("undecided", 0)
        root = Root(self.prover, x, record=record)
        rows = self._wanted(x, y)
        spans, steps = list(self.prover.fast.spans), self.options.tightening
        # Dearer and dearer: the margins alone, the last layer of ReLUs, all of them.
        for layers, iterations in ((spans, 0), (spans[-1:], steps), (spans, steps)):
            for index in layers:
                root.tighten(index, iterations, over=budget.over)
            rows = rows[self._open(root, rows)]
            if not len(rows):
                return Verified("proved", 0)
        breaker = Breaker(self.model, x, y, self.threat)
        outcome: Outcome = "proved"
        for count, row in enumerate(rows):
            tree = Tree(self.prover, root.copy(), row[None], self.target, self.options, budget,
                        breaker)  # fmt: skip
            outcome = tree.run()
            if outcome != "proved":  # one class that fails decides the point
                return Verified(outcome, budget.used, breaker.example, len(rows) - count)
        return Verified(outcome, budget.used)

    def _wanted(self, x: Images, y: int) -> Tensor:
        """Return e_r − e_j for every class j that breaks the point [m, k], r as a reference."""
        # The margins of a mixture's robust part prove its decision alone.
        criterion = UNTARGETED if self.target else self.threat.criterion
        best, label = y, torch.tensor([y])
        if criterion.suffix:
            best = int(criterion.reference(self.model(x), label))
        eye = torch.eye(self.prover.fast.graph.nodes[-1].shape[0])
        return eye[best] - eye[~criterion.harmless(label, len(eye))[0]]

    def _open(self, root: Root, rows: Tensor) -> Tensor:
        """Return which margins alpha-CROWN does not prove, the worst first."""
        fast, domain, n = self.prover.fast, root.fast(), len(rows)
        objective = Objective(fast.last, rows, target=self.target)
        alpha = (domain.high > -domain.low).float().expand(n, -1).clone()
        begin = Multipliers.start(alpha)
        none = Splits.none(rows)
        found = optimize(fast, domain, objective, none, begin, self.options.first, MARGIN)
        proved = found.bound > MARGIN
        proved = proved & sure(self.prover, root, objective, none, found.best)[0]
        order = found.bound.argsort()
        return order[~proved[order]]
