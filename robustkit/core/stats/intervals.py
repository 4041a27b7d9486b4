"""Intervals for one fraction, from a sample of fixed size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import betaincinv, ndtri, stdtrit

from robustkit.errors import UsageError


class Interval(NamedTuple):
    """A confidence interval for a fraction; both ends belong to it."""

    low: float
    high: float


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval for the success probability behind `k` successes in `n` independent trials.

    Covers it with at least the stated confidence for every n and probability; conservative.
    Clopper and Pearson 1934.

    Raises:
        UsageError: unless 0 ≤ k ≤ n, 1 ≤ n and 0 < confidence < 1.
    """
    check(k, n, confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return Interval(low, high)


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval: shorter than Clopper–Pearson; its coverage is right on average over p.

    Wilson 1927, equation (5).

    Raises:
        UsageError: as for `clopper_pearson`.
    """
    check(k, n, confidence)
    z = float(ndtri((1 + confidence) / 2))
    share, weight = k / n, z * z / n
    center = (share + weight / 2) / (1 + weight)
    reach = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return Interval(
        0.0 if k == 0 else max(0.0, center - reach), 1.0 if k == n else min(1.0, center + reach)
    )


def mean_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Return the mean of independent values in [0, 1] and Student's interval around it.

    Values may be noisy measurements of their own expectations: the spread then contains both
    errors. Asymptotic in n; a single value gives the interval [0, 1].

    Raises:
        UsageError: for no values, and for values outside [0, 1].
    """
    n = len(values)
    if not n or not all(0 <= value <= 1 for value in values):
        raise UsageError("expected at least one value, all of them from 0 to 1")
    check(0, n, confidence)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, (0.0, 1.0)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stdtrit(n - 1, (1 + confidence) / 2)) * spread
    return mean, (max(0.0, mean - reach), min(1.0, mean + reach))


def finite_population(interval: Interval, k: int, n: int, total: int) -> Interval:
    """Shrink `interval` around k/n by √((total − n) / (total − 1)).

    The result is for the accuracy on one fixed set of `total` points, of which `n` were drawn
    without replacement. With n == total that accuracy is known, and the interval is one point.
    For a claim about the population that the fixed set was drawn from, use the interval as it is.
    Cochran 1977, section 2.6.

    Raises:
        UsageError: unless 0 ≤ k ≤ n ≤ total and 1 ≤ n.
    """
    check(k, n)
    if n > total:
        raise UsageError(f"expected n ≤ total, got n = {n} of {total} points")
    share = k / n
    factor = math.sqrt((total - n) / (total - 1)) if total > 1 else 0.0
    return Interval(
        share - (share - interval.low) * factor, share + (interval.high - share) * factor
    )


def check(k: int, n: int, confidence: float = 0.95) -> None:
    """Refuse impossible counts and confidences (a UsageError)."""
    if not (0 <= k <= n and n >= 1):
        raise UsageError(f"expected 0 ≤ k ≤ n and n ≥ 1, got k = {k}, n = {n}")
    if not 0 < confidence < 1:
        raise UsageError(f"expected 0 < confidence < 1, got {confidence}")
