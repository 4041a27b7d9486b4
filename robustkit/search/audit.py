"""What a cheap search may have missed: the full line-up on a sample of its survivors.

The sample has two strata: the survivors that came nearest to being broken, all of them up to a
number, and a random part of the rest. When more of it is broken than the threshold allows, there
are two cases. Where the random part lost points, being near tells too little, and everything is
attacked. Where only near points fell, the attacks that broke them go on to the next nearest, block
by block, until a block holds. The random part then bounds how many of the points that nobody
audited the same line-up would break.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from robustkit.core.rng import Keys, task_key, uniform
from robustkit.core.stats.hypergeometric import most_bad
from robustkit.errors import UsageError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Audit:
    """How to audit the survivors of a suite.

    Attributes:
        attacks: specs of the full line-up, in order.
        near: how many of the nearest survivors, as a share of all survivors.
        random: how many of the others, likewise.
        least: the least size of both strata.
        threshold: share of all n points from which on more than the sample is attacked; what is
            broken in the random part is scaled up. 0.2%: AutoAttack's own flag.
    """

    attacks: Sequence[str]
    near: float = 0.025
    random: float = 0.025
    least: int = 16
    threshold: float = 0.002


@dataclass(frozen=True)
class Sample:
    """Which survivors are audited, and how many others there were to draw `random` from."""

    near: tuple[int, ...]
    random: tuple[int, ...]
    rest: int

    @property
    def points(self) -> set[int]:
        """Both strata together."""
        return {*self.near, *self.random}


def draw(
    audit: Audit,
    closest: Mapping[int, float],
    robust: Sequence[int],
    seed: int,
    stream: str = "audit",
) -> Sample:
    """Choose the sample among the points that are still `robust`.

    Args:
        closest: how near each point came to being broken, higher is nearer; points without a number
            count as far.
        seed, stream: the random part is a function of them and of the points alone.
    """
    by_need = nearest_first(closest, robust)
    size = max(audit.least, round(audit.near * len(robust)))
    near, rest = by_need[:size], by_need[size:]
    points = torch.tensor(rest, dtype=torch.long)
    keys = Keys(torch.full_like(points, seed), points, torch.full_like(points, task_key(stream)))
    lots = uniform(keys, 1, 0).flatten().tolist()
    drawn = sorted(zip(lots, rest, strict=True))[
        : max(audit.least, round(audit.random * len(robust)))
    ]
    return Sample(tuple(sorted(near)), tuple(sorted(p for _, p in drawn)), len(rest))


def nearest_first(closest: Mapping[int, float], points: Sequence[int]) -> list[int]:
    """Order points by how near they came to being broken; those without a number come last."""
    return sorted(points, key=lambda point: (-closest.get(point, -np.inf), point))


def alarming(audit: Audit, sample: Sample, broken: set[int], n: int) -> bool:
    """Say whether more of the sample was broken than the threshold allows, of `n` points in all."""
    return _estimate(sample, broken) > audit.threshold * n


def many(broken: int, n: int) -> bool:
    """Say whether so many points of `n`, broken where none was expected, are no accident.

    More than one, and more than 0.2%: AutoAttack's own flag.
    """
    return broken > max(1.0, 0.002 * n)


def _estimate(sample: Sample, broken: set[int]) -> float:
    """Survivors that would be broken, by the sample: those near, and the random ones scaled up."""
    found = len(broken & set(sample.random))
    scaled = found * sample.rest / len(sample.random) if sample.random else 0.0
    return len(broken & set(sample.near)) + scaled


def missed(
    sample: Sample, broken: set[int], elsewhere: int = 0, confidence: float = CONFIDENCE
) -> int:
    """Bound how many points that were not audited the audit's line-up would break.

    The exact upper bound of the hypergeometric distribution, less those found. Right with that
    probability over the draw.

    Args:
        elsewhere: bad points of the `rest` that were found otherwise than in the random part.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"expected 0 < confidence < 1, got {confidence}")
    found = len(broken & set(sample.random))
    return max(0, most_bad(sample.rest, len(sample.random), found, confidence) - found - elsewhere)
