"""Pictures with their pixels moved, for each slot in its own way; differentiable."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Strips(NamedTuple):
    """An axis of `length` pixels in strips, put in another order; each [..., length].

    Attributes:
        source: where each pixel comes from.
        low, high: the first and the last pixel of the strip that it comes from.
        number: of that strip.
    """

    source: Tensor
    low: Tensor
    high: Tensor
    number: Tensor


def strips(lengths: Tensor, order: Tensor, length: int) -> Strips:
    """Lay strips of `lengths` [..., n], which add up to `length`, in `order` [..., n]."""
    sizes, starts = lengths.gather(-1, order), (lengths.cumsum(-1) - lengths).gather(-1, order)
    ends = sizes.cumsum(-1)
    place = torch.arange(length, device=lengths.device)
    at = (place[:, None] >= ends[..., None, :]).sum(-1)
    low = starts.gather(-1, at)
    source = place - (ends - sizes).gather(-1, at) + low
    return Strips(source, low, low + sizes.gather(-1, at) - 1, order.gather(-1, at))


def gathered(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels x[:, :, rows, columns] of [s, c, h, w], with places [s, h, w]."""
    place = (rows * x.shape[3] + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, place).view_as(x)


def sampled(x: Tensor, rows: Tensor, columns: Tensor, bounds: tuple[Tensor, ...]) -> Tensor:
    """Interpolate [s, c, h, w] bilinearly at places [s, h, w] between pixels.

    Args:
        bounds: the first and last row and the first and last column, for each place, beyond which
            the picture is 0.
    """
    top, bottom, left, right = bounds
    first, before = rows.floor(), columns.floor()
    total = torch.zeros_like(x)
    for row in (first, first + 1):
        for column in (before, before + 1):
            near = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
            inside = (row >= top) & (row <= bottom) & (column >= left) & (column <= right)
            at = row.clamp(0, x.shape[2] - 1).long(), column.clamp(0, x.shape[3] - 1).long()
            total = total + (near * inside)[:, None] * gathered(x, *at)
    return total
