"""Tests that may be looked at any time: error rates by simulation, closed forms, exactness."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from robustkit.core.stats.intervals import clopper_pearson
from robustkit.core.stats.power import simulate
from robustkit.core.stats.sequential import (
    STAKES,
    confidence_sequence,
    growth,
    log_wealth,
    lower_bound,
    peak,
)
from robustkit.errors import UsageError

SHARES = (1 / 9, 2 / 9, 2 / 9, 2 / 9, 2 / 9)
streams = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60)


def test_the_wealth_is_the_mean_of_products() -> None:
    # Betting a fraction c against "mean ≤ m": each y multiplies it by 1 − c + c y / m.
    y, mean = [1.0, 0.5, 0.0], 0.4
    wealth = [
        sum(
            s * math.prod(1 - c + c * v / mean for v in y[: n + 1])
            for c, s in zip(STAKES, SHARES, strict=True)
        )
        for n in range(3)
    ]
    assert np.exp(log_wealth(np.array(y), mean)) == pytest.approx(wealth, rel=1e-12)


def test_without_replacement_the_mean_of_what_is_left_is_bet_against() -> None:
    # Four values of mean ≤ 1/2; after a 1, the three left have a mean ≤ (2 − 1) / 3.
    wealth = sum(
        s * (1 - c + c * 1 / 0.5) * (1 - c + c * 1 / (1 / 3))
        for c, s in zip(STAKES, SHARES, strict=True)
    )
    assert log_wealth(np.array([1.0, 1.0]), 0.5, 4)[-1] == pytest.approx(math.log(wealth))


def test_what_has_become_impossible_is_refuted() -> None:
    # Of 4 values with mean ≤ 1/4 at most one is 1; one 1 is no contradiction.
    wealth = log_wealth(np.array([1.0, 0.0, 1.0, 0.0]), 0.25, 4)
    assert np.isfinite(wealth[:2]).all()
    assert np.isposinf(wealth[2:]).all()


@given(streams, st.floats(0.05, 0.95), st.integers(0, 40), st.booleans())
def test_the_wealth_falls_as_the_hypothesis_widens(
    values: list[float], mean: float, rest: int, finite: bool
) -> None:
    y = np.array(values)
    total = len(y) + rest if finite else None
    assert (log_wealth(y, mean, total) >= log_wealth(y, mean + 0.04, total) - 1e-9).all()


@given(streams, st.integers(1, 40))
def test_the_bound_is_where_the_wealth_reaches_its_limit(values: list[float], rest: int) -> None:
    y = np.array(values)
    for total in (None, len(y) + rest):
        low = lower_bound(y, 0.05, total)
        least = 0.0 if total is None else y.sum() / total
        assert least <= low <= y.mean() + 1e-6
        if low > least:
            assert peak(y, low - 1e-6, total) >= math.log(20)
        assert peak(y, low + 1e-6, total) < math.log(20) or low == least


@given(streams)
def test_bounds_hold_the_mean_and_mirror_and_end_exact(values: list[float]) -> None:
    y = np.array(values)
    low, high = confidence_sequence(y)
    assert 0 <= low <= y.mean() + 1e-6
    assert y.mean() - 1e-6 <= high <= 1
    assert confidence_sequence(1 - y) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    assert confidence_sequence(y, total=len(y)) == pytest.approx((y.mean(), y.mean()))


def test_with_no_value_nothing_is_known() -> None:
    assert confidence_sequence(np.array([])) == (0.0, 1.0)
    assert confidence_sequence(np.array([]), total=5) == (0.0, 1.0)


def test_identical_outcomes_pass_about_as_soon_as_any_test_can() -> None:
    """All n outcomes equal, none of 1,000 may be lost but 10: P(nothing seen) is hypergeometric."""
    needed = math.log(20)
    unseen = hypergeom.pmf(0, 1000, 11, np.arange(1, 1000))
    wealth = log_wealth(np.full(1000, 0.5), (1 - 0.01) / 2, 1000)
    first = int(np.argmax(wealth >= needed)) + 1
    best, one_in_five = (int(np.argmax(unseen <= level)) + 1 for level in (0.05, 0.05 * 2 / 9))
    assert best == 238
    # The highest stake starts with 2/9 of the capital, and is 0.95 of what may be staked.
    assert best <= first <= 1.1 * one_in_five


@pytest.mark.parametrize("population", [False, True])
@pytest.mark.parametrize("discordance", [0.02, 0.1])
def test_false_alarms_stay_below_the_level_whenever_one_stops(
    population: bool, discordance: float
) -> None:
    """At a drop of exactly the tolerance, looking after every single point."""
    runs = simulate(0.02, 0.02, discordance, 1000, runs=600, seed=1, population=population)
    assert clopper_pearson(int(runs.failed.sum()), 600, 0.99).low <= 0.05


@pytest.mark.parametrize("population", [False, True])
def test_false_passes_stay_below_the_level_whenever_one_stops(population: bool) -> None:
    """One point in 1,000 beyond the tolerance."""
    runs = simulate(0.021, 0.02, 0.06, 1000, runs=600, seed=2, population=population)
    assert clopper_pearson(int(runs.passed.sum()), 600, 0.99).low <= 0.05


@pytest.mark.parametrize("total", [None, 400])
def test_the_confidence_sequence_covers_at_all_times(total: int | None) -> None:
    generator, missed, runs = np.random.default_rng(3), 0, 300
    for _ in range(runs):
        if total is None:
            y, mean = (generator.random(300) < 0.8).astype(float), 0.8
        else:
            y, mean = generator.permutation(np.repeat([0.0, 1.0], [80, 320])).astype(float), 0.8
        seen = y[:300]
        # The bounds exclude the mean at some time exactly where a bettor against it gets rich.
        missed += peak(seen, mean, total) >= math.log(40)
        missed += peak(1 - seen, 1 - mean, total) >= math.log(40)
    assert clopper_pearson(missed, runs, 0.99).low <= 0.05


def test_a_large_drop_ends_soon_and_an_equal_model_passes() -> None:
    large = simulate(0.3, 0.01, 0.3, 1000, runs=64)
    assert large.failed.all()
    assert np.median(large.points) <= 48
    equal = simulate(0.0, 0.01, 0.0, 1000, runs=64)
    assert equal.passed.all()
    assert equal.points.max() <= 368  # the end of the fifth part: 16 + 32 + 64 + 128 + 128


def test_all_points_of_a_finite_set_decide() -> None:
    runs = simulate(0.012, 0.01, 0.05, 1000, runs=64, seed=5)
    assert (runs.failed ^ runs.passed).all()


def test_growth_is_that_of_the_best_stake() -> None:
    # y is 1 with probability p against "mean ≤ 1/2": the best stake is 2p − 1 (Kelly 1956).
    p = 0.7
    kelly = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert growth(p, 0.0, 1 - p, 0.5) == pytest.approx(kelly, abs=1e-6)
    assert growth(0.3, 0.4, 0.3, 0.5) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": 95}, "0 < confidence < 1, got 95"),
        ({"sides": 3}, "1 or 2 sides, got 3"),
        ({"total": 2}, "n ≤ total, got n = 3 of 2"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        confidence_sequence(np.array([1.0, 0.0, 1.0]), **arguments)
