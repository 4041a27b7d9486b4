"""How far a number can be trusted: intervals for one accuracy, tests for the order of several.

Three errors are kept apart. The intervals here are the *sampling* error, for points drawn at
random from a population. They say nothing of the *attack* error (robust accuracy is an upper
bound: a stronger attack lowers it) nor of the *numerical* one (a record counts its flips).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, binomtest, fisher_exact, norm

from robustkit.errors import UsageError


class Interval(NamedTuple):
    """A confidence interval for a fraction; both ends belong to it."""

    low: float
    high: float


class Outcomes(NamedTuple):
    """One row of a table: which points were evaluated, and whether each one stands."""

    digest: str
    """Equal for two rows exactly when the points are the same."""
    stands: Mapping[int, bool]
    """By position in the data set."""


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval for the success probability behind `k` successes in `n` independent trials.

    Covers it with at least the stated confidence for every n and probability; conservative.
    Clopper and Pearson 1934.

    Raises:
        UsageError: unless 0 ≤ k ≤ n, 1 ≤ n and 0 < confidence < 1.
    """
    _check(k, n, confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return Interval(low, high)


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval: shorter than Clopper–Pearson, and right on average rather than always.

    Wilson 1927, equation (5).

    Raises:
        UsageError: as for `clopper_pearson`.
    """
    _check(k, n, confidence)
    z = float(norm.ppf((1 + confidence) / 2))
    share, weight = k / n, z * z / n
    center = (share + weight / 2) / (1 + weight)
    reach = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    return Interval(
        0.0 if k == 0 else max(0.0, center - reach), 1.0 if k == n else min(1.0, center + reach)
    )


def finite_population(interval: Interval, k: int, n: int, total: int) -> Interval:
    """Shrink `interval` around k/n by √((total − n) / (total − 1)).

    The result is for the accuracy on one fixed set of `total` points, of which `n` were drawn
    without replacement. With n == total that accuracy is known, and the interval is one point.
    Leave the interval as it is to speak of the population that the fixed set itself is a sample of.
    Cochran 1977, section 2.6.

    Raises:
        UsageError: unless 0 ≤ k ≤ n ≤ total and 1 ≤ n.
    """
    _check(k, n)
    if n > total:
        raise UsageError(f"expected n ≤ total, got n = {n} of {total} points")
    share = k / n
    factor = math.sqrt((total - n) / (total - 1)) if total > 1 else 0.0
    return Interval(
        share - (share - interval.low) * factor, share + (interval.high - share) * factor
    )


def mcnemar(b: int, c: int) -> float:
    """Two-sided p-value for two models on the same points that differ on b + c of them.

    `b` points stand only under the first model, `c` only under the second. Exact: under the
    hypothesis of equal accuracy b is binomial(b + c, 1/2). McNemar 1947, in the exact form.

    Raises:
        UsageError: for negative counts.
    """
    if b < 0 or c < 0:
        raise UsageError(f"expected counts b, c ≥ 0, got b = {b}, c = {c}")
    return float(binomtest(b, b + c).pvalue) if b + c else 1.0


def fisher(k1: int, n1: int, k2: int, n2: int) -> float:
    """Two-sided p-value for k1 of n1 against k2 of n2, on independent points. Fisher 1935.

    Raises:
        UsageError: unless 0 ≤ k ≤ n and 1 ≤ n for both.
    """
    _check(k1, n1)
    _check(k2, n2)
    return float(fisher_exact(np.array([[k1, n1 - k1], [k2, n2 - k2]]))[1])


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values so that all together err with the probability that each one states.

    Rejecting those ≤ alpha keeps the chance of any false rejection ≤ alpha, whatever the
    dependence between the tests. Holm 1979.
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, running = [0.0] * len(p), 0.0
    for place, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = running
    return adjusted


def compare(a: Outcomes, b: Outcomes) -> float:
    """Two-sided p-value for the two rows having equal robust accuracy.

    Rows on the same points are paired (`mcnemar`); others are taken as independent samples
    (`fisher`), which errs on the side of a tie where they share points.
    """
    if a.digest != b.digest or a.stands.keys() != b.stands.keys():
        return fisher(sum(a.stands.values()), len(a.stands), sum(b.stands.values()), len(b.stands))
    only_a = sum(stands and not b.stands[i] for i, stands in a.stands.items())
    only_b = sum(stands and not a.stands[i] for i, stands in b.stands.items())
    return mcnemar(only_a, only_b)


def rank_ranges(rows: Sequence[Outcomes], confidence: float = 0.95) -> list[tuple[int, int]]:
    """Best and worst rank of each row that the data leave open.

    Best is 1 + the number of rows significantly better, worst is the number of rows − the number
    significantly worse. Every pair is tested (`compare`), with `holm` over all pairs: with the
    stated confidence no row is wrongly placed above or below another one of the table.
    """
    pairs = list(combinations(range(len(rows)), 2))
    adjusted = holm([compare(rows[i], rows[j]) for i, j in pairs])
    accuracy = [sum(row.stands.values()) / len(row.stands) for row in rows]
    better, worse = [0] * len(rows), [0] * len(rows)
    for (i, j), p in zip(pairs, adjusted, strict=True):
        if p <= 1 - confidence:
            upper, lower = (i, j) if accuracy[i] > accuracy[j] else (j, i)
            better[lower] += 1
            worse[upper] += 1
    return [(1 + b, len(rows) - w) for b, w in zip(better, worse, strict=True)]


def _check(k: int, n: int, confidence: float = 0.95) -> None:
    if not (0 <= k <= n and n >= 1):
        raise UsageError(f"expected 0 ≤ k ≤ n and n ≥ 1, got k = {k}, n = {n}")
    if not 0 < confidence < 1:
        raise UsageError(f"expected 0 < confidence < 1, got {confidence}")
