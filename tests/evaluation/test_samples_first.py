"""An attack on a sample first: how far it goes on, and that a killed run goes on alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from robustkit.evaluation.stages.screen import reached, screen
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import BrokenPoint, Cost
from robustkit.search.audit import Audit

STAGE, POINTS = 3, range(100)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in which point p is the p-th nearest."""
    with Ledger(tmp_path / "ledger.sqlite", {"n": 100}) as found:
        found.write(0, [], [], Cost(), {point: -float(point) for point in POINTS})
        yield found


class Attack:
    """Breaks `weak` points; counts what it is given; stops the run at the `fuse`-th call."""

    def __init__(self, ledger: Ledger, weak: Sequence[int], fuse: int = 0) -> None:
        self.ledger, self.weak, self.fuse = ledger, set(weak), fuse
        self.given: list[list[int]] = []

    def left(self, points: Sequence[int]) -> list[int]:
        broken = self.ledger.broken()
        return [p for p in points if p not in broken]

    def __call__(self, stage: int, points: Sequence[int], last: bool) -> None:
        if len(self.given) + 1 == self.fuse:
            raise KeyboardInterrupt
        fresh = self.left(points)
        self.given.append(fresh)
        broken = [BrokenPoint(p, stage, 1, 0.1) for p in fresh if p in self.weak]
        self.ledger.write(stage, [], broken, Cost(finished=last))

    def run(self, points: Sequence[int] = POINTS) -> None:
        screen(STAGE, points, self.ledger, Audit(()), self.left, 0, self, last=True)

    @property
    def finished(self) -> bool:
        return self.ledger.costs()[STAGE].finished


def test_nothing_broken_ends_it_after_the_sample(ledger: Ledger) -> None:
    attack = Attack(ledger, [])
    attack.run()
    (sample,) = attack.given
    assert sample[:8] == list(range(8)) and len(sample) == 16
    assert attack.finished


def test_it_goes_on_to_the_next_nearest_until_a_block_holds(ledger: Ledger) -> None:
    attack = Attack(ledger, range(8))
    attack.run()
    sample, block = attack.given
    assert block == [point for point in POINTS if point not in sample][:16]
    assert attack.finished


def test_a_random_point_that_falls_sends_it_to_all(ledger: Ledger) -> None:
    scout = Attack(ledger, [])
    scout.run()
    drawn = scout.given[0][-1]  # of the random part: it is not among the eight nearest
    with ledger.transaction():
        ledger._db.execute("DELETE FROM memo")
    attack = Attack(ledger, [drawn])
    attack.run()
    assert sorted({p for block in attack.given for p in block}) == list(POINTS)


@pytest.mark.parametrize(
    ("broken", "order", "led"),
    [
        ([], [0, 100], False),  # what few draws found nothing by is not tried with more
        ([50], [0, 100], True),
        ([1], [0, 100], None),
        ([1], None, True),  # few draws were on all points for the same reason
        ([1], [0, 40], True),  # the sample was of another part of the run
    ],
)
def test_more_draws_go_where_fewer_led(
    ledger: Ledger, broken: list[int], order: list[int] | None, led: bool | None
) -> None:
    ledger.write(2, [], [BrokenPoint(p, 2, 1, 0.1) for p in broken], Cost(finished=True))
    if order:
        ledger.remember("screen 2", {"points": order, "blocks": [], "random": [50]})
    assert reached(ledger, POINTS, 2) is led
    assert reached(ledger, POINTS, None) is None


def test_of_no_points_nothing_is_attacked(ledger: Ledger) -> None:
    attack = Attack(ledger, POINTS)
    attack.run([])
    assert attack.given == [[]] and attack.finished


def test_a_run_that_was_killed_goes_on_alike(ledger: Ledger, tmp_path: Path) -> None:
    weak = [0, 1, 10, 11, 30]
    with Ledger(tmp_path / "whole.sqlite", {"n": 100}) as other:
        other.write(0, [], [], Cost(), {point: -float(point) for point in POINTS})
        whole = Attack(other, weak)
        whole.run()
        expected = set(other.broken())
    cut = Attack(ledger, weak, fuse=2)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again = Attack(ledger, weak)
    again.run()
    seen = {p for attack in (cut, again) for block in attack.given for p in block}
    assert set(ledger.broken()) == expected
    assert seen == {p for block in whole.given for p in block}


def test_every_part_of_a_run_has_a_sample_of_its_own(ledger: Ledger) -> None:
    for part in (range(40), range(40, 100)):
        attack = Attack(ledger, [])
        attack.run(part)
        (sample,) = attack.given
        assert set(sample) <= set(part) and len(sample) == 16
    assert ledger.remembered(f"screen {STAGE}")["points"] == [40, 60]
