"""Planned numbers of points keep what they promise: checked by simulation and by enumeration."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pytest
from scipy.stats import fisher_exact, norm

from robustkit.core.stats.paired import mcnemar, paired_interval, paired_score
from robustkit.core.stats.power import mcnemar_power, needs, score_points, simulate, unpaired
from robustkit.errors import UsageError


def test_the_power_of_mcnemar_is_a_sum_over_all_outcomes() -> None:
    # n = 12, b with probability .35, c with .05: every (b, c), weighted by the trinomial.
    n, b, c = 12, 0.35, 0.05
    power = sum(
        comb(n, i) * comb(n - i, j) * b**i * c**j * (1 - b - c) ** (n - i - j)
        for i in range(n + 1)
        for j in range(n + 1 - i)
        if mcnemar(i, j) <= 0.05
    )
    assert mcnemar_power(n, 0.3, 0.4, 0.05) == pytest.approx(power, abs=1e-8)


def test_a_planned_paired_claim_has_its_power() -> None:
    need = needs(0.05, power=0.9, discordance=0.1)[0]
    assert need.points is not None
    assert mcnemar_power(need.points, 0.05, 0.1, 0.05) >= 0.9
    assert mcnemar_power(need.points - 10, 0.05, 0.1, 0.05) < 0.905
    draw = np.random.default_rng(0).multinomial(need.points, [0.075, 0.025, 0.9], size=1500)
    found = np.mean([mcnemar(int(b), int(c)) <= 0.05 for b, c, _ in draw])
    assert found == pytest.approx(0.9, abs=0.03)


def test_a_planned_unpaired_claim_has_its_power() -> None:
    n = unpaired(0.1, 0.6, 0.9, 0.05)
    assert n is not None
    generator = np.random.default_rng(1)
    first, second = generator.binomial(n, 0.6, 400), generator.binomial(n, 0.5, 400)
    p = [fisher_exact([[a, n - a], [b, n - b]])[1] for a, b in zip(first, second, strict=True)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize(("drop", "sign"), [(0.06, 1), (0.0, -1)])
def test_a_planned_gate_of_fixed_size_has_its_power_and_level(drop: float, sign: int) -> None:
    tolerance, discordance = 0.02, 0.08
    n = score_points(drop, tolerance, discordance, 0.9, 0.05)
    assert n is not None
    assert abs(_rejects(n, drop, tolerance, discordance, sign) - 0.9) < 0.04
    assert _rejects(n, tolerance, tolerance, discordance, sign) == pytest.approx(0.05, abs=0.02)


def _rejects(n: int, drop: float, tolerance: float, discordance: float, sign: int) -> float:
    rates = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    draw = np.random.default_rng(2).multinomial(n, rates, size=2000)
    limit = norm.ppf(0.95)
    return float(
        np.mean([sign * paired_score(int(b), int(c), n, tolerance) > limit for b, c, _ in draw])
    )


def test_the_planned_sequential_gate_keeps_its_promise_on_other_pairs() -> None:
    need = next(n for n in needs(0.05, tolerance=0.01, total=2000) if n.test == "sequential")
    assert need.usual is not None
    runs = simulate(0.05, 0.01, 0.08, 2000, runs=256, seed=9)
    assert runs.failed.mean() >= 0.95
    assert np.mean(runs.points <= need.usual[1]) == pytest.approx(0.9, abs=0.06)


@pytest.mark.slow
def test_pairing_needs_fewer_points_and_half_the_effect_four_times_as_many() -> None:
    points = {n.test: n.points for n in needs(0.02)}
    assert points["paired, exact McNemar"] is not None
    assert points["unpaired, Fisher"] is not None
    assert 5 * points["paired, exact McNemar"] < points["unpaired, Fisher"]
    half = needs(0.01, discordance=0.05)[0].points
    whole = needs(0.02, discordance=0.05)[0].points
    assert half is not None and whole is not None
    assert half / whole == pytest.approx(4, rel=0.1)


def test_paired_score_is_mcnemar_at_zero_and_its_interval_inverts_it() -> None:
    assert paired_score(10, 2, 100, 0.0) == pytest.approx(8 / 12**0.5)
    low, high = paired_interval(10, 2, 100)
    z = norm.ppf(0.975)
    assert paired_score(10, 2, 100, low) == pytest.approx(z, abs=1e-6)
    assert paired_score(10, 2, 100, high) == pytest.approx(-z, abs=1e-6)
    assert paired_interval(2, 10, 100) == pytest.approx((-high, -low), abs=1e-9)


def test_paired_interval_at_its_closed_form() -> None:
    # No point differs: the variance under d is d (1 − d) / n, so z² = n d / (1 − d), d = z²/(n+z²).
    z2 = norm.ppf(0.975) ** 2
    assert paired_interval(0, 0, 50)[1] == pytest.approx(z2 / (50 + z2), abs=1e-9)
    # All are lost: the likeliest rates under d are (1 + d) / 2 and (1 − d) / 2, of variance 1 − d²,
    # so z² = n (1 − d)² / (1 − d²) and d = (n − z²) / (n + z²).
    low, high = paired_interval(50, 0, 50)
    assert low == pytest.approx((50 - z2) / (50 + z2), abs=1e-9)
    assert high == 1.0


@pytest.mark.parametrize(("b", "c"), [(0.05, 0.05), (0.2, 0.02), (0.01, 0.0)])
def test_paired_interval_covers(b: float, c: float) -> None:
    draw = np.random.default_rng(3).multinomial(200, [b, c, 1 - b - c], size=800)
    held = [i.low <= b - c <= i.high for i in (paired_interval(int(x), int(y), 200) for x, y, _ in
                                               draw)]  # fmt: skip
    assert 0.93 <= np.mean(held) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"effect": 0.0}, "effect: expected a difference between 0 and 1, got 0"),
        ({"effect": 0.1, "power": 1.0}, "power and confidence between 0 and 1, got 1"),
        ({"effect": 0.1, "discordance": 0.05}, "differ on at least that share"),
        ({"effect": 0.1, "accuracy": 0.05}, "from 0.1 .the effect. to 1, got 0.05"),
        ({"effect": 0.1, "tolerance": -1.0}, "tolerance: expected a number from 0 to 1"),
    ],
)
def test_contradictions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        needs(**arguments)


def test_statsmodels_agrees() -> None:
    from statsmodels.stats.contingency_tables import mcnemar as theirs
    from statsmodels.stats.proportion import proportion_confint

    from robustkit.core.stats.intervals import clopper_pearson, wilson

    for k, n in ((0, 20), (37, 50), (783, 1000)):
        for ours, method in ((clopper_pearson, "beta"), (wilson, "wilson")):
            assert ours(k, n) == pytest.approx(proportion_confint(k, n, 0.05, method), abs=1e-9)
    for b, c in ((1, 9), (0, 5), (14, 11)):
        assert mcnemar(b, c) == pytest.approx(theirs([[30, b], [c, 7]], exact=True).pvalue)
