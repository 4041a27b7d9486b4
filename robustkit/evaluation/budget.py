"""How far a run goes: all points in one go, or part by part in a random order with stops between.

Parts do not change verdicts: a verdict depends on (seed, point, attack) alone. Where a suite tries
attacks on a sample first, every part has its own. What is finished when a run stops is a random
sample of the points, fixed by the seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from robustkit.core import arguments
from robustkit.errors import RobustkitError
from robustkit.record.points import Status

_LATE = "the time is up"
_FIRST, _MOST, _GROWTH = 16, 128, 16  # points in a part


class BudgetExhausted(Exception):
    """A budget is used up in the middle of a part; the message says which."""

    def __init__(self, reason: str = _LATE) -> None:
        super().__init__(reason)


@dataclass(frozen=True)
class Budget:
    """What a run may use; None: no limit.

    Attributes:
        seconds: wall-clock time of one command.
        forwards: inputs passed forward through the model, earlier lives of the run included.
    """

    seconds: float | None = None
    forwards: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and not arguments.real("seconds", self.seconds) > 0:
            raise arguments.refused("seconds", "a positive number", self.seconds)
        if self.forwards is not None:
            arguments.whole("forwards", self.forwards, 1)


class Interim(NamedTuple):
    """What is known after a part.

    Attributes:
        points: those finished, in the order of the run.
        status: of each of them.
        flags: names of the reasons for distrust that are known so far.
    """

    points: Sequence[int]
    status: dict[int, Status]
    flags: tuple[str, ...]


@dataclass
class StoppingRule:
    """Takes the points in parts, and may end the run after any of them.

    Attributes:
        audits: whether the audit of a suite runs once all points are done.
        reason: why the run ended before all points were done, in words; None: it did not.
    """

    budget: Budget = Budget()
    reason: str | None = None
    audits: bool = True
    _start: float = field(default_factory=time.monotonic)

    def enough(self, progress: Interim) -> str | None:
        """Say why no more points are needed; None: they are. Called after every part."""
        return None

    def spent(self, forwards: int) -> str | None:
        """Say which budget is used up, if one is."""
        allowed = self.budget.forwards
        if allowed is not None and forwards >= allowed:
            return f"{forwards:,} of {allowed:,} forward passes are used, as counted between parts"
        return _LATE if self._late() else None

    def check(self, forwards: int) -> None:
        """Stop in the middle of a part (by `BudgetExhausted`) when a budget is used up."""
        if reason := self.spent(forwards):
            raise BudgetExhausted(reason)

    def check_time(self) -> None:
        """Stop in the middle of a part (by `BudgetExhausted`) when the time is up."""
        if self._late():
            raise BudgetExhausted

    def _late(self) -> bool:
        seconds = self.budget.seconds
        return seconds is not None and time.monotonic() - self._start >= seconds


def parts(points: Sequence[int], done: int) -> list[list[int]]:
    """Cut the points after the first `done` into parts: small ones first, so that ends are near.

    From about 2,000 on a part is a sixteenth of what is done, so that all looks together take no
    longer than n log n. The cuts depend on the number of points alone.
    """
    cuts, size = [0], _FIRST
    while cuts[-1] < len(points):
        cuts.append(min(cuts[-1] + size, len(points)))
        size = min(2 * size, max(_MOST, cuts[-1] // _GROWTH))
    pieces = [list(points[max(a, done) : b]) for a, b in pairwise(cuts)]
    return [piece for piece in pieces if piece]


def nothing_done(budget: Budget) -> RobustkitError:
    """Say that a budget was used up before the first part was done."""
    return RobustkitError(
        f"the budget ({_told(budget)}) was used up before the first points were done: there is "
        "nothing to report. What was found is kept; the same command goes on from there, and a "
        "larger --max-time or --max-forwards, or a lighter suite, ends in a result."
    )


def _told(budget: Budget) -> str:
    limits = [] if budget.seconds is None else [f"{budget.seconds:g} s"]
    return ", ".join(limits + ([f"{budget.forwards:,} forwards"] if budget.forwards else []))
