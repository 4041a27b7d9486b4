"""A property as a classifier: class 0 wins over class j where constraint j is violated."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from robustkit.certify.vnnlib.query import Array, Disjunct
from robustkit.core.threat import Threat

CUBE = Threat("linf", 1.0, lower=-1.0, upper=1.0)  # the inputs of a specification, around 0


class Specification(nn.Module):
    """u [b, n] in [−1, 1] -> logits [b, m + 1]: 0, then limit_j − row_j · (x, f(x)).

    x = center + radius · u is an input of the box. Margins of class 0 are row_j · (x, y) − limit_j:
    a lower bound above 0 refutes constraint j over the whole box. So every certificate and every
    attack for classifiers serves here as it is.
    """

    center: Tensor
    radius: Tensor

    def __init__(self, network: nn.Module, rows: Array, limits: Array, n: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("center", torch.zeros(1, n))
        self.register_buffer("radius", torch.ones(1, n))
        # Inputs are joined to the outputs only where a constraint mixes them.
        self.joined = bool(rows[:, :n].any())
        used = rows if self.joined else rows[:, n:]
        weight, bias = np.zeros((len(used) + 1, used.shape[1])), np.zeros(len(used) + 1)
        weight[1:], bias[1:] = -used, limits
        self.last = nn.Linear(weight.shape[1], len(weight))
        with torch.no_grad():
            self.last.weight.copy_(torch.from_numpy(weight))
            self.last.bias.copy_(torch.from_numpy(bias))

    def forward(self, u: Tensor) -> Tensor:
        """[b, n] -> [b, m + 1]."""
        x = u * self.radius + self.center
        answer = self.network(x)
        found: Tensor = self.last(torch.cat([x, answer], 1) if self.joined else answer)
        return found

    def place(self, low: Array, high: Array) -> None:
        """Move to another box [n]; what was traced before follows."""
        with torch.no_grad():
            self.center.copy_(torch.from_numpy((low + high) / 2))
            self.radius.copy_(torch.from_numpy((high - low) / 2))


class Group:
    """The disjuncts over one box, with their constraints in one table.

    Attributes:
        rows, limits, strict: of all constraints, and behind them of sums of those of one disjunct,
            which no input can violate without violating one of them.
        members: which constraints belong to each disjunct [d, m].
        refuting: which rows refute it [d, m]: its constraints and their sum.
    """

    def __init__(self, disjuncts: list[Disjunct]) -> None:
        self.disjuncts, first = disjuncts, disjuncts[0]
        self.low, self.high = first.low, first.high
        sums = [d for d in disjuncts if len(d.rows) > 1]
        tables = [d.rows for d in disjuncts] + [_unit(d)[0].sum(0)[None] for d in sums]
        sides = [d.limits for d in disjuncts] + [_unit(d)[1].sum()[None] for d in sums]
        self.rows, self.limits = np.concatenate(tables), np.concatenate(sides)
        self.strict = np.zeros(len(self.rows), dtype=bool)
        self.members = np.zeros((len(disjuncts), len(self.rows)), dtype=bool)
        begin, extra = 0, sum(len(d.rows) for d in disjuncts)
        for place, one in enumerate(disjuncts):
            end = begin + len(one.rows)
            self.members[place, begin:end] = True
            self.strict[begin:end] = one.strict
            begin = end
        self.refuting = self.members.copy()
        for place, one in enumerate(disjuncts):
            if len(one.rows) > 1:
                self.refuting[place, extra] = True
                extra += 1

    def refuted(self, lower: Array) -> bool:
        """Tell whether lower bounds of the margins [m] refute every disjunct."""
        done = np.where(self.strict, lower >= 0, lower > 0)
        return bool((self.refuting & done).any(1).all())


def grouped(disjuncts: list[Disjunct]) -> list[Group]:
    """Group by box; boxes without a point are left out."""
    found: dict[bytes, list[Disjunct]] = {}
    for one in disjuncts:
        if (one.low <= one.high).all():
            found.setdefault(one.low.tobytes() + one.high.tobytes(), []).append(one)
    return [Group(several) for several in found.values()]


def _unit(one: Disjunct) -> tuple[Array, Array]:
    """Return rows and limits, each divided by the length of its row."""
    length = np.maximum(np.linalg.norm(one.rows, axis=1), 1e-12)
    return one.rows / length[:, None], one.limits / length
