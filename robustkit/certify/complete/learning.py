"""Learning cuts: which splits a proof needs, and what known cuts say about other subdomains."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robustkit.certify.complete.beta_crown import Multipliers, Objective, Splits, evaluate
from robustkit.certify.complete.cuts import Cuts
from robustkit.certify.complete.relaxation import Domain, Lines, Pass, Relaxation

_ROUNDS = 4  # of inference: one implied split may imply the next


class Pool:
    """The cuts of one tree, at most `most`; a shorter one takes the place of the longest.

    Attributes:
        sets: splits (unit: sign) that no input that matters has together.
        exact, fast: the same in float64 and float32; None without any.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.sets = list[dict[int, float]]()
        self.exact: Cuts | None = None
        self.fast: Cuts | None = None

    def add(self, ways: list[dict[int, float]], root: Domain) -> None:
        """Add sets of splits without an input that matters, but for those known already.

        Args:
            root: intervals of the whole tree [1, ...], in float64.
        """
        for way in sorted(ways, key=len):
            items = way.items()
            if any(known.items() <= items for known in self.sets):
                continue
            # The places of others stay: multipliers found earlier belong to them.
            covered = [i for i, known in enumerate(self.sets) if items <= known.items()]
            longest = max(range(len(self.sets)), key=lambda i: len(self.sets[i]), default=-1)
            if covered:
                self.sets[covered[0]] = way
            elif len(self.sets) < self.most:
                self.sets.append(way)
            elif len(self.sets[longest]) > len(way):
                self.sets[longest] = way
        if not self.sets:
            return
        units = sorted({unit for way in self.sets for unit in way})
        column = {unit: i for i, unit in enumerate(units)}
        sign = torch.zeros(len(self.sets), len(units), dtype=torch.float64)
        for row, way in enumerate(self.sets):
            sign[row, [column[u] for u in way]] = sign.new_tensor(list(way.values()))
        index = torch.tensor(units)
        self.exact = Cuts(index, sign, root.low[0, index], root.high[0, index])
        self.fast = self.exact.to(torch.float32)

    def infer(self, splits: Splits, at: Multipliers) -> tuple[Splits, Multipliers, Tensor]:
        """Return subdomains with the splits that cuts imply, and which are empty by a cut [b].

        A cut that shares all splits but one with a subdomain excludes this one there.
        """
        cuts, empty = self.fast, torch.zeros(len(splits.unit), dtype=torch.bool)
        if cuts is None or not len(empty):
            return splits, at, empty
        size = cuts.sign.abs().sum(1)
        known = torch.zeros_like(at.alpha)
        known = known.scatter_add_(1, splits.unit, splits.sign)[:, cuts.units]
        before = known
        for _ in range(_ROUNDS):
            agree = known @ cuts.sign.t()
            clash = known.abs() @ cuts.sign.abs().t() - agree
            empty |= (agree == size).any(1)
            last = ((clash == 0) & (agree == size - 1)).to(known)
            # The one split of such a cut that is missing gets the opposite sign.
            off, on = (last @ (way * cuts.sign).clamp_min(0) for way in (1, -1))
            missing = known == 0
            empty |= (missing & (off > 0) & (on > 0)).any(1)
            known = torch.where(missing, on.sign() - off.sign(), known)
        added = known - before
        most = int(added.abs().sum(1).max())
        place = added.abs().topk(most, dim=1).indices
        grown = Splits(torch.cat([splits.unit, cuts.units[place]], 1),
                       torch.cat([splits.sign, added.gather(1, place)], 1))  # fmt: skip
        return grown, at._replace(beta=F.pad(at.beta, (0, most))), empty


def needed(
    relaxation: Relaxation, domain: Domain, objective: Objective, splits: Splits,
    at: Multipliers, run: Pass, enough: float,
) -> Tensor:  # fmt: skip
    """Return which splits [b, s] suffice for a bound above `enough`, as few as bisection finds.

    Splits are ranked by what leaving them out costs at most: β times the width of what it opens,
    and the intercept of the line that comes back.

    Args:
        domain: of the root.
        run: the pass that has closed the subdomains.
    """
    opened = torch.where(splits.sign > 0, -domain.low[0][splits.unit], domain.high[0][splits.unit])
    down = run.bound.new_zeros(len(run.bound), relaxation.width)
    for index, (a, _, _) in run.through.items():
        down[:, relaxation.spans[relaxation.graph.nodes[index].inputs[0]]] = (-a).clamp_min(0)
    back = (down * Lines.of(domain.low, domain.high).intercept).gather(1, splits.unit)
    used = splits.sign != 0
    cost = (at.beta * opened + back).masked_fill(~used, -1.0)
    rank = cost.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    few, many = torch.zeros(len(used), dtype=torch.long), used.sum(1)
    while bool((many - few > 1).any()):
        middle = (few + many) // 2
        keep = (rank < middle[:, None]).to(at.beta)
        fewer = splits.reduced(keep)
        inside, begin = fewer.intersect(domain), at._replace(beta=at.beta * keep)
        bound = evaluate(relaxation, inside, objective, fewer, begin).bound
        shown = (bound > enough) & (middle > few)
        many, few = torch.where(shown, middle, many), torch.where(shown, few, middle)
    return rank < many[:, None]
