"""Directions of random signs for attacks that estimate gradients from answers alone."""

from __future__ import annotations

import math

import torch

from robustkit.rng import Keys, bits
from robustkit.types import Images, Integers, Mask


def coins(x: Images, keys: Keys, stream: Integers) -> Images:
    """Draw ±1 for every feature of `x` [s, *f], one bit each; `stream` tells draws apart."""
    features = math.prod(x.shape[1:])
    words = bits(keys, -(-features // 32), stream)
    places = torch.arange(32, device=words.device)
    flips = (words[:, :, None] >> places) & 1
    return (1 - 2 * flips.flatten(1)[:, :features]).to(x.dtype).view_as(x)


def renew(old: Images, rows: Mask, keys: Keys, stream: Integers) -> Images:
    """Return `old` with fresh coins in some rows; on a CPU, only those are drawn."""
    index = torch.arange(len(old), device=old.device)
    if old.device.type != "cpu":  # there, looking costs more than drawing
        fresh = coins(old, keys, stream)
        return torch.where(rows.view(-1, *[1] * (old.ndim - 1)), fresh, old)
    index = index[rows]
    if not len(index):
        return old
    chosen = Keys(*(part[index] for part in keys))
    return old.index_copy(0, index, coins(old[index], chosen, stream[index]))
