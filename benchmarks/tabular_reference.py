"""CAPGD written anew from the equations of Simonetto et al. 2024 (arXiv:2406.00775).

Not the authors' code: their package needs another Python. It follows section 4 and algorithm 1:
APGD's steps, momentum and checkpoints in the scaled space, the penalties of all constraints
subtracted from the loss, equalities mended after every step by the feature that they define, whole
numbers and categories rounded at the end. Where the paper leaves a choice, the one that is kinder
to it: a radius for each feature and 1 for categories, penalties relative to the size of their
constraint, and every query counts that obeys all rules once it is rounded, at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkit.core.tabular import TabularThreat


@dataclass
class Capgd:
    """The attack on one model and threat model.

    Attributes:
        steps, restarts: as in the paper; the first run begins at the clean row.
        defined: the feature that each equality defines, whose coefficient is 1.
    """

    model: nn.Module
    threat: TabularThreat
    defined: tuple[int, ...]
    steps: int = 10
    restarts: int = 1
    seed: int = 0

    @property
    def passes(self) -> int:
        """Forward passes of a point, each with a backward one."""
        return self.restarts * (self.steps + 1)

    def broken(self, x: Tensor, y: Tensor) -> Tensor:
        """Return which rows x [n, d] of labels y [n] it breaks."""
        draw = torch.Generator().manual_seed(self.seed)
        found = torch.zeros(len(x), dtype=torch.bool)
        for restart in range(self.restarts):
            noise = 2 * torch.rand(x.shape, generator=draw) - 1 if restart else torch.zeros_like(x)
            found |= self._run(x, y, (x + noise * self._radius()).clamp(0, 1))
        return found

    def _radius(self) -> Tensor:
        table = self.threat.table
        radius = (self.threat.eps * table.radius / table.width).masked_fill(table.category, 1.0)
        # A little less, so that what float32 rounds leaves no row outside (theirs: 5% less).
        return (radius * (1 - 1e-5) - 2e-7).clamp_min(0).float() * table.mutable

    def _run(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        radius, size = self._radius(), torch.full((len(x), 1), 2.0)
        low, high = (x - radius).clamp_min(0), (x + radius).clamp_max(1)
        value, gradient, found = self._ask(z, x, y)
        best, best_value, best_gradient = z, value, gradient
        before, checked, last, rises = z, value, value, torch.zeros(len(x))
        reduced = torch.ones(len(x), dtype=torch.bool)
        window, since = max(int(0.22 * self.steps), 1), 0
        for step in range(self.steps):
            share = 0.75 if step else 1.0
            ahead = torch.clamp(z + size * radius * gradient.sign(), low, high)
            moved = torch.clamp(z + share * (ahead - z) + (1 - share) * (z - before), low, high)
            before, z = z, self._mended(moved)
            value, gradient, hit = self._ask(z, x, y)
            found |= hit
            better = value > best_value
            best = torch.where(better[:, None], z, best)
            best_gradient = torch.where(better[:, None], gradient, best_gradient)
            best_value = torch.maximum(value, best_value)
            rises, last, since = rises + (value > last), value, since + 1
            if since == window:
                halve = (rises <= 0.75 * window) | (~reduced & (checked >= best_value))
                size = torch.where(halve[:, None], size / 2, size)
                z = torch.where(halve[:, None], best, z)
                gradient = torch.where(halve[:, None], best_gradient, gradient)
                reduced, checked, rises, since = halve, best_value, torch.zeros(len(x)), 0
                window = max(
                    window - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1)
                )
        return found

    def _ask(self, z: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, its gradient, and which rows break their point once rounded."""
        z = z.detach().requires_grad_(True)
        value = F.cross_entropy(self.model(z), y, reduction="none") - self._penalty(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        made = self._rounded(z.detach(), x)
        with torch.no_grad():
            wrong = self.model(made).argmax(1) != y
        return value.detach(), gradient, wrong & self.threat.contains(made, x)

    def _penalty(self, z: Tensor) -> Tensor:
        table = self.threat.table
        v = table.lower + z.double() * table.width
        size = (table.rows.abs() * table.width).sum(1)
        missed: Tensor = (table.excess(v) / size).clamp_min(0).sum(1).float()
        return missed

    def _mended(self, z: Tensor) -> Tensor:
        """Set the feature that each equality defines to what the others say."""
        table = self.threat.table
        v = table.lower + z.double() * table.width
        for row, value, feature in zip(table.equal, table.value, self.defined, strict=True):
            v[:, feature] -= (v @ row - value) / row[feature]
        return table.scaled(v)

    def _rounded(self, z: Tensor, x: Tensor) -> Tensor:
        """Round whole numbers toward the clean row, pick categories, mend equalities."""
        table = self.threat.table
        v, clean = table.lower + z.double() * table.width, table.raw(x)
        v = torch.where(
            table.whole, torch.where(v > clean, (v + 1e-6).floor(), (v - 1e-6).ceil()), v
        )
        for columns in table.groups:
            v[:, columns] = F.one_hot(v[:, columns].argmax(1), len(columns)).double()
        made = self._mended(table.scaled(v))
        return torch.where(table.mutable, made, x)
