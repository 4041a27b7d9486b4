"""The audit: who is in the sample, when it alarms, and whether its bound holds as often as said."""

from __future__ import annotations

import numpy as np
import pytest

from robustkit.errors import UsageError
from robustkit.search.audit import Audit, Sample, alarming, draw, missed

AUDIT = Audit(["square"], near=0.1, random=0.1, least=5)


def test_the_nearest_are_audited_and_the_rest_is_drawn_from() -> None:
    closest = {point: -float(point) for point in range(100)}  # the lower, the nearer
    sample = draw(AUDIT, closest, range(100), seed=0)
    assert sample.near == tuple(range(10))
    assert len(sample.random) == 10
    assert min(sample.random) >= 10
    assert sample.rest == 90
    assert sample == draw(AUDIT, closest, range(99, -1, -1), seed=0)
    assert sample.random != draw(AUDIT, closest, range(100), seed=1).random


def test_points_without_a_number_are_far() -> None:
    sample = draw(AUDIT, {7: -2.0, 3: -1.0}, range(40), seed=0)
    assert {3, 7} <= set(sample.near)


def test_few_survivors_are_all_audited() -> None:
    sample = draw(AUDIT, {}, range(7), seed=0)
    assert sample.points == set(range(7))
    assert (sample.rest, missed(sample, set())) == (2, 0)


def test_the_random_part_is_scaled_up_before_it_is_compared() -> None:
    sample = Sample(near=(1, 2, 3), random=(4, 5), rest=200)
    audit = Audit([], threshold=0.002)
    assert not alarming(audit, sample, set(), n=1000)
    assert not alarming(audit, sample, {1, 2}, n=1000)
    assert alarming(audit, sample, {1, 2, 3}, n=1000)
    assert alarming(audit, sample, {4}, n=1000)  # stands for 100
    assert not alarming(audit, sample, {9}, n=1000)  # was not in the sample


def test_the_bound_in_closed_form() -> None:
    # No bad point among m of N drawn: the largest K with C(N − K, m) / C(N, m) > 0.05.
    # N = 20, m = 10: K = 3 gives (10 · 9 · 8) / (20 · 19 · 18) = 0.105, K = 4 gives 0.043.
    assert missed(Sample((), tuple(range(10)), rest=20), set()) == 3
    # Everything drawn leaves nothing to miss; nothing drawn leaves everything.
    assert missed(Sample((), (1, 2), rest=2), {1}) == 0
    assert missed(Sample((), (), rest=9), set()) == 9
    with pytest.raises(UsageError, match="confidence"):
        missed(Sample((), (1,), rest=9), set(), confidence=1.0)


@pytest.mark.parametrize("bad", [0, 3, 20, 60])
def test_the_bound_holds_as_often_as_it_says(bad: int) -> None:
    random, hits, rounds = np.random.default_rng(bad), 0, 600
    for _ in range(rounds):
        drawn = random.permutation(200)[:40]
        sample = Sample((), tuple(drawn.tolist()), rest=200)
        broken = {point for point in drawn.tolist() if point < bad}
        hits += missed(sample, broken) >= bad - len(broken)
    # 95% of 600 rounds, less three standard deviations of a binomial.
    assert hits / rounds >= 0.95 - 3 * (0.95 * 0.05 / rounds) ** 0.5
