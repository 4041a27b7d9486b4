"""Cosine annealing per slot."""

from __future__ import annotations

import math

from robustkit.core.types import Integers, Scalars


def cosine(first: float, last: float, taken: Integers, steps: int) -> Scalars:
    """Anneal from `first` at 0 steps taken to `last` at the last of `steps`: half a cosine [s]."""
    share = taken.double() / max(1, steps - 1)
    return (last + (first - last) * (1 + (math.pi * share).cos()) / 2).float()
