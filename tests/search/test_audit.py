"""The audit: who is in the sample, when it alarms, and whether its bound holds as often as said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robustkit.core.spec import Spec
from robustkit.core.stats.hypergeometric import drawn_to_halve, most_bad
from robustkit.errors import UsageError
from robustkit.evaluation.stages.audit import perform, pursued, shallow
from robustkit.record.ledger_schema import BrokenPoint
from robustkit.search.audit import Audit, Sample, alarming, draw, missed
from robustkit.search.suites import LineUp

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


def test_the_draw_that_halves_the_bound() -> None:
    assert most_bad(20, 10, 0) == 3
    drawn = drawn_to_halve(20, 10, 0, 3)
    assert most_bad(20, drawn, 0) <= 1 < most_bad(20, drawn - 1, 0)
    assert drawn_to_halve(20, 10, 0, 0) == 19  # a single bad one escapes with 1/20


class Book:
    """What the audit asks of a ledger, without a file."""

    def __init__(self, closest: dict[int, float]) -> None:
        self.memo: dict[str, Any] = {}
        self.found: dict[int, BrokenPoint] = {}
        self.near = closest

    def remembered(self, key: str) -> Any:
        return self.memo.get(key)

    def remember(self, key: str, value: Any) -> None:
        self.memo[key] = value

    def closest(self) -> dict[int, float]:
        return self.near

    def broken(self, points: Any = None) -> dict[int, BrokenPoint]:
        wanted = self.found if points is None else points
        return {p: self.found[p] for p in wanted if p in self.found}

    def write(self, *_: Any) -> None: ...


LINE = LineUp([Spec("relay"), Spec("apgd"), Spec("fab")], [object()] * 3, 1, Audit([], least=16))


def audited(bad: dict[int, int], closest: dict[int, float], seed: int) -> tuple[Book, list[int]]:
    """Audit 200 survivors of which `bad` fall, each to a stage; return how often each attacked."""
    book, given = Book(closest), [0, 0, 0]

    def attack(stage: int, points: Any, last: bool) -> None:
        todo = [p for p in points if p not in book.found]
        given[stage] += len(todo)
        for p in todo:
            if bad.get(p) == stage:
                book.found[p] = BrokenPoint(p, stage, 0, 0.0)

    perform(LINE, book, lambda: [p for p in range(200) if p not in book.found],  # type: ignore[arg-type]
            range(300), seed, attack)  # fmt: skip
    return book, given


def test_near_points_that_fall_are_followed_by_what_broke_them_until_a_block_holds() -> None:
    closest = {p: -float(p) for p in range(200)}
    book, given = audited({3: 2, 5: 2, 20: 2, 150: 2, 35: 1}, closest, seed=4)
    sample = Sample(**book.memo["audit"])
    assert not {20, 150, 35} & set(sample.random)  # else another seed
    assert book.memo["escalated"] is False
    # Points 16–31 (20 falls) and 32–47 (none does, since 35 falls to another attack) were given.
    beyond = [p for p in range(16, 200) if p not in sample.random][:32]
    assert pursued(book) == (beyond, {20})  # type: ignore[arg-type]
    assert set(book.found) == {3, 5, 20}
    assert given == [0, 32, 32 + 32]
    assert not shallow(book, LINE)  # type: ignore[arg-type]  # what was missed is settled
    book, _ = audited(dict.fromkeys(range(0, 200, 2), 2), closest, seed=4)
    assert shallow(book, LINE)  # type: ignore[arg-type]
    assert not shallow(audited({}, closest, seed=4)[0], LINE)  # type: ignore[arg-type]


def test_a_random_point_that_falls_sends_everything_to_everyone() -> None:
    closest = {p: -float(p) for p in range(200)}
    bad = dict.fromkeys(range(0, 200, 4), 1)
    book, _ = audited(bad, closest, seed=0)
    assert book.memo["escalated"] is True
    assert set(book.found) == set(bad)


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("bad", [2, 12, 60])
def test_the_bound_holds_however_far_the_audit_went(bad: int, scattered: bool) -> None:
    draws, hits, rounds = np.random.default_rng(bad), 0, 300
    closest = {p: -float(p) for p in range(200)}
    for turn in range(rounds):
        chance = np.ones(200) if scattered else np.exp(-np.arange(200) / 25)
        picked = draws.choice(200, bad, replace=False, p=chance / chance.sum())
        book, _ = audited({int(p): 1 + int(p) % 2 for p in picked}, closest, seed=turn)
        sample, fallen = Sample(**book.memo["audit"]), pursued(book)[1]  # type: ignore[arg-type]
        audited_ones = {p for p in book.found if p in sample.points}
        bound = 0 if book.memo["escalated"] else missed(sample, audited_ones, len(fallen))
        hits += bound >= bad - len(book.found)
    assert hits / rounds >= 0.95 - 3 * (0.95 * 0.05 / rounds) ** 0.5


def test_the_bound_is_that_of_an_independent_implementation() -> None:
    from scipy.stats import hypergeom

    for rest, size, found in ((144, 16, 0), (158, 16, 2), (60, 30, 5), (9, 1, 1)):
        bad = np.arange(found, rest - size + found + 1)
        expected = bad[hypergeom.cdf(found, rest, bad, size) > 0.05].max()
        assert most_bad(rest, size, found) == expected
