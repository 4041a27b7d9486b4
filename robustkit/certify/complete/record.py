"""What a search believes, written down as `robustkit.verify.proofs` reads it; see checker.py there.

Nothing is believed of what stands in a proof, so that slopes may be rounded: to 65535ths, half the
memory and, unlike float16, as fine at 1 as at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustkit.certify.complete.beta_crown import Multipliers, Objective, Splits
from robustkit.certify.complete.relaxation import Domain

_TIGHTEN, _CLASS, _STEPS = 0, 1, 65535
_TYPES = {"plan": np.int32, "mask": np.uint8, "unit": np.int32, "gamma": np.float32,
          "tree": np.int32, "beta": np.float32, "alpha": np.uint16}  # fmt: skip
_Arrays = dict[str, NDArray[Any]]


class _Leaf(NamedTuple):
    """The splits (unit, sign) of a closed subdomain, and its multipliers."""

    way: tuple[tuple[int, int], ...]
    beta: NDArray[np.float32]
    mask: NDArray[np.uint8]
    alpha: NDArray[np.uint16]


@dataclass
class Recorder:
    """The proof of one point in the making.

    Attributes:
        width: how many inputs of ReLUs there are.
        shared: better intervals, for all classes.
        steps: better intervals, by class.
        leaves: closed subdomains, by class.
    """

    width: int
    shared: list[_Arrays] = field(default_factory=list)
    steps: dict[int, list[_Arrays]] = field(default_factory=dict)
    leaves: dict[int, list[_Leaf]] = field(default_factory=dict)

    def tightened(
        self, node: int, better: list[tuple[Tensor, Multipliers]], margin: Objective | None,
        domain: Domain, *, usual: bool,
    ) -> None:  # fmt: skip
        """Write down better bounds of inputs of ReLUs.

        Args:
            better: rows, 2 i for unit i from below and 2 i + 1 for minus it, and their multipliers.
            margin: that they rest on; None: none.
            domain: that they were found on [1, ...].
            usual: the slopes are CROWN's.
        """
        rows = torch.cat([torch.zeros(0, dtype=torch.long), *(part for part, _ in better)])
        n, j = len(rows), -1 if margin is None else _other(margin.wanted)
        if not n:
            return
        step: _Arrays = {"unit": rows.numpy()}
        if margin is not None:
            step["gamma"] = torch.cat([at.gamma for _, at in better]).numpy()
        if not usual:
            slopes = [self._slopes(domain, at.alpha) for _, at in better if len(at.alpha)]
            step["mask"] = slopes[0][0]
            step["alpha"] = np.concatenate([part.ravel() for _, part in slopes])
        step["plan"] = np.array([_TIGHTEN, node, j, n, 0 if usual else n])
        (self.shared if margin is None else self.steps.setdefault(j, [])).append(step)

    def closed(
        self, objective: Objective, splits: Splits, at: Multipliers, rows: Tensor, domain: Domain
    ) -> None:
        """Write down those rows of subdomains whose bound is above the target."""
        mask, alpha = self._slopes(domain, at.alpha[rows])
        for place, row in enumerate(rows.tolist()):
            used = splits.sign[row] != 0
            unit, sign = splits.unit[row][used].tolist(), splits.sign[row][used].int().tolist()
            beta, way = at.beta[row][used].float().numpy(), tuple(zip(unit, sign, strict=True))
            leaf = _Leaf(way, beta, mask, alpha[place])
            self.leaves.setdefault(_other(objective.wanted[row]), []).append(leaf)

    def _slopes(self, domain: Domain, alpha: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return which units are open, as bits, and their slopes [rows, ·] in 65535ths."""
        width = alpha.shape[1]
        chosen = ((domain.low < 0) & (domain.high > 0))[0, :width]
        parts = (alpha[:, chosen] * _STEPS).round().numpy().astype(np.uint16)
        return np.packbits(np.pad(chosen.numpy(), (0, self.width - width))), parts

    def result(self, classes: int, label: int) -> _Arrays | None:
        """Return the arrays of the proof; None where what was heard is none.

        A class of which nothing was heard is left to the usual slopes and intervals.
        """
        steps = list(self.shared)
        for j in (j for j in range(classes) if j != label):
            steps += self.steps.get(j, [])
            tree = _tree(j, self.leaves.get(j, []))
            if tree is None:
                return None
            steps.append(tree)
        none = {name: np.zeros(0, kind) for name, kind in _TYPES.items()}
        none["mask"] = np.zeros((self.width + 7) // 8, np.uint8)
        found = {
            name: np.concatenate([step.get(name, none[name]) for step in steps]).astype(kind)
            for name, kind in _TYPES.items()
        }
        shapes = {"plan": (len(steps), 5), "mask": (len(steps), -1)}
        return {name: part.reshape(shapes.get(name, -1)) for name, part in found.items()}


def bare(width: int, classes: int, label: int) -> _Arrays:
    """Return the proof that every margin is shown by intervals, or by CROWN's slopes."""
    found = Recorder(width).result(classes, label)
    assert found is not None
    return found


def _other(wanted: Tensor) -> int:
    return int(wanted.flatten().argmin())


def _tree(j: int, leaves: list[_Leaf]) -> _Arrays | None:
    """Return the step that closes a class, its leaves in preorder; None where they are no tree."""
    if not leaves:  # without slopes and splits; or the intervals before it have excluded the class
        return {"plan": np.array([_CLASS, 0, j, 1, 0]), "tree": np.array([-1])}
    leaves = [leaf for leaf in leaves if not leaf.way][:1] or leaves
    if any((leaf.mask != leaves[0].mask).any() for leaf in leaves):
        return None
    tree, order, todo = list[int](), list[_Leaf](), [(leaves, 0)]
    while todo:
        group, depth = todo.pop()
        if not group or (len(group) > 1 and any(len(leaf.way) == depth for leaf in group)):
            return None
        if len(group[0].way) == depth:
            tree.append(-1)
            order.append(group[0])
            continue
        unit = group[0].way[depth][0]
        if any(leaf.way[depth][0] != unit for leaf in group):
            return None
        tree.append(unit)
        todo += [([leaf for leaf in group if leaf.way[depth][1] == s], depth + 1) for s in (1, -1)]
    return {
        "plan": np.array([_CLASS, 0, j, len(order), len(order)]),
        "tree": np.array(tree),
        "mask": order[0].mask,
        "beta": np.concatenate([leaf.beta for leaf in order]),
        "alpha": np.concatenate([leaf.alpha for leaf in order]),
    }
