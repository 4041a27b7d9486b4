"""How many passes to average, so that the gradient of a randomized model says where to go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robustkit.core.losses import input_gradient
from robustkit.core.types import Images, Model

CALLS_MODELS = True  # an error raised below is the model's; see `robustkit.core.attribution`

DRAWS, LEAST, MOST = 8, 4, 32
COSINE = 0.8  # aimed at, between the mean of the draws and the mean of all


def draws_needed(models: Sequence[Model], x: Images) -> tuple[int, int, int]:
    """Estimate the passes to average per query (EOT), from the gradients at a few inputs `x`.

    With signal s² = ‖E g‖² and noise σ² = E‖g − E g‖², both of the gradient g of the margin, the
    mean of k draws has the squared cosine s² / (s² + σ²/k) with E g. It reaches c² for
    k = (σ²/s²) c² / (1 − c²), here with c = 0.8. s² and σ² are estimated without bias from `DRAWS`
    draws; k is the median over the inputs, the largest over `models` (the model and the surrogates
    that are attacked), at least `LEAST` and at most `MOST`.

    Returns:
        k, and the forward and backward passes of one input that were spent.
    """
    needed, forwards, backwards = [0.0], 0, 0
    for model in models:
        found = []
        for _ in range(DRAWS):
            gradient = _gradient(model, x)
            forwards += len(x)
            if gradient is None:
                break
            backwards += len(x)
            found.append(gradient)
        if len(found) == DRAWS:
            needed.append(_needed(torch.stack(found)))
    return max(LEAST, math.ceil(min(MOST, max(needed)))), forwards, backwards


def _needed(gradients: Tensor) -> float:
    """Return k for draws [r, b, d] of the gradients; no signal needs more than can be had."""
    count = len(gradients)
    noise = gradients.var(0).sum(1)
    signal = gradients.mean(0).square().sum(1) - noise / count
    ratio = torch.where(signal > 0, noise / signal, torch.inf)
    seen = ratio[noise + signal.abs() > 0]
    return float(seen.median()) * COSINE**2 / (1 - COSINE**2) if len(seen) else 0.0


def _gradient(model: Model, x: Images) -> Tensor | None:
    gradient = input_gradient(model, x)[1]
    return None if gradient is None else gradient.nan_to_num(0, 0, 0).flatten(1).double()
