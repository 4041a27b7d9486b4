"""Keyed random numbers: Philox 4×32-10, a counter-based generator.

A draw is a pure function of (seed, point, task, stream, element). It does not depend on the batch
a point sits in, on the order of the work, on the device, or on an interruption.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Keys(NamedTuple):
    """One independent stream of numbers per slot.

    Attributes:
        seed: of the run [s].
        point: identity of the point in its data set [s].
        task: identity of the task on that point [s].
    """

    seed: Int[Tensor, " s"]
    point: Int[Tensor, " s"]
    task: Int[Tensor, " s"]


def task_key(text: str) -> int:
    """Return a 31-bit identity for a task named by its attack, loss, target rank and restart."""
    return zlib.crc32(text.encode()) & 0x7FFFFFFF


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Turn counter and key into four words: ten rounds, on 32-bit words held in int64 tensors."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((right >> 32) & _MASK) ^ b ^ k0,
            right & _MASK,
            ((left >> 32) & _MASK) ^ d ^ k1,
            left & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return a, b, c, d


def bits(keys: Keys, count: int, stream: int | Int[Tensor, " s"]) -> Int[Tensor, "s n"]:
    """Draw `count` 32-bit words per slot. `stream` separates the draws of one task."""
    seed, point, task = (part.view(-1, 1) for part in keys)
    block = torch.arange(-(-count // 4), device=point.device).view(1, -1)
    lane = stream.view(-1, 1) if isinstance(stream, Tensor) else torch.full_like(point, stream)
    words = philox((block, lane, point, task), (seed & _MASK, (seed >> 32) & _MASK))
    stacked = torch.stack([word.expand(len(point), -1) for word in words], dim=2)
    return stacked.flatten(1)[:, :count]


def uniform(keys: Keys, count: int, stream: int | Int[Tensor, " s"]) -> Float[Tensor, "s n"]:
    """Draw `count` numbers in [0, 1) per slot."""
    # 24 bits, the precision of float32: more could round up to 1.
    return (bits(keys, count, stream) >> 8).float() * 2.0**-24


def normal(keys: Keys, count: int, stream: int | Int[Tensor, " s"]) -> Float[Tensor, "s n"]:
    """Draw `count` standard normal numbers per slot (Box-Muller)."""
    half = -(-count // 2)
    u = uniform(keys, 2 * half, stream)
    radius = (-2 * (1 - u[:, :half]).log()).sqrt()
    angle = 2 * math.pi * u[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def generator(seed: int, stream: int, count: int) -> Generator:
    """Return a CPU generator that depends on the three numbers alone.

    PyTorch's CPU generator uses the low 32 bits of its seed alone: all three numbers reach them.
    """
    pairs = zip((seed, stream, count), _ODD, strict=True)
    return Generator().manual_seed(sum(number * odd for number, odd in pairs) % 2**63)
