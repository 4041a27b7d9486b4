"""Coefficients that a backward pass carries: of all features, or of the window a unit sees."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from robustkit.certify.patches import Patches

Coefficients: TypeAlias = "Tensor | Patches"  # [b, s, *f], or [b, s, c, kh, kw] of a window


def values_of(a: Coefficients) -> Tensor:
    return a.values if isinstance(a, Patches) else a


def with_values(a: Coefficients, values: Tensor, *, clean: bool | None = None) -> Coefficients:
    """Return coefficients of the same features with other values.

    Args:
        clean: whether those in the padding are zero now; as before if None.
    """
    if isinstance(a, Tensor):
        return values
    return replace(a, values=values, clean=a.clean if clean is None else clean)


def seen(a: Coefficients, v: Tensor) -> Tensor:
    """Return a value per feature [b or 1, *f], broadcastable to the coefficients, in their type."""
    if isinstance(a, Patches):
        return a.windows(v.to(a.values.dtype))
    return v.to(a.dtype)[:, None]


def dot(a: Coefficients, v: Tensor) -> Tensor:
    """Return Σ a · v over the features: [b, s], for v [b or 1, *f], in the type of v.

    Float32 adds up a row of a window at most: all else, and whole maps, in the type of v.
    """
    if isinstance(a, Patches):
        return (a.values * seen(a, v)).sum(4).to(v.dtype).sum((2, 3))
    b, s = a.shape[:2]
    v = v.expand(b, *a.shape[2:]).reshape(b, -1, 1)
    return torch.matmul(a.reshape(b, s, -1).to(v.dtype), v)[..., 0]


def both_signs(a: Coefficients) -> Coefficients:
    """Return the rows, and after them their negatives."""
    if isinstance(a, Tensor):
        return torch.cat([a, -a], dim=1)
    place = torch.cat([a.place, a.place], 1)
    return replace(a, values=torch.cat([a.values, -a.values], 1), place=place)


def added(one: Coefficients, two: Coefficients) -> Coefficients:
    """Add what two paths bring to the same node."""
    if isinstance(one, Patches) and isinstance(two, Patches):
        return one.plus(two)
    return dense(one) + dense(two)


def dense(a: Coefficients) -> Tensor:
    return a.dense() if isinstance(a, Patches) else a
