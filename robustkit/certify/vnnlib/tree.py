"""Branch and bound on the disjuncts that bounds leave."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustkit.certify.complete.search import Budget
from robustkit.certify.complete.verifier import build_verifier
from robustkit.certify.graph import Graph
from robustkit.certify.vnnlib.specification import CUBE, Group, Specification


def by_tree(spec: Specification, graph: Graph, group: Group, seconds: float) -> bool | Tensor:
    """Tell whether branch and bound refutes every disjunct of the group within `seconds`.

    Where it believes an input [n] of `CUBE` to meet one, that is returned.
    """
    if seconds <= 0:
        return False
    shape = graph.nodes[0].shape
    alone = bool((group.members.sum(1) == 1).all()) and group.members.any(0).all()
    verifier = build_verifier(spec if alone else Worst(spec, group), shape, CUBE, CUBE)
    if verifier is None:
        return False
    found = verifier.verify(torch.zeros(1, *shape), 0, Budget(seconds))
    return found.outcome == "proved" if found.example is None else found.example[0]


class Worst(nn.Module):
    """u [b, n] in [−1, 1] -> logits [b, d + 1]: 0, then how far each disjunct is met by its worst.

    Of a disjunct's constraints one alone need be refuted at each input, not the same one
    everywhere: min(p, q) = p − relu(p − q), so that branch and bound splits on which one it is.
    """

    def __init__(self, spec: Specification, group: Group) -> None:
        super().__init__()
        self.spec, self.rounds = spec, nn.ModuleList()
        ways = [(row.nonzero()[0] + 1).tolist() for row in group.members]  # class 0 is of none
        width = group.members.shape[1] + 1
        while max(map(len, ways)) > 1 or width > len(ways) + 1:
            self.rounds.append(_Smaller(ways, width))
            halves, place = [], 1
            for way in ways:
                halves.append(list(range(place, place + (len(way) + 1) // 2)))
                place += len(halves[-1])
            ways, width = halves, place

    def forward(self, u: Tensor) -> Tensor:
        """[b, n] -> [b, d + 1]."""
        found: Tensor = self.spec(u)
        for smaller in self.rounds:
            found = smaller(found)
        return found


class _Smaller(nn.Module):
    """The smaller one of every two values of a disjunct; one that is over stays."""

    def __init__(self, ways: list[list[int]], width: int) -> None:
        super().__init__()
        pairs = [[way[i : i + 2] for i in range(0, len(way), 2)] for way in ways]
        listed = [[0], *(pair for several in pairs for pair in several)]
        both = [place for place, pair in enumerate(listed) if len(pair) == 2]
        eye, out = torch.eye(width), torch.eye(len(listed))
        self.first = _linear(eye[[pair[0] for pair in listed]])
        self.lead = _linear(torch.stack([eye[p] - eye[q] for p, q in (listed[i] for i in both)]))
        self.place = _linear(out[:, both])

    def forward(self, values: Tensor) -> Tensor:
        """[b, width] -> [b, pairs + 1]."""
        found: Tensor = self.first(values) - self.place(self.lead(values).relu())
        return found


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer
