"""One evaluation in progress: the clean pass, then one attack after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

from robustkit.certify.certifier import Certifier
from robustkit.core.finite import FiniteThreat
from robustkit.data.dataset import shuffled
from robustkit.evaluation.budget import BudgetExhausted, Interim, StoppingRule, nothing_done, parts
from robustkit.evaluation.executor import Executor
from robustkit.evaluation.prepare import Prepared
from robustkit.evaluation.settings import Settings
from robustkit.evaluation.stages.audit import perform
from robustkit.evaluation.stages.clean_and_certify import certify_points
from robustkit.evaluation.stages.complete import CompleteStage
from robustkit.evaluation.stages.exhaustive import untried
from robustkit.evaluation.stages.replay import Replay, none_fitted
from robustkit.evaluation.stages.screen import reached, screen
from robustkit.evaluation.stages.stage import AttackStage, PointsToAttack, Report
from robustkit.evaluation.tally import Tally
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import CLEAN, REPLAYED, VERIFIED, Cost
from robustkit.record.points import Status
from robustkit.record.record import COMPLETE, REPLAY
from robustkit.record.status import Finished, read_finished
from robustkit.search.audit import Audit
from robustkit.search.suites import LineUp

_OTHERS = {REPLAYED: REPLAY, VERIFIED: COMPLETE}  # stages that are no attack of the line-up


@dataclass(frozen=True)
class Run:
    """One evaluation in progress.

    Attributes:
        certifier: the certificate that is tried first; None: none.
        complete: branch and bound on what bounds and attacks leave; None: none.
        replay: the inputs of earlier runs that are tried before the attacks; None: none.
        carried: what a run at a larger eps had found, see `robustkit.evaluation.carry_over`.
        given: by attack the points that it was given so far; read once from the ledger.
    """

    settings: Settings
    prepared: Prepared
    line: LineUp
    ledger: Ledger
    executor: Executor
    watcher: Watcher
    certifier: Certifier | None
    complete: CompleteStage | None
    replay: Replay | None
    carried: Mapping[str, dict[int, Any]]
    given: dict[int, set[int]] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """The distance up to which a success counts."""
        return self.settings.threat.limit(prod(self.settings.data.shape))

    @cached_property
    def _tally(self) -> Tally:
        return Tally(self.ledger, self.watcher, self.limit)

    def finished(self, points: Sequence[int]) -> Finished:
        """Read the verdict on each of `points`, which are finished."""
        return read_finished(self.ledger, points, self.limit)

    def all(self) -> list[int]:
        """Do what an earlier run of the same command has not done yet.

        Returns:
            The points that are finished: all of them, unless a budget ended the run before.

        Raises:
            RobustkitError: when the budget ends before any point is finished.
        """
        diagnosis, rule = self.prepared.diagnosis, self.settings.budget
        if CLEAN not in self.ledger.costs():
            cost = Cost(forwards=diagnosis.forwards, backwards=diagnosis.backwards)
            self.ledger.write(CLEAN, [], [], cost)
        if rule is not None:
            return self._in_parts(rule)
        everything: list[int] = self.prepared.points.tolist()
        self._do(everything, last=True)
        self._audit()
        return everything

    def _in_parts(self, rule: StoppingRule) -> list[int]:
        """Go part by part through a random order; return the points of the finished parts."""
        order = shuffled(self.prepared.points, self.settings.seed)
        done = int(self.ledger.remembered("done") or 0)
        status = self.finished(order[:done]).status
        try:
            for part in parts(order, done):
                if done:
                    rule.reason = rule.enough(self._interim(order[:done], status))
                    rule.reason = rule.reason or rule.spent(self.forwards())
                    if rule.reason:
                        break
                self._do(part, last=done + len(part) == len(order))
                done += len(part)
                status |= self.finished(part).status
                self.ledger.remember("done", done)
                self.watcher.part(done, len(order))
            if done == len(order) and rule.audits:
                self._audit()
        except BudgetExhausted as error:
            rule.reason = str(error)
        if not done:
            raise nothing_done(rule.budget)
        return sorted(order[:done])

    def _do(self, points: Sequence[int], *, last: bool) -> None:
        """Finish some points; `last` says that no others are to come."""
        self.clean(points)
        self.certify(points)
        self.try_replay(points, last=last)
        for number in range(self.line.audited):
            self._give(number, points, last)
        self.verify(points, last=last)

    def _audit(self) -> None:
        """Audit what the search has left robust, if the line-up asks for it.

        Raises:
            BudgetExhausted: when a budget ends before the audit does.
        """
        everything: list[int] = self.prepared.points.tolist()

        def attack(number: int, points: Sequence[int], last: bool) -> None:
            if self.settings.budget is not None:
                self.settings.budget.check(self.forwards())
            self._give(number, points, last)

        perform(self.line, self.ledger, lambda: self._left(everything), everything,
                self.settings.seed, attack)  # fmt: skip

    def _left(self, points: Sequence[int]) -> list[int]:
        """List the points that are to be attacked still."""
        robust, proved = self._robust(points)
        return [p for p in robust if self.settings.attack_certified or p not in proved]

    def _give(self, number: int, points: Sequence[int], last: bool) -> None:
        """Give an attack the robust ones of `points`, or a sample; more draws where fewer led."""
        led = reached(self.ledger, points, self.line.below(number))
        if led or not self.line.screens(number):
            self.attack(number, points, last)
        elif not self.ledger.costs().get(number, Cost()).finished:
            audit, seed = self.line.audit or Audit(()), self.settings.seed
            whose = [] if led is False else points
            screen(number, whose, self.ledger, audit, self._left, seed, self.attack, last=last)

    def forwards(self) -> int:
        """Return the passes that all stages have taken so far."""
        return sum(cost.forwards for cost in self.ledger.costs().values())

    def _interim(self, done: Sequence[int], status: dict[int, Status]) -> Interim:
        """Gather what is known of the finished points `done`."""
        return Interim(done, status, tuple(flag.name for flag in self.prepared.diagnosis.flags))

    def attack_name(self, number: int) -> str:
        """Return what the record calls a stage that breaks points."""
        return _OTHERS.get(number) or str(self.line.specs[number])

    def clean(self, points: Sequence[int]) -> None:
        """Classify those of `points` that the ledger does not know yet."""
        if self.carried:
            return
        known = self.ledger.predicted(points)
        todo = [point for point in points if point not in known]
        seen = [known[point] for point in points if point in known]
        correct = sum(label == predicted for label, predicted in seen)
        self.watcher.stage("clean", len(points))
        done = len(points) - len(todo)

        def report(classified: int, right: int) -> None:
            nonlocal done, correct
            done, correct = done + classified, correct + right
            self.watcher.advance(done, correct, len(points))

        ranked = self.line.ranked(self.settings.threat, self.prepared.diagnosis.classes)
        self.executor.classify(todo, ranked, report)
        self._tally.tell()

    def certify(self, points: Sequence[int]) -> None:
        """Try the certificate on every one of `points` that is classified correctly."""
        certifier = self.certifier
        if certifier is None:
            return

        def work(todo: list[int], broken: set[int], report: Report) -> None:
            self.executor.prove(certifier, todo, broken, report)

        certify_points(certifier.name, points, self.ledger, self.watcher, work,
                       everything=self.settings.attack_certified)  # fmt: skip
        self._tally.tell()

    def _robust(
        self, points: Sequence[int], number: int | None = None
    ) -> tuple[dict[int, list[int]], set[int]]:
        """Return the classes by falling logit of those still robust, and the points with a proof.

        Args:
            number: a search that keeps the closest success is given what it has broken again.
        """
        broken, clean = self.ledger.broken(points), self.ledger.clean(points)
        proved = {point for point, holds in self.ledger.certified(points).items() if holds}
        again = number is not None and number < self.line.scouts
        out = {p for p, found in broken.items() if not (again and found.stage == number)}
        out, survived = set() if self.settings.minimum_norm else out, self._survived()
        return {
            p: clean[p][2] for p in points
            if clean[p][0] == clean[p][1] and p not in out and p not in survived
        }, proved  # fmt: skip

    def _survived(self) -> Mapping[int, float]:
        """Points that were robust at a larger eps."""
        return self.carried.get("survived", {})

    def try_replay(self, points: Sequence[int], *, last: bool) -> None:
        """Try what earlier runs have stored, on certified points too: it costs one pass each.

        If after the last points none has fitted its point, that is said.
        """
        if self.replay is None:
            return
        robust, proved = self._robust(points)
        self.watcher.stage(REPLAY, len(robust))
        self.replay.run(
            list(robust), proved, lambda done, left: self.watcher.advance(done, left, len(points))
        )
        if not last:
            return
        # All of them, where none broke a point; one that fits costs a pass.
        tried = len(self.ledger.spent(REPLAYED))
        if tried and not self.ledger.costs()[REPLAYED].forwards:
            self.watcher.note(none_fitted(self.settings.name, tried, self.settings.threat))

    def verify(self, points: Sequence[int], *, last: bool) -> None:
        """Verify completely what bounds and attacks have left, or all to check the proof."""
        if self.complete is None:
            return
        everything, status = self.settings.attack_certified, self.finished(points).status
        self.complete.run(status, self.watcher, self._told, everything=everything)
        self.ledger.write(VERIFIED, [], [], Cost(finished=last))
        self._tally.tell(now=last)

    def _told(self) -> None:
        """Tell the tally; stop where the time is over."""
        self._tally.tell()
        if self.settings.budget is not None:
            self.settings.budget.check_time()

    def attack(self, number: int, points: Sequence[int], last: bool) -> None:
        """Run one attack of the line-up on those of `points` that are still robust."""
        if self.ledger.costs().get(number, Cost()).finished:
            return
        stage = self._stage(number)
        robust, proved = self._robust(points, number)
        others = len(robust) + len(self._survived())
        if isinstance(stage.threat, FiniteThreat):  # all points: each variant has an accuracy
            robust, others = untried(self.ledger, number, stage.threat, points)
            others += len(robust)
        if not (self.settings.attack_certified or self.settings.minimum_norm):
            robust = {p: order for p, order in robust.items() if p not in proved}
        others -= len(robust)
        if number not in self.given:
            self.given[number] = self.ledger.given(number)
        self.given[number].update(robust)

        def report(done: int, left: int) -> None:
            self.watcher.advance(done, others + left, len(points))
            self._told()

        jobs = stage.jobs(self.prepared.diagnosis.classes)
        spent = self.ledger.spent(number, robust)
        self.watcher.stage(str(stage.spec), len(robust) * len(jobs) - len(spent))
        self.executor.attack(stage, PointsToAttack(robust, spent, proved), report,
                             entered=len(self.given[number]), last=last)  # fmt: skip
        self._tally.tell(now=last)

    def _stage(self, number: int) -> AttackStage:
        settings, within = self.settings, self.settings.threat
        if settings.minimum_norm:
            within = replace(within, eps=within.diameter(prod(settings.data.shape)))
        return AttackStage(
            number, self.line.specs[number], self.line.searches[number], settings.threat, within,
            nearest=number < self.line.scouts, keep=settings.save_adversarial is not False,
        )  # fmt: skip
