"""Coefficients that a backward pass carries: of all features, or of the window a unit sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from robustkit.certify.patches import Patches

Coefficients: TypeAlias = "Tensor | Patches"  # [g, s, *f], or [g, s, c, kh, kw] of a window
SLICE = 512  # summands that float32 adds up; the sums of slices are added in float64


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


def seen(a: Coefficients, v: Tensor, points: Tensor | None) -> Tensor:
    """Return a value per feature [b or 1, *f], broadcastable to the coefficients.

    Args:
        points: the point of each group of rows [g]; that of its number if None.
    """
    last = torch.channels_last if _channels_last(values_of(a)) else torch.contiguous_format
    # Laid out as the coefficients are: products of two layouts cost several times as much.
    if isinstance(a, Patches):
        return a.windows(v).contiguous(memory_format=last)[:, None]
    if points is not None and len(v) > 1:
        v = v[points]
    return v.contiguous(memory_format=last)[:, None]


def dots(
    a: Coefficients, vectors: Sequence[Tensor], points: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return Σ a · v over the features [n, g, s] for n vectors v [b or 1, *f], in `dtype`.

    Float32 adds up `SLICE` products at most; sums of slices are added in `dtype`.
    """
    rows = flat(values_of(a))
    columns = torch.cat([flat(seen(a, v, points)) for v in vectors], 1).transpose(1, 2)
    columns = columns.expand(len(rows), -1, -1)
    if rows.dtype == dtype:
        return torch.bmm(rows, columns).permute(2, 0, 1)
    total = torch.zeros((), dtype=dtype, device=rows.device)
    for some, weights in zip(rows.split(SLICE, 2), columns.split(SLICE, 1), strict=True):
        total = total + torch.bmm(some, weights)
    return total.permute(2, 0, 1)


def flat(values: Tensor) -> Tensor:
    """Return rows [g, s, features], in the order in which memory holds them."""
    if _channels_last(values):
        values = values.permute(0, 1, 3, 4, 2)
    return values.flatten(2) if values.ndim > 2 else values[..., None]


def _channels_last(values: Tensor) -> bool:
    return values.ndim == 5 and values.shape[2] > 1 and values.stride(2) == 1


def both_signs(a: Coefficients) -> Coefficients:
    """Return the rows, and after them their negatives."""
    values = values_of(a)
    return with_values(a, torch.cat([values, -values], dim=1))


def added(one: Coefficients, two: Coefficients) -> Coefficients:
    """Add what two paths bring to the same node."""
    if isinstance(one, Patches) and isinstance(two, Patches):
        return one.plus(two)
    return dense(one) + dense(two)


def dense(a: Coefficients) -> Tensor:
    return a.dense() if isinstance(a, Patches) else a
