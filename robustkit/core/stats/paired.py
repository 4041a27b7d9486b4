"""Tests and intervals for two models, on the same points or on different ones."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.special import betainc, ndtri

from robustkit.core.stats.hypergeometric import Hypergeometric
from robustkit.core.stats.intervals import Interval, check
from robustkit.errors import UsageError


def mcnemar(b: int, c: int) -> float:
    """Two-sided p-value for two models on the same points that differ on b + c of them.

    On `b` points only the first model is robust, on `c` only the second. Exact: under the
    hypothesis of equal accuracy b is binomial(b + c, 1/2). McNemar 1947, in the exact form.

    Raises:
        UsageError: for negative counts.
    """
    if b < 0 or c < 0:
        raise UsageError(f"expected counts b, c ≥ 0, got b = {b}, c = {c}")
    return float(mcnemar_all(np.array([b]), np.array([c]))[0])


def mcnemar_all(b: Int[np.ndarray, " m"], c: Int[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Return `mcnemar` of each pair of counts."""
    few, many = np.minimum(b, c), np.maximum(b, c)
    # The distribution function of binomial(few + many, 1/2) at `few`.
    tail = np.where(many, betainc(np.maximum(many, 1), few + 1, 0.5), 1.0)
    p: Float[np.ndarray, " m"] = np.minimum(1.0, 2 * tail)
    return p


def fisher(k1: int, n1: int, k2: int, n2: int) -> float:
    """Two-sided p-value for k1 of n1 against k2 of n2, on independent points. Fisher 1935.

    Raises:
        UsageError: unless 0 ≤ k ≤ n and 1 ≤ n for both.
    """
    check(k1, n1)
    check(k2, n2)
    return float(fisher_all(*(np.array([count]) for count in (k1, n1, k2, n2)))[0])


def fisher_all(
    k1: Int[np.ndarray, " m"],
    n1: Int[np.ndarray, " m"],
    k2: Int[np.ndarray, " m"],
    n2: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    """Return `fisher` of each four counts: the tables no likelier than the one seen.

    Given the sums, k1 is hypergeometric. Its law has one peak, so that the tables as unlikely as
    the one seen are a tail on each side: that of k1, and on the other side what bisection finds.
    """
    # Each table of the list once, and the side of k1 made the lower one.
    tables, place = np.unique(np.stack([k1, n1, k2, n2]), axis=1, return_inverse=True)
    k1, n1, k2, n2 = tables
    turned = k1 * n2 > k2 * n1
    k1, k2 = np.where(turned, n1 - k1, k1), np.where(turned, n2 - k2, k2)
    law = Hypergeometric(n1 + n2, k1 + k2, n1)
    seen = law.logpmf(k1) + 1e-7  # equal likelihoods differ by rounding, as in SciPy's own test
    low, high = ((k1 + k2) * n1) // (n1 + n2), np.minimum(k1 + k2, n1) + 1
    while (low + 1 < high).any():  # from the mean on the law falls: likelier at low, not at high
        middle = (low + high) // 2
        rarer = law.logpmf(middle) <= seen
        low, high = np.where(rarer, low, middle), np.where(rarer, middle, high)
    p: Float[np.ndarray, " m"] = np.minimum(1.0, law.between(0 * k1, k1) + law.between(high, n1))
    return p[place.reshape(-1)]


def paired_score(b: int, c: int, n: int, difference: float) -> float:
    """Score statistic for the hypothesis of this `difference`; standard normal under it.

    b, c: as for `mcnemar`, of `n` points; the difference is that of the two accuracies, estimated
    by (b − c) / n. Positive where the estimate is larger. At 0 it is McNemar's (b − c) / √(b + c).
    Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", equations (5) to (9).

    Raises:
        UsageError: unless b, c ≥ 0, b + c ≤ n, 1 ≤ n and −1 < difference < 1.
    """
    if min(b, c) < 0 or b + c > n or n < 1:
        raise UsageError(f"expected b, c ≥ 0 and b + c ≤ n, got b = {b}, c = {c}, n = {n}")
    if not -1 < difference < 1:
        raise UsageError(f"expected −1 < difference < 1, got {difference}")
    variance = constrained_variance(b / n, c / n, difference)
    distance = (b - c) / n - difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance * math.sqrt(n / variance)


def constrained_variance(b: float, c: float, difference: float) -> float:
    """Variance of one paired outcome whose mean is `difference`, nearest to the rates b and c."""
    linear = -b - c + (2 - b + c) * difference
    constant = -c * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * constant))
    down = max(0.0, (root - linear) / 4)
    return 2 * down + difference * (1 - difference)


def paired_interval(b: int, c: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval for the difference of two accuracies on the same n points.

    The differences that `paired_score` does not reject, for a fixed sample size; where the size
    depends on the data, use `confidence_sequence`. Tango 1998.

    Raises:
        UsageError: as for `paired_score`, and unless 0 < confidence < 1.
    """
    from scipy.optimize import brentq

    check(0, n, confidence)
    estimate, z = (b - c) / n, float(ndtri((1 + confidence) / 2))
    edge = 1 - 1e-12

    def beyond(difference: float, sign: int) -> float:
        return sign * paired_score(b, c, n, difference) - z

    def end(sign: int) -> float:
        """Where the score reaches z, away from the estimate."""
        limit = -sign * edge
        if sign * (estimate - limit) <= 1e-12 or beyond(limit, sign) <= 0:
            return -float(sign)
        near = min(max(estimate, -edge), edge)
        return float(brentq(beyond, near, limit, args=(sign,), xtol=1e-12))

    return Interval(end(1), end(-1))
