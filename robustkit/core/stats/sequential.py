"""Anytime-valid tests and intervals: however often one looks, and whenever one stops.

Testing by betting: one bets against the hypothesis "the mean of y is at most m" on values y in
[0, 1] that are seen one by one. Under it the wealth is a nonnegative supermartingale that starts at
1, and so ever reaches 1/α with probability at most α (Ville's inequality): the hypothesis may be
rejected at the first moment it does. The means that were never rejected form a confidence sequence.

The bet is a fixed fraction c of the largest one allowed; the wealth is averaged over a few c, of
which one is near the best for any gap. Waudby-Smith and Ramdas 2024, "Estimating means of
bounded random variables by betting": capital process (section 4), without replacement (section 5).

Differs from the paper: a mixture over fixed fractions, in place of plug-in bets. The wealth then
falls as m rises, and the bounds are found by bisection, not on a grid.

Paired outcomes z in {−1, 0, 1} enter as y = (1 + z) / 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustkit.core.stats.intervals import Interval
from robustkit.errors import UsageError

Floats = NDArray[np.floating[Any]]
STAKES = (0.03, 0.1, 0.25, 0.5, 0.95)
_SHARES = np.array([1, 2, 2, 2, 2]) / 9  # of the starting capital, one for each stake
_HALVINGS = 24


def log_wealth(y: Floats, mean: float, total: int | None = None) -> Floats:
    """Return the logarithm of the wealth after each value, betting against "mean ≤ `mean`".

    Args:
        y: values in [0, 1], in the order in which they were seen [..., n].
        total: None for independent draws from a population, and a claim about its mean; the size
            of a finite set for draws from it without replacement, and a claim about its mean.

    Returns:
        [..., n]; infinite where the hypothesis is impossible already.
    """
    y = np.asarray(y, dtype=np.float64)
    current: Any = mean
    if total is not None:
        before = np.cumsum(y, axis=-1) - y
        left = total - np.arange(y.shape[-1])
        current = np.minimum((total * mean - before) / left, 1.0)
        # Rounding must not reject a true hypothesis: it does not move sums by this much.
        current = np.where(np.abs(current) < 1e-9, 0.0, current)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(y > 0, y / current, 0.0)
    ratio = np.where(np.less(current, 0), np.inf, ratio)
    wealth = np.full(y.shape, -np.inf)
    for stake, share in zip(STAKES, _SHARES, strict=True):
        steps = np.log(1 - stake + stake * ratio)
        wealth = np.logaddexp(wealth, math.log(share) + np.cumsum(steps, axis=-1))
    return wealth


def peak(y: Floats, mean: float, total: int | None = None) -> float:
    """Return the largest log wealth so far against "mean ≤ `mean`"; 0 before the first value."""
    return max(0.0, float(log_wealth(y, mean, total).max())) if len(y) else 0.0


def confidence_sequence(
    y: Floats, confidence: float = 0.95, total: int | None = None, *, sides: int = 2
) -> Interval:
    """Return an interval for the mean that is valid at all times at once.

    With the stated probability it contains the mean at every moment of the stream, so that one may
    look after every value and stop at will. Once all of a finite set was seen it is the mean
    itself.

    Args:
        y: values in [0, 1], in the order in which they were seen [n].
        total: as in `log_wealth`.
        sides: 2 for an interval that errs with probability 1 − confidence in all; 1 for two
            bounds that each err with that probability.

    Raises:
        UsageError: unless 0 < confidence < 1, sides is 1 or 2, and n ≤ total.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"expected 0 < confidence < 1, got {confidence}")
    if sides not in (1, 2):
        raise UsageError(f"expected 1 or 2 sides, got {sides}")
    alpha = (1 - confidence) / sides
    return Interval(lower_bound(y, alpha, total), 1 - lower_bound(1 - np.asarray(y), alpha, total))


def lower_bound(y: Floats, alpha: float, total: int | None = None) -> float:
    """Return a lower bound that exceeds the mean at any time with probability at most `alpha`.

    Raises:
        UsageError: when more values than the finite set has were seen.
    """
    n = len(y)
    if total is not None and n > total:
        raise UsageError(f"expected n ≤ total, got n = {n} of {total} points")
    if n and n == total:
        return float(np.mean(y))
    certain = float(np.sum(y)) / total if total else 0.0  # were all the rest 0
    low, high, needed = certain, 1.0, math.log(1 / alpha)
    if not n or peak(y, low, total) < needed:
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if peak(y, middle, total) >= needed else (low, middle)
    return low


def growth(up: float, even: float, down: float, mean: float) -> float:
    """Return the log wealth gained per value by the best stake, where y is 1, 1/2 or 0.

    Args:
        up, even, down: probabilities of 1, 1/2 and 0.
        mean: the hypothesis is "mean ≤ `mean`"; the growth is 0 where it holds.
    """
    if up + even / 2 <= mean:
        return 0.0
    stakes = np.linspace(0, 0.999, 1000)
    parts = ((up, 1.0), (even, 0.5), (down, 0.0))
    gains = sum(p * np.log1p(stakes * (y / mean - 1)) for p, y in parts if p > 0)
    return float(np.max(gains)) if mean > 0 else math.inf
