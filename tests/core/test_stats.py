from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, fisher_exact

from robustkit.core.stats.intervals import Interval, clopper_pearson, finite_population, wilson
from robustkit.core.stats.paired import fisher, fisher_all, mcnemar, mcnemar_all
from robustkit.core.stats.ranks import Outcomes, compare, holm, rank_ranges
from robustkit.errors import UsageError

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def rows(*columns: Sequence[bool] | str, digest: str = "same") -> list[Outcomes]:
    """One row per column of 1s and 0s, all on the same points."""
    return [Outcomes(digest, {i: v in ("1", True) for i, v in enumerate(c)}) for c in columns]


def test_clopper_pearson_at_its_closed_forms() -> None:
    # k = 0: (1 - high)^n = alpha / 2, so high = 1 - 0.025^(1/10) = 0.308497; k = n mirrors it.
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)), abs=1e-12)
    assert clopper_pearson(10, 10) == pytest.approx((0.025 ** (1 / 10), 1.0), abs=1e-12)
    # The textbook value for 5 of 10, from the beta quantiles B(.025; 5, 6) and B(.975; 6, 5).
    assert clopper_pearson(5, 10) == pytest.approx((0.187086, 0.812914), abs=1e-6)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.35, 0.5, 0.62, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 7, 20])
def test_clopper_pearson_covers_at_least_as_often_as_it_says(n: int, p: float) -> None:
    covering = [k for k in range(n + 1) if (i := clopper_pearson(k, n)).low <= p <= i.high]
    assert sum(binom.pmf(k, n, p) for k in covering) >= 0.95


def test_clopper_pearson_ends_solve_their_defining_equations() -> None:
    # P(X ≥ k | low) = P(X ≤ k | high) = alpha / 2, here for 37 of 50 at 90%.
    low, high = clopper_pearson(37, 50, confidence=0.9)
    assert binom.sf(36, 50, low) == pytest.approx(0.05, abs=1e-9)
    assert binom.cdf(37, 50, high) == pytest.approx(0.05, abs=1e-9)


def test_wilson_at_its_closed_forms() -> None:
    # p = 1/2: half width z / (2 √(n + z²)) = 1.959964 / (2 √13.841459) = 0.263407.
    assert wilson(5, 10) == pytest.approx((0.5 - 0.263407, 0.5 + 0.263407), abs=1e-6)
    # k = 0: high = z² / (n + z²) = 3.841459 / 13.841459 = 0.277533.
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)


@given(counts)
def test_intervals_hold_the_estimate_and_mirror(count: tuple[int, int]) -> None:
    k, n = count
    for interval in (clopper_pearson, wilson):
        low, high = interval(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_finite_population_halves() -> None:
    # 600 of 1000 is known to ±3.1 points; of a fixed 10,000 points √(9000/9999) of that, ±2.9;
    # 3000 of 5000 to ±1.37 points, of 10,000 √(5000/9999) of that, ±0.97.
    for n, wide, narrow in ((1000, 0.031, 0.029), (5000, 0.0137, 0.0097)):
        interval = clopper_pearson(n * 6 // 10, n)
        shrunk = finite_population(interval, n * 6 // 10, n, 10_000)
        assert (interval.high - interval.low) / 2 == pytest.approx(wide, abs=5e-4)
        assert (shrunk.high - shrunk.low) / 2 == pytest.approx(narrow, abs=5e-4)


@given(counts, st.integers(0, 1000))
def test_finite_population_shrinks_to_the_estimate(count: tuple[int, int], rest: int) -> None:
    k, n = count
    interval = clopper_pearson(k, n)
    shrunk = finite_population(interval, k, n, n + rest)
    assert interval.low - 1e-12 <= shrunk.low <= k / n <= shrunk.high <= interval.high + 1e-12
    assert finite_population(interval, k, n, n) == (k / n, k / n)


def test_mcnemar_is_the_binomial_tail() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == 2 / 2**5  # the two sequences of one sign
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10, abs=1e-15)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(4, 4) == 1.0


def test_fisher_on_the_lady_tasting_tea() -> None:
    # 3 of 4 against 1 of 4: 2 · (C(4,3) C(4,1) + C(4,4) C(4,0)) / C(8,4) = 2 · 17 / 70.
    assert fisher(3, 4, 1, 4) == pytest.approx(34 / 70, abs=1e-12)


def test_holm_steps_down() -> None:
    # Sorted .01 .03 .04: 3 · .01 = .03, 2 · .03 = .06, then 1 · .04 = .04, raised to .06.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06], abs=1e-12)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=5))
def test_many_tests_in_one_call_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    b, c = np.array(pairs).T
    expected = [float(binomtest(x, x + y).pvalue) if x + y else 1.0 for x, y in pairs]
    assert mcnemar_all(b, c) == pytest.approx(expected, rel=1e-9)
    tables = [[[x, y], [y + 3, 2 * x + 1]] for x, y in pairs if x + y]
    if tables:
        (k1, r1), (k2, r2) = np.array(tables).transpose(1, 2, 0)
        expected = [float(fisher_exact(table)[1]) for table in tables]
        assert fisher_all(k1, k1 + r1, k2, k2 + r2) == pytest.approx(expected, rel=1e-7)


def test_the_same_points_are_paired_and_other_points_are_not() -> None:
    strong, weak = "1" * 60 + "0" * 40, "1" * 50 + "0" * 50
    # Paired: b = 10, c = 0, p = 2 / 2^10. Unpaired, 60 of 100 against 50 of 100 is no difference.
    assert compare(*rows(strong, weak)) == pytest.approx(2 / 2**10, abs=1e-15)
    apart = [*rows(strong, digest="one"), *rows(weak, digest="other")]
    assert compare(*apart) == fisher(60, 100, 50, 100) > 0.1
    assert rank_ranges(rows(strong, weak)) == [(1, 1), (2, 2)]
    assert rank_ranges(apart) == [(1, 2), (1, 2)]


def test_identical_models_tie_and_different_ones_do_not() -> None:
    good, bad = "1" * 90 + "0" * 10, "1" * 30 + "0" * 70
    assert rank_ranges(rows(good)) == [(1, 1)]
    assert rank_ranges(rows(good, good)) == [(1, 2), (1, 2)]
    assert rank_ranges(rows(good, good, bad)) == [(1, 2), (1, 2), (3, 3)]
    assert rank_ranges(rows(bad, good, "1" * 60 + "0" * 40)) == [(3, 3), (1, 1), (2, 2)]
    assert rank_ranges([]) == []


def test_a_table_of_many_pairs_asks_for_more_evidence() -> None:
    # b = 6, c = 0: p = 2 / 2^6 = .03125, enough for one pair, not for the smallest of three.
    one, six_less = "1" * 50 + "0" * 50, "1" * 44 + "0" * 56
    assert rank_ranges(rows(one, six_less)) == [(1, 1), (2, 2)]
    assert rank_ranges(rows(one, one, six_less)) == [(1, 3), (1, 3), (1, 3)]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=5)
    )
)
def test_every_rank_range_holds_the_observed_rank(columns: list[list[bool]]) -> None:
    ranges = rank_ranges(rows(*columns))
    for column, (best, worst) in zip(columns, ranges, strict=True):
        above = sum(sum(other) > sum(column) for other in columns)
        below = sum(sum(other) < sum(column) for other in columns)
        assert 1 <= best <= 1 + above
        assert len(columns) - below <= worst <= len(columns)
    assert rank_ranges(rows(*columns[::-1])) == ranges[::-1]


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    for interval in (clopper_pearson, wilson):
        with pytest.raises(UsageError, match=rf"0 ≤ k ≤ n and n ≥ 1, got k = {k}, n = {n}"):
            interval(k, n)
    with pytest.raises(UsageError, match="0 < confidence < 1, got 95"):
        clopper_pearson(1, 2, confidence=95)
    with pytest.raises(UsageError, match="n ≤ total, got n = 5 of 4"):
        finite_population(Interval(0, 1), 1, 5, 4)
    with pytest.raises(UsageError, match="got b = -1, c = 0"):
        mcnemar(-1, 0)
    assert math.isclose(fisher(0, 1, 0, 1), 1.0)
