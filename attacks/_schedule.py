"""Cosine annealing per slot, and gradients scaled to unit length."""

from __future__ import annotations

import math

import torch

from robustkit.core.types import Images, Integers, Scalars, per_point

_TINY = 1e-30


def cosine(first: float, last: float, taken: Integers, steps: int) -> Scalars:
    """Anneal from `first` at 0 steps taken to `last` at the last of `steps`: half a cosine [s]."""
    share = taken.double() / max(1, steps - 1)
    return (last + (first - last) * (1 + (math.pi * share).cos()) / 2).float()


def unit(gradient: Images) -> Images:
    """Scale each gradient to l2 norm 1; a zero gradient stays zero."""
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(_TINY)
    return gradient / per_point(length, gradient)
