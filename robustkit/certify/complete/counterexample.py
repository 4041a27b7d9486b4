"""Counterexamples from the tree: minimizers of the bounds, tried on the model and improved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustkit.core.threat import Threat
from robustkit.core.types import Images

_EVERY, _STEPS = 16, 20  # passes of gradient descent, after so many batches of subdomains


class Breaker:
    """Tries inputs on the model; keeps the first that it misclassifies.

    What it finds is a candidate: the run's verification decides.
    """

    def __init__(
        self, model: Callable[[Images], Tensor], x: Images, y: int, threat: Threat
    ) -> None:
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.label = torch.tensor([y])
        self.example: Images | None = None
        self.calls = 0

    def __call__(self, z: Images) -> bool:
        """Try inputs [b, *f], the most promising first; return whether one breaks the point."""
        z = self.threat.project(z, self.x.expand(len(z), *self.x.shape[1:]))
        if not self._try(z) and self.calls % _EVERY == 0:
            self._try(self._descend(z[:4]))
        self.calls += 1
        return self.example is not None

    def _try(self, z: Images) -> bool:
        wrong = (self._judged(z).argmax(1) != self.y).nonzero().flatten()
        if len(wrong):
            self.example = z[wrong[:1]].clone()
        return bool(len(wrong))

    def _judged(self, z: Images) -> Tensor:
        return self.threat.criterion(self.model(z), self.label.expand(len(z)))

    def _descend(self, z: Images) -> Images:
        """Lower the margin by projected gradient steps that shrink, if there is a gradient."""
        x, size = self.x.expand(len(z), *self.x.shape[1:]), self.threat.eps / 4
        for step in range(_STEPS):
            with torch.enable_grad():
                point = z.detach().requires_grad_(True)
                logits = self._judged(point)
                label = torch.full((len(z), 1), self.y, device=z.device)
                margin = logits.gather(1, label) - logits.scatter(1, label, -torch.inf).amax(
                    1, True
                )
                if not margin.requires_grad:
                    return z
                (gradient,) = torch.autograd.grad(margin.sum(), point)
            direction = self.threat.steepest(-gradient)
            z = self.threat.project(z + size * (1 - step / _STEPS) * direction, x)
        return z
