"""Where the windows of a patch lie: a lattice of them, all of them, and their pixels.

A window is the number of its upper left pixel, row by row.
"""

from __future__ import annotations

from itertools import product
from math import ceil

import torch
from jaxtyping import Int
from torch import Tensor

from robustkit.core.types import Images, Integers

Window = tuple[int, int]  # height and width in pixels


def lattice(window: Window, x: Images, most: int) -> Int[Tensor, " w"]:
    """Return windows half a side apart, or farther where that would be more than `most`."""
    last = [side - part for side, part in zip(x.shape[2:], window, strict=True)]
    apart = [max(1, ceil(part / 2)) for part in window]
    while True:
        rows, columns = (
            sorted({*range(0, end + 1, step), end}) for end, step in zip(last, apart, strict=True)
        )
        if len(rows) * len(columns) <= most or max(apart) > max(x.shape[2:]):
            break
        apart = [step + 1 for step in apart]
    places = [row * x.shape[3] + column for row, column in product(rows, columns)]
    return torch.tensor(places[:most], device=x.device)


def every(window: Window, x: Images) -> Int[Tensor, " n"]:
    """Return all windows, row by row."""
    rows, columns = (side - part + 1 for side, part in zip(x.shape[2:], window, strict=True))
    first = torch.arange(rows, device=x.device)[:, None] * x.shape[3]
    return (first + torch.arange(columns, device=x.device)).flatten()


def inside(place: Integers, window: Window, x: Images) -> Tensor:
    """Return which pixels lie in the window at `place` of each slot [s, 1, h, w]."""
    row = torch.arange(x.shape[2], device=x.device) - (place // x.shape[3])[:, None]
    column = torch.arange(x.shape[3], device=x.device) - (place % x.shape[3])[:, None]
    tall, wide = (row >= 0) & (row < window[0]), (column >= 0) & (column < window[1])
    return (tall[:, :, None] & wide[:, None, :])[:, None]


def extent(changed: Tensor) -> Tensor:
    """Return how many places the first and the last that changed span [b], 0 where none did."""
    first, last = (part.int().argmax(1) for part in (changed, changed.flip(1)))
    return torch.where(changed.any(1), changed.shape[1] - last - first, 0)
