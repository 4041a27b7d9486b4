"""What a gate answers: one finding for each metric, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from robustkit.gate.criteria import BY_CLASS
from robustkit.record.points import ROBUST

Answer: TypeAlias = Literal["pass", "improved", "regressed", "undecided"]
SCHEMA = "robustkit/check/1"


class MetricFinding(NamedTuple):
    """What became of one metric.

    Attributes:
        baseline, candidate: its value on the n points that were evaluated (of a class metric the
            baseline's is that of all its points); None for flags and reliability.
        low, high: bounds of the drop, baseline − candidate, on what the claim is about: all points
            of the baseline, or the population. Each errs with the stated probability, whenever one
            stops. What is known of the points left can keep them below or above the drop so far.
        lost, gained: points where only the baseline, only the candidate is right.
        n, total: points evaluated, of those of the baseline.
        p: exact McNemar test, two-sided; None where the number of points was not fixed beforehand.
        more: how many points more a decision is likely to take; None: decided, or out of reach.
        detail: what numbers do not say, such as the names of new flags.
        claim: what low and high are about, "points" or "population".
    """

    metric: str
    answer: Answer
    tolerance: float
    baseline: float | None = None
    candidate: float | None = None
    low: float | None = None
    high: float | None = None
    lost: int = 0
    gained: int = 0
    n: int = 0
    total: int = 0
    p: float | None = None
    more: int | None = None
    detail: str = ""
    claim: str = "points"

    @property
    def drop(self) -> float | None:
        """How much of the metric was lost on the points evaluated."""
        if self.baseline is None or self.candidate is None:
            return None
        return self.baseline - self.candidate

    def sentence(self) -> str:
        """Say it in words."""
        if self.baseline is None or self.candidate is None or self.low is None or self.high is None:
            fine = "no graver than the baseline's"
            if self.metric == "flags":
                fine = "none that the baseline did not have"
            return f"{self.metric}: {self.detail or fine}"
        part = self.claim == "points" and self.n < self.total
        here, whole = (f" on {self.n} points", f" on all {self.total}") if part else ("", "")
        if self.metric in BY_CLASS and part:  # what it was, the baseline says of all its points
            here = f" as seen on {self.n} points"
        told = (
            f"{self.metric} {self.baseline:.3f} → {self.candidate:.3f}: a drop of "
            f"{_signed(self.baseline - self.candidate)}{here}, between {_signed(self.low)} and "
            f"{_signed(self.high)}{whole}, tolerance {self.tolerance:g}"
        )
        if self.lost or self.gained:
            told += f", {self.lost} points lost and {self.gained} gained"
        if self.p is not None:
            told += f", McNemar p = {self.p:.3g}"
        return f"{told} ({self.detail})" if self.detail else told


class ChangedPoint(NamedTuple):
    """A point of which baseline and candidate differ in what became of it.

    Attributes:
        label: name of its class.
        before, now: its status in the baseline's record and the candidate's.
        attack: what broke it now; empty unless it is broken.
    """

    point: int
    label: str
    before: str
    now: str
    attack: str = ""

    @property
    def lost(self) -> bool:
        """Whether the baseline was robust there; else it was gained, or fails in another way."""
        return self.before in ROBUST


class Failure(NamedTuple):
    """A candidate whose evaluation could not finish, and why.

    Attributes:
        exit_code: what the program leaves with, were it the only one.
    """

    candidate: str
    message: str
    exit_code: int
    model_file: str = ""


@dataclass(frozen=True)
class GateVerdict:
    """The answer of a gate about one candidate.

    Attributes:
        answer: "regressed" if any metric has, "undecided" if any is, else "improved" or "pass".
        ended: why the evaluation ended where it did.
        weakest: name and robust accuracy of the candidate's weakest classes, worst first.
        replayed: points broken by inputs stored with the baseline.
        changed: points that were robust and are not, or the reverse; those lost come first.
    """

    answer: Answer
    candidate: str
    baseline: str
    data: str
    threat: str
    suite: str
    confidence: float
    claim: str
    findings: tuple[MetricFinding, ...]
    n: int
    total: int
    ended: str
    seconds: float
    forwards: int
    replayed: int
    weakest: tuple[tuple[str, float], ...]
    record: str = ""
    baseline_record: str = ""
    baseline_commit: str = ""
    model_file: str = ""
    changed: tuple[ChangedPoint, ...] = ()

    @property
    def deciding(self) -> list[MetricFinding]:
        """The findings that the answer rests on, unless it is a pass."""
        return [finding for finding in self.findings if finding.answer == self.answer]

    def sentence(self) -> str:
        """Say it in words, in one paragraph."""
        how = {
            "pass": "has not regressed against",
            "improved": "is better than",
            "regressed": "has regressed against",
            "undecided": "cannot be told from a regression against",
        }[self.answer]
        where = f"{self.data}, {self.threat}, {self.n} of {self.total} points"
        facts = "; ".join(finding.sentence() for finding in self.deciding or self.findings)
        told = f"{self.candidate} {how} {self.baseline} ({where}): {facts}."
        if self.answer == "undecided":
            told += f" {self.advice()}"
        if self.answer == "regressed" and self.weakest:
            weak = ", ".join(f"{name} ({accuracy:.2f})" for name, accuracy in self.weakest)
            told += f" Weakest classes: {weak}."
        return told

    def advice(self) -> str:
        """Say what an undecided gate would need."""
        open_ones = [finding for finding in self.findings if finding.answer == "undecided"]
        if not open_ones:
            return ""
        wanted = [finding.more for finding in open_ones]
        left = self.total - self.n
        known = [more for more in wanted if more is not None]
        if len(known) < len(wanted):
            many = "the difference is too near to the tolerance for any number of points in reach"
        else:
            many = f"about {max(known):,} more points would decide"
        if self.claim == "points":
            if len(known) < len(wanted) or max(known) >= left:
                return f"{self.ended}; the {left:,} points that are left decide."
            return f"{self.ended}; {many}, and the {left:,} that are left certainly do."
        return f"{self.ended}; {many}; {left:,} of the baseline's are left."

    def plain(self) -> dict[str, Any]:
        """Return what JSON holds."""
        facts = asdict(self)
        facts["findings"] = [
            {**finding._asdict(), "drop": finding.drop} for finding in self.findings
        ]
        facts["changed"] = [change._asdict() for change in self.changed]
        facts["weakest"] = [{"class": name, "robust": value} for name, value in self.weakest]
        return {"schema": SCHEMA, **facts, "sentence": self.sentence()}


def overall(findings: Sequence[MetricFinding]) -> Answer:
    """Return the answer that follows from those of the metrics."""
    answers = [finding.answer for finding in findings]
    for answer in ("regressed", "undecided", "improved"):
        if answer in answers:
            return answer
    return "pass"


def exit_code(answers: Sequence[Answer], undecided: str = "error") -> int:
    """Return 0 where all pass, 1 where one has regressed, 3 where one is undecided.

    Args:
        undecided: "pass" or "fail" make an undecided gate 0 or 1; "error" leaves it 3.
    """
    if "regressed" in answers:
        return 1
    return {"pass": 0, "fail": 1, "error": 3}[undecided] if "undecided" in answers else 0


def _signed(value: float) -> str:
    return f"{0.0 if abs(value) < 5e-5 else value:.4f}"
