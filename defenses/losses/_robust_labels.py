"""The closed form that both label-distributionally robust losses share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustkit.core.types import Labels, Logits, Scalars

from ._odds import gaps


def worst_labels(logits: Logits, y: Labels, c: float) -> Logits:
    """C · 1[j ≠ y] + z_j − z_y [b, k]: what a distribution over labels gains by each label."""
    wrong = torch.ones_like(logits).scatter(1, y[:, None], 0.0)
    return c * wrong + gaps(logits, y)


def regularized_maximum(gains: Logits, lam: Tensor | float) -> Scalars:
    """Maximum over p on the simplex of ⟨p, gains⟩ − lam · KL(p ‖ uniform), per point [b].

    lam · log mean_j exp(gains_j / lam), taken at p = softmax(gains / lam). Zhu et al. 2023.

    Args:
        lam: one for all, or one a point [b].
    """
    scale = torch.as_tensor(lam, dtype=gains.dtype, device=gains.device)
    mean = torch.logsumexp(gains / scale.reshape(-1, 1), 1) - math.log(gains.shape[1])
    return scale * mean
