"""Random directions and starting points for attacks that see logits or decisions alone."""

from __future__ import annotations

import math

import torch

from robustkit.core.rng import Keys, bits, uniform
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Integers, Mask

_STREAM = 2**30  # first stream of starting points; those of directions are numbered by query


def coins(x: Images, keys: Keys, stream: Integers) -> Images:
    """Draw ±1 for every feature of `x` [s, *f], one bit each; `stream` separates the draws."""
    features = math.prod(x.shape[1:])
    words = bits(keys, -(-features // 32), stream)
    places = torch.arange(32, device=words.device)
    flips = (words[:, :, None] >> places) & 1
    return (1 - 2 * flips.flatten(1)[:, :features]).to(x.dtype).view_as(x)


def renew(old: Images, rows: Mask, keys: Keys, stream: Integers) -> Images:
    """Return `old` with fresh `coins` in the chosen rows."""
    index = torch.arange(len(old), device=old.device)
    # Choosing rows by a mask waits for the GPU, longer than drawing for all of them takes.
    if old.device.type != "cpu":
        fresh = coins(old, keys, stream)
        return torch.where(rows.view(-1, *[1] * (old.ndim - 1)), fresh, old)
    index = index[rows]
    if not len(index):
        return old
    chosen = Keys(*(part[index] for part in keys))
    return old.index_copy(0, index, coins(old[index], chosen, stream[index]))


def any_row(rows: Mask) -> bool:
    """Whether any row is chosen; always true off the CPU, where asking waits for the device."""
    return rows.device.type != "cpu" or bool(rows.any())


def candidate(x: Images, keys: Keys, number: Integers, threat: Threat) -> Images:
    """Return a starting point by number: noise, a corner of the box, the image transformed."""
    noise = uniform(keys, math.prod(x.shape[1:]), _STREAM + number).view_as(x)
    lower, upper = threat.lower, threat.upper
    flat = torch.ones_like(x)
    kinds = [
        lower + (upper - lower) * noise,
        lower + (upper - lower) * (noise > 0.5),
        lower + upper - x,
        x.flip(-1),
        x.flip(-2) if x.ndim > 2 else x.roll(x.shape[-1] // 2, -1),
        lower * flat,
        upper * flat,
        (lower + upper) / 2 * flat,
        x + (noise - 0.5) * (upper - lower),
        torch.where(noise > 0.5, lower + upper - x, x),
    ]
    # Beyond the list, the random ones alone: the others would be the same a second time.
    drawn = torch.tensor([0, 1, 8, 9], device=x.device)
    place = torch.where(number < len(kinds), number, drawn[number % 4])
    chosen = torch.stack(kinds)[place, torch.arange(len(x), device=x.device)]
    return chosen.clamp(lower, upper)
