"""What the outputs alone give away: probabilities, one-hot answers, saturation, scale."""

from __future__ import annotations

import math

import torch

from robustkit.core.types import Logits
from robustkit.verify.diagnostics.counted_model import spread
from robustkit.verify.flags import Flag, flag

# Beyond the first gap of two logits, the smaller one's share of the softmax is zero in float32;
# beyond the second, the larger one's rounds to one.
_UNDERFLOW, _ROUNDS = -math.log(torch.finfo(torch.float32).tiny), 25 * math.log(2)
_FLAT = 1e-2


def of_answers(logits: Logits) -> list[Flag]:
    """Look at the logits [b, k] of a few inputs."""
    if _one_hot(logits):
        return [flag("one_hot", "the outputs tell the class and nothing else")]
    if _probabilities(logits):
        seen = "the outputs are probabilities, not logits: they saturate, and gradients vanish"
        return [flag("probabilities", f"{seen} with them")]
    top = logits.topk(2, dim=1).values
    gap, widest = top[:, 0] - top[:, 1], float(spread(logits).max())
    sure = int((gap > _UNDERFLOW).sum())
    found = []
    if 4 * sure >= len(logits):
        seen = f"the softmax of the outputs is one-hot in float32 at {sure} of {len(logits)} inputs"
        found.append(flag("saturated", f"{seen}: cross-entropy has no gradient there"))
    if float(gap.median()) > _ROUNDS or widest < _FLAT:
        seen = f"the two largest logits differ by {float(gap.median()):.3g} at the median input"
        found.append(flag("scaled_logits", seen))
    return found


def _probabilities(logits: Logits) -> bool:
    """Whether rows are distributions, as exactly as 16 bits can tell."""
    inside = bool(((logits >= 0) & (logits <= 1 + 1e-3)).all())
    return inside and bool(((logits.sum(1) - 1).abs() < 5e-3).all())


def _one_hot(logits: Logits) -> bool:
    """Whether every row holds one value at one place and another, the same in all, elsewhere."""
    high, low = logits.amax(1), logits.amin(1)
    alike = bool((high == high[0]).all() and (low == low[0]).all())
    return alike and bool(((logits > low[:, None]).sum(1) == 1).all())
