"""From paired outcomes to a finding for each metric, valid at every number of points.

Every claim is about the drop d = baseline − candidate. Two bettors watch the points as they come:
one bets against "d ≤ tolerance" and fails the gate when it is refuted, one against "d ≥ tolerance"
and passes it (`robustkit.core.stats.sequential`). What the points left can still change is a third,
certain bound: a claim about the baseline's own points is exact when all are seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from robustkit.core import stats
from robustkit.gate.criteria import BY_CLASS, PLAIN, Terms
from robustkit.gate.paired_sequence import PairedSequence
from robustkit.gate.verdict import Answer, MetricFinding
from robustkit.record.points import ROBUST, Status
from robustkit.record.record import Record
from robustkit.verify.flags import reliability, worse

_COUNTS: dict[str, tuple[Status, ...]] = {
    "clean": ("broken", "robust", "certified"),
    "robust": ROBUST,
    "certified": ("certified",),
}


@dataclass(frozen=True)
class GateJudge:
    """Knows the baseline and what is demanded; judges any first part of the random order."""

    baseline: Record
    terms: Terms

    def findings(
        self,
        order: Sequence[int],
        status: Mapping[int, Status],
        flags: Collection[str],
        *,
        fixed: bool = False,
    ) -> list[MetricFinding]:
        """Judge the candidate on the points `order`, the head of the random order.

        Args:
            fixed: the number of points was not chosen by looking at outcomes.
        """
        found = []
        for metric, tolerance in self.terms.tolerances.items():
            if metric in PLAIN:
                found.append(self._plain(metric, flags, len(order)))
            elif metric in BY_CLASS:
                found.append(self._by_class(metric, tolerance, order, status))
            else:
                found.append(self._rate(metric, tolerance, order, status, fixed))
        return found

    def answers(self, order: Sequence[int], status: Mapping[int, Status]) -> list[Answer]:
        """Return the answers alone, which is quicker; those in words are left out."""
        found: list[Answer] = []
        for metric, tolerance in self.terms.tolerances.items():
            if metric in BY_CLASS:
                found.append(self._by_class(metric, tolerance, order, status).answer)
            elif metric not in PLAIN:
                sequence = self._sequence(metric, order, status)
                found.append(sequence.answer(tolerance, self._fail, self._alpha))
        return found

    def new_flags(self, flags: Collection[str]) -> list[str]:
        """Name the reasons for distrust that the baseline did not have; notes are none."""
        known = {flag.name for flag in self.baseline.flags}
        return sorted(flag for flag in set(flags) - known if reliability([flag]) != "reliable")

    def objections(self, flags: Collection[str]) -> list[str]:
        """Say what regresses by these flags, of the metrics that are demanded in words."""
        told = {metric: self._objection(metric, flags) for metric in PLAIN}
        return [told[metric] for metric in self.terms.tolerances if told.get(metric)]

    def _objection(self, metric: str, flags: Collection[str]) -> str:
        if metric == "flags":
            fresh = self.new_flags(flags)
            return f"{', '.join(fresh)}, which the baseline did not have" if fresh else ""
        # By names on both sides: what the attacks answered is known of finished runs alone.
        known = [flag.name for flag in self.baseline.flags]
        before = reliability([*known, "randomized"] if self.baseline.randomized else known)
        now = reliability(flags)
        return f"{before} → {now}: {', '.join(flags)}" if worse(now, before) else ""

    @property
    def _alpha(self) -> float:
        return 1 - self.terms.confidence

    @property
    def _fail(self) -> float:
        """The probability of a false alarm is shared out: any metric can raise one."""
        return self._alpha / self.terms.counted

    def _plain(self, metric: str, flags: Collection[str], n: int) -> MetricFinding:
        objection = self._objection(metric, flags)
        return MetricFinding(
            metric=metric,
            answer="regressed" if objection else "pass",
            tolerance=0.0,
            n=n,
            total=self.baseline.n,
            detail=objection,
            claim=self.terms.claim,
        )

    @cached_property
    def _before(self) -> dict[str, dict[int, bool]]:
        """Whether the baseline is right on each point, by metric; it is asked for at every look."""
        points, metrics = self.baseline.points, self.terms.tolerances.keys() & _COUNTS.keys()
        pairs = list(zip(points.index, points.status, strict=True))
        return {metric: {p: s in _COUNTS[metric] for p, s in pairs} for metric in metrics}

    def _sequence(
        self, metric: str, order: Sequence[int], status: Mapping[int, Status]
    ) -> PairedSequence:
        wanted = _COUNTS[metric]
        now = {point: status[point] in wanted for point in order}
        return PairedSequence(self._before[metric], order, now, finite=self.terms.claim == "points")

    def _rate(
        self,
        metric: str,
        tolerance: float,
        order: Sequence[int],
        status: Mapping[int, Status],
        fixed: bool,
    ) -> MetricFinding:
        sequence = self._sequence(metric, order, status)
        answer = sequence.answer(tolerance, self._fail, self._alpha)
        if answer == "pass" and sequence.better(self._alpha):
            answer = "improved"
        low, high = sequence.bounds(self._fail, self._alpha)
        return MetricFinding(
            metric=metric,
            answer=answer,
            tolerance=tolerance,
            baseline=sequence.baseline_rate,
            candidate=sequence.baseline_rate - sequence.drop,
            low=low,
            high=high,
            lost=sequence.lost,
            gained=sequence.gained,
            n=sequence.n,
            total=sequence.total,
            p=stats.mcnemar(sequence.lost, sequence.gained) if fixed else None,
            more=sequence.more(tolerance, self._fail) if answer == "undecided" else None,
            claim=self.terms.claim,
        )

    def _by_class(
        self, metric: str, tolerance: float, order: Sequence[int], status: Mapping[int, Status]
    ) -> MetricFinding:
        """Bound every class by itself; the metric is a mean over the lowest m.

        It is above the mean of the m lowest lower bounds unless one of m fixed classes errs, and
        below that of the upper bounds unless any errs: the probabilities are shared out so.
        """
        points = self.baseline.points
        label = dict(zip(points.index, points.label, strict=True))
        classes = sorted(set(points.label))
        m = 1 if metric == "worst-class" else -(-3 * len(classes) // 10)
        was, now, lows, highs = [], [], [], []
        for one in classes:
            sequence = self._of_class(label, one, order, status)
            low, high = sequence.bounds(self._fail / len(classes), self._alpha / m)
            accuracy = self.baseline.per_class[one]
            was.append(accuracy)
            now.append(accuracy - sequence.drop)
            lows.append(accuracy - high)
            highs.append(accuracy - low)
        base, weakest = _lowest(was, m), classes[int(np.argmin(now))]
        low, high = base - _lowest(highs, m), base - _lowest(lows, m)
        answer: Answer = "undecided"
        if low > tolerance + 1e-9:
            answer = "regressed"
        elif high <= tolerance + 1e-9:
            answer = "pass"
        return MetricFinding(
            metric=metric,
            answer=answer,
            tolerance=tolerance,
            baseline=base,
            candidate=_lowest(now, m),
            low=low,
            high=high,
            n=len(order),
            total=self.baseline.n,
            more=self.baseline.n - len(order) if answer == "undecided" else None,
            detail=f"weakest class: {self.baseline.class_name(weakest)}",
        )

    def _of_class(
        self,
        label: Mapping[int, int],
        one: int,
        order: Sequence[int],
        status: Mapping[int, Status],
    ) -> PairedSequence:
        points, wanted = self.baseline.points, _COUNTS["robust"]
        pairs = zip(points.index, points.status, strict=True)
        before = {p: s in wanted for p, s in pairs if label[p] == one}
        mine = [point for point in order if label[point] == one]
        return PairedSequence(before, mine, {p: status[p] in wanted for p in mine}, finite=True)


def _lowest(values: Sequence[float], m: int) -> float:
    return float(np.mean(sorted(values)[:m]))
