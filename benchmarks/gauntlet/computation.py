"""Wrappers that aggregate copies of the model, or compute at test time.

Sources: CrossMax (Fort and Lakshminarayanan 2024, arXiv:2408.05446; broken by Zhang et al. 2024,
arXiv:2411.14834), mixing with a saturated model (MixedNUTS, Bai et al. 2024, arXiv:2402.02263),
the anti-adversary layer (Alfarra et al. 2022, arXiv:2103.14347), purification by gradient steps
(Croce et al. 2022, arXiv:2202.13711).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softmax

from benchmarks.gauntlet.gradients import Flipped
from benchmarks.gauntlet.outputs import label
from benchmarks.gauntlet.wrapper import Wrapper, wrapper
from robustkit.core.losses import margin


@wrapper("crossmax_copies", "ensembles")
class CrossMaxCopies(Wrapper):
    """CrossMax over copies at scales 1, 2 and 4: both maxima subtracted, then the median."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.smooth(x)
        copies = torch.stack([scale * logits for scale in (1, 2, 4)], 1)
        copies = copies - copies.amax(2, keepdim=True)
        copies = copies - copies.amax(1, keepdim=True)
        return copies.median(1).values


@wrapper("vote_of_copies", "ensembles")
class VoteOfCopies(Wrapper):
    """Five copies vote: the share of one-hot votes, with a gradient that is always zero."""

    def forward(self, x: Tensor) -> Tensor:
        answers = [self.smooth(x) * scale for scale in (1, 2, 3, 4, 5)]
        return torch.stack([label(logits) + 0 * logits for logits in answers]).mean(0)


@wrapper("mixed_saturated", "ensembles")
class MixedSaturated(Wrapper):
    """Half the probabilities of a copy at scale 1,000, half those of one with flipped gradient."""

    def forward(self, x: Tensor) -> Tensor:
        sharp = softmax(1e3 * self.smooth(x), dim=1)
        return (0.5 * sharp + 0.5 * softmax(self.smooth(Flipped.apply(x)), dim=1)).log()


@wrapper("anti_adversary", "computation", truth="at most", moved=0.02)
class AntiAdversary(Wrapper):
    """Two signed gradient steps of 0.05 away from the decision boundary, before it answers."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach()
            decided = self.smooth(inner).argmax(1)
            for _ in range(2):
                inner = inner.requires_grad_(True)
                lead = -margin(self.smooth(inner), decided, decided)
                (grad,) = torch.autograd.grad(lead.sum(), inner)
                inner = (inner + 0.05 * grad.sign()).detach()
        return self.smooth(x + (inner - x.detach()))


@wrapper("purified", "computation", truth="at most", moved=0.02)
class Purified(Wrapper):
    """Three gradient steps that lower the total variation, taken outside of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = x.detach()
            for _ in range(3):
                inner = inner.requires_grad_(True)
                (grad,) = torch.autograd.grad(_variation(inner), inner)
                inner = (inner - 0.004 * grad).detach()
        return self.smooth(inner.clamp(0, 1)) + 0 * x.flatten(1).sum(1, keepdim=True)


def _variation(x: Tensor) -> Tensor:
    return x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum()
