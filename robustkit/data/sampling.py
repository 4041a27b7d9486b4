"""Which points are taken of a data set: seeded samples, and random orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betainc

from robustkit.core.rng import Keys, bits, task_key
from robustkit.errors import UsageError, unknown

Sample: TypeAlias = Literal["proportional", "balanced"]
PROPORTIONAL: Sample = "proportional"


class Labelled(Protocol):
    """What a sample is drawn from."""

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    def __len__(self) -> int: ...


def select(
    data: Labelled, n: int | None, seed: int, sample: Sample = PROPORTIONAL
) -> NDArray[np.int64]:
    """Choose `n` points; all of them without `n`.

    Proportional: each class has its share of the data, rounded up or down at random so that points
    of all classes are as likely (stratified sampling; within 4% from n = 10 on, 1% from n = 50 on):
    an accuracy on the sample estimates that on the data. Balanced: as evenly over the classes as
    possible, whatever their shares.

    The choice depends on (seed, labels) alone, and that of a smaller `n` is a subset of that of a
    larger one. Where all classes are of one size both choices are the same.

    Returns:
        Indices [n], ascending. Balanced: counts of any two classes that are not used up differ by
        at most 1.

    Raises:
        UsageError: when `n` is below 1 or above the number of points, or for another `sample`.
    """
    if sample not in get_args(Sample):
        raise unknown("kind of sample", str(sample), get_args(Sample))
    if n is None:
        return np.arange(len(data), dtype=np.int64)
    if not 1 <= n <= len(data):
        raise UsageError(f"expected n from 1 to {len(data)} (all of {data.name}), got {n}.")
    labels, draw = data.labels, _draw(len(data), seed)
    order = np.lexsort((draw, labels))
    counts = np.unique(labels, return_counts=True)[1]
    size, turn = np.empty(len(data)), np.empty(len(data), dtype=np.int64)
    size[order] = np.repeat(counts, counts)
    turn[order] = np.concatenate([np.arange(count) for count in counts])
    if sample == "balanced":
        return np.sort(np.lexsort((draw, turn))[:n]).astype(np.int64)
    # The draw of turn r is the (r + 1)-th smallest of `size` uniform numbers: its distribution
    # function makes it uniform again. So a class has ⌊t · size⌋ points or one more before any
    # threshold t, t · size on average, and classes of equal size keep the order of their draws.
    place = betainc(turn + 1, size - turn, draw / 2.0**63)
    return np.sort(np.lexsort((draw, np.round((turn + place) / size, 12)))[:n]).astype(np.int64)


def shuffled(points: Sequence[int] | NDArray[np.int64], seed: int) -> list[int]:
    """Put points into a random order that depends on (seed, point) alone.

    Any first part of the order is a uniform random sample of the points without replacement.
    """
    chosen = np.asarray(points, dtype=np.int64)
    draw = _draw(int(chosen.max()) + 1, seed, "order")[chosen] if len(chosen) else chosen
    return [int(point) for point in chosen[np.lexsort((chosen, draw))]]


def _draw(n: int, seed: int, purpose: str = "select") -> NDArray[np.int64]:
    """One 63-bit number a point, a pure function of (seed, index)."""
    point = torch.arange(n)
    keys = Keys(torch.full_like(point, seed), point, torch.full_like(point, task_key(purpose)))
    words = bits(keys, 2, 0)
    drawn: NDArray[np.int64] = ((words[:, 0] << 31) | (words[:, 1] >> 1)).numpy()
    return drawn
