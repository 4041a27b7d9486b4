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
_Arrays = dict[str, NDArray[Any]]


class Refused(Exception):
    """A proof that does not hold: what was expected, and what was found."""


def _expect(holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise Refused(f"expected {expected}, found {found}")


class _Reader:
    """The arrays of a proof, each read from front to back."""

    def __init__(self, arrays: _Arrays) -> None:
        self.arrays, self.at = arrays, dict.fromkeys(arrays, 0)

    def take(self, name: str, count: int) -> NDArray[Any]:
        part = self.arrays[name][self.at[name] : self.at[name] + count]
        self.at[name] += count
        _expect(len(part) == count, f"{count} more numbers of {name}", len(part))
        return part

    def multipliers(self, name: str, count: int) -> Tensor:
        part = torch.from_numpy(self.take(name, count).astype(np.float64))
        _expect(bool(((part >= 0) & (part <= 1e30)).all()), f"{name} ≥ 0", "one that is not")
        return part

    def alpha(self, step: int, rows: int, domain: Domain) -> Tensor:
        if not rows:
            return domain.steep
        bits, width = self.arrays["mask"][step], domain.net.width
        chosen = torch.from_numpy(np.unpackbits(bits, count=width)).bool()
        part = self.multipliers("alpha", rows * int(chosen.sum())).view(rows, -1)
        part = part / 65535 if self.arrays["alpha"].dtype == np.uint16 else part
        _expect(bool((part <= 1).all()), "slopes in [0, 1]", "one above")
        return domain.steep.expand(rows, -1).clone().masked_scatter_(chosen, part)

    def tree(self, width: int) -> list[list[tuple[int, int]]]:
        """Read a tree; list the splits (unit, sign) on the way to each of its leaves."""
        leaves, todo = list[list[tuple[int, int]]](), [list[tuple[int, int]]()]
        while todo:
            way, unit = todo.pop(), int(self.take("tree", 1)[0])
            _expect(unit < width, f"a unit of {width}", unit)
            leaves += [way] if unit < 0 else []
            todo += [[*way, (unit, 1)], [*way, (unit, -1)]] if unit >= 0 else []
        return leaves


def check(net: Network, ball: Ball, label: int, target: float, arrays: _Arrays) -> None:
    """Check that every margin of `label` is above `target` on the ball.

    Raises:
        Refused: where the proof does not show it.
    """
    classes, inside = net.nodes[-1].shape[0], (ball.x >= ball.lower) & (ball.x <= ball.upper)
    _expect(bool(inside.all()) and 0 < ball.eps < torch.inf, "x in the box, and eps", ball.eps)
    told = ball.norm in ("linf", "l2", "l1") and net.nodes[-1].shape == (classes,)
    told = told and 0 <= target < torch.inf and 0 <= label < classes
    _expect(told, "a norm, a label and a target ≥ 0", [ball.norm, label, target])
    base, own, serves, proved, reader = Domain(net, ball, []), None, -1, {label}, _Reader(arrays)
    if ball.norm != "linf":  # rows of the first layer, which the box does not know
        units = np.arange(2 * torch.Size(net.nodes[min(net.spans)].shape).numel())
        base = _tightened(base, min(net.spans), units, base.steep, None, 0.0)
    for step, (kind, at, j, rows, slopes) in enumerate(arrays["plan"].tolist()):
        # Intervals that rest on a margin serve its class alone.
        _expect(own is None or serves == j, f"a step of class {serves}", j)
        _expect(-1 <= j < classes and j != label and slopes in (0, 1, rows), "a step", [j, slopes])
        domain, wanted = base if own is None else own, torch.zeros(1, classes).double()
        wanted[0, label], wanted[0, j] = 1.0, -1.0
        if kind == CLASS and j >= 0:
            _leaves(reader, step, (rows, slopes), domain, wanted, target)
            proved, own = proved | {j}, None
            continue
        _expect(kind == TIGHTEN and at in net.spans, "inputs of ReLUs", [kind, at])
        units, alpha = reader.take("unit", rows), reader.alpha(step, slopes, domain)
        margin = reader.multipliers("gamma", rows)[:, None] * wanted if j >= 0 else None
        tight = _tightened(domain, at, units, alpha, margin, target)
        base, own, serves = (base, tight, j) if j >= 0 else (tight, None, -1)
    _expect(len(proved) == classes, "a tree for every class", f"those of {sorted(proved)}")
    left = [k for k, n in reader.at.items() if n < len(arrays[k]) and k not in ("plan", "mask")]
    _expect(not left, "nothing more", left)


def _tightened(
    domain: Domain, at: int, rows: NDArray[Any], alpha: Tensor, margin: Tensor | None, target: float
) -> Domain:  # fmt: skip
    """Return the domain with the bounds that the rows show: unit ≥ bound, or −unit ≥ bound."""
    shape, span, n = domain.boxes[at][0].shape, domain.net.spans[at], len(rows)
    index = torch.from_numpy(rows.astype(np.int64))
    unit = torch.zeros(n, span.stop - span.start, dtype=torch.float64)
    unit[torch.arange(n), index // 2] = 1.0 - 2.0 * (index % 2).double()
    none, added = torch.zeros(n, 0, dtype=torch.long), unit.new_zeros(n, domain.net.width)
    if margin is None:
        found = _bound(domain, at, unit.view(n, *shape[1:]), alpha, added, none, none)
    else:  # unit ≥ unit + gamma (margin − target) where the margin is at most the target
        added[:, span], lost = unit, target * margin.amax(1)
        found = _bound(domain, len(domain.net.nodes) - 1, margin, alpha, added, none, none) - lost
        found = found - domain.fine * (found.abs() + 2 * lost)
    below = unit.new_full((unit.shape[1], 2), -torch.inf)
    below[index // 2, index % 2] = found
    return domain.cut(at, below[:, 0].view(shape), -below[:, 1].view(shape))


def _leaves(
    reader: _Reader, step: int, rows: tuple[int, int], domain: Domain, wanted: Tensor, target: float
) -> None:  # fmt: skip
    """Check the tree of a class; where the domain is empty the margin is above the target."""
    leaves = reader.tree(domain.net.width)
    depth, n = max(map(len, leaves)), len(leaves)
    _expect(n == rows[0], f"{rows[0]} leaves", n)
    alpha, units = reader.alpha(step, rows[1], domain), torch.zeros(n, depth, dtype=torch.long)
    signs, beta = alpha.new_zeros(n, depth), alpha.new_zeros(n, depth)
    for row, way in enumerate(leaves):
        beta[row, : len(way)] = reader.multipliers("beta", len(way))
        units[row, : len(way)], signs[row, : len(way)] = torch.tensor(way).view(-1, 2).T
    added = alpha.new_zeros(n, domain.net.width).scatter_add_(1, units, -signs * beta)
    last, early, each = len(domain.net.nodes) - 1, not (rows[1] or depth), wanted.expand(n, -1)
    worst = float(_bound(domain, last, each, alpha, added, units, signs, early=early).min())
    _expect(domain.empty or target < worst, f"every leaf above {target:g}", f"{worst:.3g}")


def _bound(domain: Domain, start: int, *rows: Tensor, early: bool = False) -> Tensor:
    """Bound the rows in chunks; where slopes serve all rows there is one row of them."""
    n = len(rows[0])
    size = max(1, _NUMBERS // max(torch.Size(node.shape).numel() for node in domain.net.nodes))
    parts = zip(*(p.split(size) if len(p) == n else [p] * -(-n // size) for p in rows), strict=True)
    found = torch.cat([domain.bound(start, *part, early=early) for part in parts])
    _expect(bool(found.isfinite().all()), "finite bounds", "one that is not")
    return found
