"""Branch and bound on the disjuncts that bounds leave, where each has one constraint."""

from __future__ import annotations

import torch
from torch import Tensor

from robustkit.certify.complete.search import Budget
from robustkit.certify.complete.verifier import build_verifier
from robustkit.certify.graph import Graph
from robustkit.certify.vnnlib.specification import CUBE, Group, Specification


def by_tree(spec: Specification, graph: Graph, group: Group, seconds: float) -> bool | Tensor:
    """Tell whether branch and bound refutes every disjunct of the group within `seconds`.

    Where it believes an input [n] of `CUBE` to meet one, that is returned.

    Of a disjunct with several constraints one alone need be refuted at each input, not the same one
    everywhere: such a group is left to the halves of its box.
    """
    if not bool((group.members.sum(1) == 1).all()) or seconds <= 0:
        return False
    shape = graph.nodes[0].shape
    verifier = build_verifier(spec, shape, CUBE, CUBE)
    if verifier is None:
        return False
    found = verifier.verify(torch.zeros(1, *shape), 0, Budget(seconds))
    return found.outcome == "proved" if found.example is None else found.example[0]
