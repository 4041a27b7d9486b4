"""The rules of a proof: intervals tightened step by step, and a tree of splits for every class.

`plan` [s, 5] lists the steps in order: kind, node, class, rows, rows of slopes (0: the usual ones,
1: one for all rows). What they need is read from the other arrays, from front to back:

    TIGHTEN  better bounds of some inputs of ReLUs, `unit` (2 i for unit i from below, 2 i + 1 for
             minus it). With a class they hold where its margin is at most `target`, `gamma` times
             which is added; they serve the tree of that class.
    CLASS    `tree` in preorder: a unit that is split (≤ 0 first), or −1 for a leaf. Of every leaf
             one `beta` for each split on its way, whose bound shows the margin above `target`.

`mask` [s, ·] tells by bits whose slopes `alpha` holds: in [0, 1] as floats, or in 65535ths.
Any slopes and multipliers in their ranges give true bounds; nothing is believed that is stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.verify.proofs.domain import Ball, Domain
from robustkit.verify.proofs.network import Network

TIGHTEN, CLASS = 0, 1
_NUMBERS = 2**18  # of one layer, in one pass


class Refused(Exception):
    """A proof that does not hold: what was expected, and what was found."""


def _expect(holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise Refused(f"expected {expected}, found {found}")


class _Reader:
    """The arrays of a proof, each read from front to back."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self.arrays, self.at = arrays, dict.fromkeys(arrays, 0)

    def take(self, name: str, count: int) -> NDArray[Any]:
        start = self.at[name]
        self.at[name] = start + count
        part = self.arrays[name][start : start + count]
        _expect(len(part) == count, f"{count} more numbers of {name}", len(part))
        return part

    def multipliers(self, name: str, count: int) -> Tensor:
        part = torch.from_numpy(self.take(name, count).astype(np.float64))
        legal = bool(((part >= 0) & (part <= 1e30)).all())
        _expect(legal, f"{name} ≥ 0", "one that is not")
        return part

    def alpha(self, step: int, rows: int, domain: Domain) -> Tensor:
        if not rows:
            return domain.steep
        bits = np.unpackbits(self.arrays["mask"][step], count=domain.net.width).astype(bool)
        chosen = torch.from_numpy(bits)
        part = self.multipliers("alpha", rows * int(chosen.sum())).view(rows, -1)
        part = part / 65535 if self.arrays["alpha"].dtype == np.uint16 else part
        _expect(bool((part <= 1).all()), "slopes in [0, 1]", "one above")
        whole = domain.steep.expand(rows, -1).clone()
        whole[:, chosen] = part
        return whole

    def tree(self, width: int) -> list[list[tuple[int, int]]]:
        """Read a tree; list the splits (unit, sign) on the way to each of its leaves."""
        leaves, todo = list[list[tuple[int, int]]](), [list[tuple[int, int]]()]
        while todo:
            way, unit = todo.pop(), int(self.take("tree", 1)[0])
            _expect(unit < width, f"a unit of {width}", unit)
            if unit < 0:
                leaves.append(way)
            else:
                todo += [[*way, (unit, 1)], [*way, (unit, -1)]]
        return leaves


def check(
    net: Network, ball: Ball, label: int, target: float, arrays: dict[str, NDArray[Any]]
) -> None:  # fmt: skip
    """Check that every margin of `label` is above `target` on the ball.

    Raises:
        Refused: where the proof does not show it.
    """
    classes, inside = net.nodes[-1].shape[0], (ball.x >= ball.lower) & (ball.x <= ball.upper)
    _expect(bool(inside.all()) and ball.eps > 0, "a point in the box, eps above 0", ball.eps)
    _expect(net.nodes[-1].shape == (classes,) and 0 <= label < classes, "a label", label)
    _expect(target >= 0, "a target of at least 0", target)
    base, own, proved, reader = Domain(net, ball, []), None, set[int](), _Reader(arrays)
    if ball.norm != "linf":  # rows of the first layers, which the box does not know
        for at in net.spans:
            if not any(net.nodes[i].op == "relu" for i in _before(net, at)):
                units = np.arange(2 * torch.Size(net.nodes[at].shape).numel())
                base = _tightened(base, at, units, base.steep, None, 0)
    for step, (kind, at, j, rows, slopes) in enumerate(arrays["plan"].tolist()):
        domain = base if own is None else own
        _expect(slopes in (0, 1, rows), "slopes for one row or all", slopes)
        _expect(-1 <= j < classes and j != label, "another class", j)
        wanted = torch.zeros(1, classes, dtype=torch.float64)
        wanted[0, label], wanted[0, j] = 1.0, -1.0
        if kind == TIGHTEN:
            units, alpha = reader.take("unit", rows), reader.alpha(step, slopes, domain)
            _expect(at in net.spans and (j >= 0 or own is None), "inputs of ReLUs", at)
            gamma = reader.multipliers("gamma", rows)[:, None] if j >= 0 else None
            margin = None if gamma is None else gamma * wanted
            lost = target * gamma[:, 0] if gamma is not None else 0.0
            tight = _tightened(domain, at, units, alpha, margin, lost)
            base, own = (base, tight) if j >= 0 else (tight, None)
            serves = j
            continue
        _expect(kind == CLASS and j >= 0 and (own is None or serves == j), "a step", [kind, j])
        _leaves(reader, step, (rows, slopes), domain, wanted, target)
        proved.add(j)
        own = None
    missing = set(range(classes)) - {label} - proved
    _expect(not missing, "a tree for every class", f"none for {sorted(missing)}")
    left = [name for name, at in reader.at.items() if at < len(arrays[name])]
    _expect(not set(left) - {"plan", "mask"}, "nothing more", left)


def _before(net: Network, at: int) -> set[int]:
    found = {at}
    for i in range(at, -1, -1):
        found |= set(net.nodes[i].inputs) if i in found else set()
    return found


def _tightened(
    domain: Domain, at: int, rows: NDArray[Any], alpha: Tensor, margin: Tensor | None,
    lost: Tensor | float,
) -> Domain:  # fmt: skip
    """Return the domain with the bounds that the rows show: unit ≥ bound, or −unit ≥ bound."""
    shape, span, n = domain.boxes[at][0].shape, domain.net.spans[at], len(rows)
    row, index = torch.arange(n), torch.from_numpy(rows.astype(np.int64))
    unit = torch.zeros(n, span.stop - span.start, dtype=torch.float64)
    unit[row, index // 2] = 1.0 - 2.0 * (index % 2).double()
    added, wanted, start = unit.new_zeros(n, domain.net.width), unit.view(n, *shape[1:]), at
    if margin is not None:
        added[:, span], wanted, start = unit, margin, len(domain.net.nodes) - 1
    none = torch.zeros(n, 0, dtype=torch.long)
    found = _bound(domain, start, wanted, alpha, added, none, none.double())
    found = found - lost - domain.fine * (found.abs() + lost)
    below = unit.new_full((unit.shape[1], 2), -torch.inf)
    below[index // 2, index % 2] = found
    return domain.cut(at, below[:, 0].view(shape), -below[:, 1].view(shape))


def _leaves(
    reader: _Reader, step: int, rows: tuple[int, int], domain: Domain, wanted: Tensor, target: float
) -> None:  # fmt: skip
    leaves = reader.tree(domain.net.width)
    _expect(len(leaves) == rows[0], f"{rows[0]} leaves", len(leaves))
    depth, n = max(map(len, leaves)), len(leaves)
    alpha = reader.alpha(step, rows[1], domain)
    units, beta = torch.zeros(n, depth, dtype=torch.long), alpha.new_zeros(n, depth)
    signs = alpha.new_zeros(n, depth)
    for row, way in enumerate(leaves):
        beta[row, : len(way)] = reader.multipliers("beta", len(way))
        units[row, : len(way)], signs[row, : len(way)] = torch.tensor(way).view(-1, 2).T
    added = alpha.new_zeros(n, domain.net.width).scatter_add_(1, units, -signs * beta)
    bound = _bound(
        domain,
        len(domain.net.nodes) - 1,
        wanted.expand(n, -1),
        alpha,
        added,
        units,
        signs,
        early=not (rows[1] or depth),
    )
    worst = float(bound.min())
    _expect(target < worst < torch.inf, f"every leaf above {target:g}", f"{worst:.3g}")


def _bound(domain: Domain, start: int, *rows: Tensor, early: bool = False) -> Tensor:
    """Bound the rows in chunks; where slopes serve all rows there is one row of them."""
    n = len(rows[0])
    size = max(1, _NUMBERS // max(torch.Size(node.shape).numel() for node in domain.net.nodes))
    parts = zip(*(p.split(size) if len(p) == n else [p] * -(-n // size) for p in rows), strict=True)
    found = torch.cat([domain.bound(start, *part, early=early) for part in parts])
    _expect(bool(found.isfinite().all()), "finite bounds", "one that is not")
    return found
