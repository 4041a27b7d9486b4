"""Weights of the points of a batch, by their hardness under attack: three published rules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustkit.core.losses import margin
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Logits, Scalars
from robustkit.models.adversarial_training import frozen_weights


def moving_log_mean(losses: Scalars, r: float, eta: float, before: Tensor | None) -> Tensor:
    """Return log u after u ← (1 − eta) u + eta · mean exp(l / r), computed on logarithms.

    The moving average of the compositional objective r · log E exp(l / r) (Sow et al. 2024,
    algorithm CID). In logarithms, as exp(l / r) overflows for small r. Without a value from before,
    it starts at that of the batch.
    """
    batch = torch.logsumexp(losses.detach() / r, 0) - math.log(len(losses))
    if before is None or eta >= 1:
        return batch
    return torch.logaddexp(math.log1p(-eta) + before, math.log(eta) + batch)


def doubly_robust(losses: Scalars, r: float, log_u: Tensor, most: float) -> Scalars:
    """exp(l / r − log u), at most `most`, without gradient.

    With `log_u` of the batch itself and no ceiling, the weights over the batch size lie on the
    simplex: uniform as r → ∞, all on the worst point as r → 0.
    """
    return (losses.detach() / r - log_u).exp().clamp_max(most)


def gairat(kappa: Tensor, steps: int, scale: float = -1.0) -> Scalars:
    """Weights by the number of steps kappa [b] that an attack needs, 0 to `steps`; mean 1.

    (1 + tanh(scale + 5 (1 − 2 kappa / steps))) / 2. Zhang et al. 2021 (GAIRAT), equation (6).
    """
    weights = (torch.tanh(scale + 5 * (1 - 2 * kappa / steps)) + 1) / 2
    return weights / weights.mean()


def mail(logits: Logits, y: Labels, slope: float = 10.0, bias: float = -0.5) -> Scalars:
    """Weights by the margin of probabilities at the attacked points; mean 1.

    sigmoid(slope (max_i p_i − p_y + bias)), i over the wrong classes. Wang et al. 2021 (MAIL),
    equations (4) and (7). Differs from the code: normalized to mean 1 instead of a factor 3.
    """
    gap = margin(logits.detach().softmax(1), y, y)
    weights = torch.sigmoid(slope * (gap + bias))
    return weights / weights.mean().clamp_min(1e-12)


def steps_to_break(model: nn.Module, path: list[Images], y: Labels) -> Tensor:
    """Count the iterates of `path` that the model still classifies as y [b]."""
    with torch.no_grad():
        return torch.stack([model(z).argmax(1) == y for z in path]).sum(0)


def ascend(
    model: nn.Module, x: Images, y: Labels, threat: Threat, steps: int, noise: Images
) -> list[Images]:
    """Return the iterates of PGD on the cross-entropy, the start `x` + `noise` first."""
    z, path = threat.project(x + noise, x), list[Tensor]()
    with frozen_weights(model):
        for _ in range(steps):
            path.append(z)
            query = z.detach().requires_grad_(True)
            value = nn.functional.cross_entropy(model(query), y, reduction="sum")
            (gradient,) = torch.autograd.grad(value, query)
            z = threat.project(z + 2.5 * threat.eps / steps * threat.steepest(gradient), x)
    return [*path, z]
