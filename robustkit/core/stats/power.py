"""Sample sizes: how many points a claim or a gate needs, before any model is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from robustkit.core.stats.intervals import clopper_pearson
from robustkit.core.stats.paired import constrained_variance
from robustkit.core.stats.sequential import log_wealth
from robustkit.errors import UsageError

_LIMIT = 10_000_000
_ROWS = 64  # simulated at once


class Need(NamedTuple):
    """A purpose, its test, and the points per model that it needs."""

    purpose: str
    test: str
    points: int | None
    """None: more than ten million, or never."""
    usual: tuple[int, int] | None = None
    """Of a sequential test: median and 90% quantile of the points."""


class Runs(NamedTuple):
    """Simulated gates.

    Attributes:
        points: evaluated when the gate stopped [r].
        failed, passed: its outcome [r]; neither: undecided.
    """

    points: NDArray[np.int64]
    failed: NDArray[np.bool_]
    passed: NDArray[np.bool_]


def needs(
    effect: float,
    *,
    power: float = 0.9,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    discordance: float | None = None,
    accuracy: float = 0.5,
    total: int = 10_000,
) -> list[Need]:
    """Plan for a true difference of `effect` between two robust accuracies.

    Args:
        power: probability to find the difference, or to pass an unchanged model.
        tolerance: of the gate; a drop below it is accepted.
        discordance: share of points on which the models differ; effect + 0.03 by default.
        accuracy: of the better model; matters for unpaired tests alone.
        total: points of the baseline; matters for the sequential gate alone.

    Raises:
        UsageError: for numbers that contradict each other.
    """
    discordance = min(1.0, effect + 0.03) if discordance is None else discordance
    _refuse(effect, power, confidence, tolerance, discordance, accuracy)
    alpha = 1 - confidence
    paired = _first(lambda n: mcnemar_power(n, effect, discordance, alpha), power)
    found = [
        Need("claim: one model is better", "paired, exact McNemar", paired),
        Need("claim: one model is better", "unpaired, Fisher", unpaired(effect, accuracy, power,
                                                                       alpha)),
        Need(f"one accuracy to ± {effect:g}", "Clopper–Pearson", _width(effect, accuracy,
                                                                         confidence)),
    ]  # fmt: skip
    if effect > tolerance:
        fixed = score_points(effect, tolerance, discordance, power, alpha)
        runs = simulate(effect, tolerance, discordance, total, confidence)
        drop = f"gate: catch a drop of {effect:g}"
        found += [
            Need(drop, "paired score, fixed size", fixed),
            Need(drop, "sequential", None, _usual(runs)),
        ]
    if tolerance > 0:
        spread = max(discordance - effect, 0.0)  # an unchanged model differs by less
        fixed = score_points(0.0, tolerance, spread, power, alpha)
        runs = simulate(0.0, tolerance, spread, total, confidence)
        found += [
            Need("gate: pass an unchanged model", "paired score, fixed size", fixed),
            Need("gate: pass an unchanged model", "sequential", None, _usual(runs)),
        ]
    return found


def mcnemar_power(n: int, effect: float, discordance: float, alpha: float) -> float:
    """Probability that the exact two-sided McNemar test on n points rejects equality.

    Summed over the number of points on which the models differ, binomial(n, discordance).
    """
    from scipy.stats import binom  # takes a second to import

    low, high = (int(binom.ppf(p, n, discordance)) for p in (1e-9, 1 - 1e-9))
    differ = np.arange(low, high + 1)
    critical = binom.ppf(alpha / 2, differ, 0.5)  # the least k with P(X ≤ k) ≥ α/2
    critical -= binom.cdf(critical, differ, 0.5) > alpha / 2
    up = (1 + effect / discordance) / 2
    rejects = binom.cdf(critical, differ, up) + binom.cdf(critical, differ, 1 - up)
    return float(np.sum(binom.pmf(differ, n, discordance) * np.minimum(rejects, 1)))


def unpaired(effect: float, accuracy: float, power: float, alpha: float) -> int | None:
    """Points per model for Fisher's exact test. Casagrande, Pike and Smith 1978, equation (2.6)."""
    p, q = accuracy, accuracy - effect
    mean = (p + q) / 2
    chance, found = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    spread = chance * math.sqrt(2 * mean * (1 - mean))
    first = (spread + found * math.sqrt(p * (1 - p) + q * (1 - q))) ** 2 / effect**2
    points = first / 4 * (1 + math.sqrt(1 + 4 / (first * effect))) ** 2
    return _whole(points)


def score_points(
    drop: float, tolerance: float, discordance: float, power: float, alpha: float
) -> int | None:
    """Points for the one-sided paired score test to tell a true `drop` from the tolerance.

    In both directions: a drop above the tolerance is to be detected, one below it to be passed.
    Normal approximation, the variance under the hypothesis as in `paired_score`.
    """
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    null = constrained_variance(lost, gained, tolerance)
    chance, found = float(ndtri(1 - alpha)), float(ndtri(power))
    spread = chance * math.sqrt(null) + found * math.sqrt(discordance - drop * drop)
    return _whole((spread / (drop - tolerance)) ** 2)


def simulate(
    drop: float,
    tolerance: float,
    discordance: float,
    total: int,
    confidence: float = 0.95,
    *,
    runs: int = 256,
    seed: int = 0,
    population: bool = False,
) -> Runs:
    """Run the sequential gate on pairs of models that differ as stated.

    A pair loses (discordance + drop) / 2 of the points and gains (discordance − drop) / 2, rounded
    to whole points of a finite set of `total`, or drawn from a population.

    Args:
        population: draw `total` independent points, and make the claim about their population.
    """
    generator, needed = np.random.default_rng(seed), math.log(1 / (1 - confidence))
    lost, gained = (discordance + drop) / 2, (discordance - drop) / 2
    size = None if population else total
    points, fails, passes = [], [], []
    for start in range(0, runs, _ROWS):
        rows = min(_ROWS, runs - start)
        y = _pairs(generator, rows, total, lost, gained, population=population)
        fail = log_wealth(y, (1 + tolerance) / 2, size) >= needed
        ok = log_wealth(1 - y, (1 - tolerance) / 2, size) >= needed
        if not population:  # at the end all is known
            fail[:, -1] |= y.sum(1) > total * (1 + tolerance) / 2 + 1e-6
            ok[:, -1] |= ~fail[:, -1]
        first = [np.where(hit.any(1), hit.argmax(1), total) for hit in (fail, ok)]
        points.append(np.minimum(np.minimum(*first) + 1, total))
        fails.append(first[0] < first[1])
        passes.append(first[1] < first[0])
    return Runs(np.concatenate(points), np.concatenate(fails), np.concatenate(passes))


def _pairs(
    generator: np.random.Generator,
    rows: int,
    total: int,
    lost: float,
    gained: float,
    *,
    population: bool,
) -> NDArray[np.float64]:
    """Paired outcomes as y = (1 + z) / 2, one pair of models a row."""
    if population:
        draw = generator.random((rows, total))
        return np.where(draw < lost, 1.0, np.where(draw < lost + gained, 0.0, 0.5))
    difference = round(total * (lost - gained))
    up = max(difference, round(total * lost), 0)
    y = np.full((rows, total), 0.5)
    y[:, :up] = 1.0
    y[:, up : up + up - difference] = 0.0
    return generator.permuted(y, axis=1)


def _usual(runs: Runs) -> tuple[int, int]:
    half, most = np.quantile(runs.points, (0.5, 0.9), method="higher")
    return int(half), int(most)


def _first(power: Callable[[int], float], wanted: float) -> int | None:
    """Return the least n from which on the power, a sawtooth in n, stays above `wanted`."""
    high = 8
    while power(high) < wanted:
        high *= 2
        if high > _LIMIT:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= wanted else (middle, high)
    run, n = 0, high
    while run < 16:
        run, n = (run + 1 if power(n) >= wanted else 0), n + 1
    return n - run


def _width(reach: float, accuracy: float, confidence: float) -> int | None:
    def narrow(n: int) -> float:
        low, high = clopper_pearson(round(accuracy * n), n, confidence)
        return float((high - low) / 2 <= reach)

    return _first(narrow, 0.5)


def _whole(points: Any) -> int | None:
    return math.ceil(points) if points <= _LIMIT else None


def _refuse(
    effect: float,
    power: float,
    confidence: float,
    tolerance: float,
    discordance: float,
    accuracy: float,
) -> None:
    if not 0 < effect < 1:
        raise UsageError(f"effect: expected a difference between 0 and 1, got {effect:g}.")
    if not 0 < power < 1 or not 0 < confidence < 1:
        raise UsageError(
            f"expected power and confidence between 0 and 1, got {power:g} and {confidence:g}."
        )
    if not 0 <= tolerance < 1:
        raise UsageError(f"tolerance: expected a number from 0 to 1, got {tolerance:g}.")
    if not effect <= discordance <= 1:
        raise UsageError(
            f"discordance: models that differ by {effect:g} in accuracy differ on at least that "
            f"share of the points, got {discordance:g}."
        )
    if not effect <= accuracy <= 1:
        raise UsageError(
            f"accuracy: expected one of the better model, from {effect:g} (the effect) to 1, got "
            f"{accuracy:g}."
        )
