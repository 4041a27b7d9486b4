"""One evaluation in progress: the clean pass, then one attack after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from robustkit.certify.certifier import Certifier
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.core.types import Model
from robustkit.data.dataset import Dataset, shuffled
from robustkit.evaluation.budget import BudgetExhausted, Interim, StoppingRule, nothing_done, parts
from robustkit.evaluation.carry_over import settled
from robustkit.evaluation.distributed.executor import DistributedExecutor
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.stages.attack import (
    AttackStage,
    DeviceWorker,
    Executor,
    LocalExecutor,
    PointsToAttack,
)
from robustkit.evaluation.stages.audit import perform
from robustkit.evaluation.stages.clean_and_certify import Report, certify_points
from robustkit.evaluation.stages.replay import Examples, Replay
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import CLEAN, REPLAYED, Cost
from robustkit.record.points import Status
from robustkit.record.record import REPLAY
from robustkit.record.status import statuses
from robustkit.registry import attacks
from robustkit.search.engine import Engine
from robustkit.search.protocol import aims
from robustkit.search.suites import LineUp
from robustkit.verify.diagnostics.probe import Diagnosis


@dataclass(frozen=True)
class Run:
    """One evaluation in progress. `model` is the private copy that verdicts come from.

    The first `scouts` attacks use up their budget and keep the closest success. `minimum_norm`:
    all of them do, on every point, out to the edge of the box; `threat` is where verdicts are read.
    """

    name: str
    model: Model
    data: Dataset
    threat: Threat
    line: LineUp
    points: np.ndarray[Any, np.dtype[np.int64]]
    seed: int
    engine: Engine
    device: torch.device
    ledger: Ledger
    health: Diagnosis
    keep: bool
    watcher: Watcher
    certifier: Certifier | None = None
    attack_certified: bool = False
    examples: Examples | None = None
    minimum_norm: bool = False
    scouts: int = 0
    crew: Scheduler | None = None

    @property
    def carried(self) -> dict[str, dict[int, Any]]:
        """What a run at a larger eps had found; see `robustkit.evaluation.carry_over.settled`."""
        return settled(self.ledger)

    @property
    def limit(self) -> float:
        """The distance up to which a success counts."""
        return self.threat.limit(prod(self.data.shape))

    def statuses(self, points: Sequence[int]) -> dict[int, Status]:
        """Return the verdict on each of `points`, which are finished."""
        return statuses(self.ledger, points, self.limit)

    @property
    def specs(self) -> Sequence[Spec]:
        """Every attack, those of the audit last; a stage is a place in this list."""
        return self.line.specs

    @property
    def hands(self) -> Executor:
        """Who does the work: the workers, or this process."""
        if self.crew is not None:
            return DistributedExecutor(self.crew, self.data, self.ledger, self.threat)
        bench = DeviceWorker(self.name, self.model, self.engine, self.device, self.health.classes,
                      self.health.randomized, self.seed)  # fmt: skip
        return LocalExecutor(bench, self.data, self.ledger, self.threat)

    @property
    def ranked(self) -> int:
        """How many classes per point to remember: the predicted one, and those aimed at."""
        classes, searches = self.health.classes, [attacks.build(spec) for spec in self.specs]
        wanted = [aims(search, search.jobs(self.threat, classes)) for search in searches]
        return min(classes, 1 + max(wanted, default=0))

    def all(self, pace: StoppingRule | None = None) -> list[int]:
        """Do what an earlier run of the same command has not done yet.

        Returns:
            The points that are finished: all of them, unless `pace` ended the run before.

        Raises:
            RobustkitError: when the budget of `pace` ends before any point is finished.
        """
        if CLEAN not in self.ledger.costs():
            cost = Cost(forwards=self.health.forwards, backwards=self.health.backwards)
            self.ledger.write(CLEAN, [], [], cost)
        if pace is not None:
            return self._paced(pace)
        everything: list[int] = self.points.tolist()
        self._do(everything, last=True)
        self._audit()
        return everything

    def _paced(self, pace: StoppingRule) -> list[int]:
        """Go part by part through a random order; return the points of the finished parts."""
        order = shuffled(self.points, self.seed)
        done = int(self.ledger.remembered("done") or 0)
        try:
            while done < len(order):
                if done:
                    pace.reason = pace.enough(self.progress(order[:done]))
                    pace.reason = pace.reason or pace.spent(self.forwards())
                    if pace.reason:
                        break
                part = parts(order, done)[0]
                self._do(part, last=done + len(part) == len(order), pace=pace)
                done += len(part)
                self.ledger.remember("done", done)
                self.watcher.part(done, len(order))
            if done == len(order) and pace.audits:
                self._audit(pace)
        except BudgetExhausted as error:
            pace.reason = str(error)
        if not done:
            raise nothing_done(pace.budget)
        return sorted(order[:done])

    def _do(self, points: Sequence[int], *, last: bool, pace: StoppingRule | None = None) -> None:
        """Finish some points; `last` says that no others are to come."""
        self.clean(points)
        self.certify(points)
        self.replay(points, last=last)
        for stage in range(self.line.audited):
            self.attack(stage, points, last=last, pace=pace)

    def _audit(self, pace: StoppingRule | None = None) -> None:
        """Audit what the search has left standing, if the line-up asks for it.

        Raises:
            BudgetExhausted: when a budget ends before the audit does.
        """
        everything: list[int] = self.points.tolist()

        def left() -> list[int]:
            standing, proved = self._standing(everything)
            return [p for p in standing if self.attack_certified or p not in proved]

        def attack(stage: int, points: Sequence[int], last: bool) -> None:
            if pace is not None:
                pace.check(self.forwards())
            self.attack(stage, points, last=last, pace=pace)

        perform(self.line, self.ledger, left, everything, self.seed, attack)

    def forwards(self) -> int:
        """Return the passes that all stages have taken so far."""
        return sum(cost.forwards for cost in self.ledger.costs().values())

    def progress(self, done: Sequence[int]) -> Interim:
        """Gather what is known of the finished points `done`."""
        return Interim(done, self.statuses(done), tuple(f.name for f in self.health.flags))

    def attack_name(self, stage: int) -> str:
        """Return what the record calls a stage that takes points."""
        return REPLAY if stage == REPLAYED else str(self.specs[stage])

    def clean(self, points: Sequence[int]) -> None:
        """Classify those of `points` that the ledger does not know yet."""
        if self.carried:
            return
        known = self.ledger.clean()
        todo = [point for point in points if point not in known]
        seen = [known[point] for point in points if point in known]
        correct = sum(label == predicted for label, predicted, _ in seen)
        self.watcher.stage("clean", len(points))
        done = len(points) - len(todo)

        def told(classified: int, right: int) -> None:
            nonlocal done, correct
            done, correct = done + classified, correct + right
            self.watcher.advance(done, correct, len(points))

        self.hands.classify(todo, self.ranked, told)

    def certify(self, points: Sequence[int]) -> None:
        """Try the certificate on every one of `points` that is classified correctly."""
        certifier = self.certifier
        if certifier is None:
            return

        def work(todo: list[int], fallen: set[int], told: Report) -> None:
            self.hands.prove(certifier, todo, fallen, told)

        certify_points(certifier.name, points, self.ledger, self.watcher, work,
                     everything=self.attack_certified)  # fmt: skip

    def _standing(
        self, points: Sequence[int], stage: int | None = None
    ) -> tuple[dict[int, list[int]], set[int]]:
        """Return the classes by falling logit of those that stand, and the points with a proof.

        Args:
            stage: a search that keeps the closest success is given what it has taken again.
        """
        falls, clean = self.ledger.falls(), self.ledger.clean()
        proved = {point for point, holds in self.ledger.certified().items() if holds}
        scouting = stage is not None and stage < self.scouts
        fallen = {p for p, fall in falls.items() if not (scouting and fall.stage == stage)}
        left_out = (set() if self.minimum_norm else fallen) | set(self.carried.get("survived", {}))
        return {
            p: clean[p][2] for p in points if clean[p][0] == clean[p][1] and p not in left_out
        }, proved

    def replay(self, points: Sequence[int], *, last: bool) -> None:
        """Try what earlier runs have stored, on certified points too: it costs one pass each.

        If after the last points none has fitted its point, that is said.
        """
        if self.examples is None:
            return
        standing, proved = self._standing(points)
        self.watcher.stage(REPLAY, len(standing))
        Replay(
            examples=self.examples,
            model=self.model,
            data=self.data,
            threat=self.threat,
            ledger=self.ledger,
            randomized=self.health.randomized,
            device=self.device,
            batch=min(self.engine.slots, 500),  # SQLite takes at least 999 numbers in a query
            keep=self.keep,
            report=lambda done, left: self.watcher.advance(done, left, len(points)),
        ).run(list(standing), proved)
        tried = len(self.ledger.spent(REPLAYED))  # all, where none fell; one that fits costs a pass
        if last and tried and not self.ledger.costs()[REPLAYED].forwards:
            self.watcher.note(
                f"{self.name}: none of the {tried} inputs to replay lies within {self.threat} of "
                "its point. Are they of a run on the same data, and at no larger eps?"
            )

    def attack(
        self, stage: int, points: Sequence[int], *, last: bool, pace: StoppingRule | None = None
    ) -> None:
        """Run one attack of the line-up on those of `points` that still stand."""
        if self.ledger.costs().get(stage, Cost()).finished:
            return
        spec = self.specs[stage]
        search = attacks.build(spec)
        standing, proved = self._standing(points, stage)
        others = len(standing) + len(self.carried.get("survived", {}))
        if not (self.attack_certified or self.minimum_norm):
            standing = {p: order for p, order in standing.items() if p not in proved}
        others -= len(standing)
        falls = self.ledger.falls().items()
        taken = sum(fall.stage == stage and p not in standing for p, fall in falls)

        def report(done: int, left: int) -> None:
            self.watcher.advance(done, others + left, len(points))
            if pace is not None:
                pace.check_time()

        jobs = search.jobs(self.threat, self.health.classes)
        spent = {item for item in self.ledger.spent(stage) if item[0] in standing}
        pending = len(standing) * len(jobs) - len(spent)
        self.watcher.stage(str(spec), pending)
        within = self.threat
        if self.minimum_norm:
            within = Threat.whole(self.threat.norm, prod(self.data.shape), self.threat.lower,
                                  self.threat.upper)  # fmt: skip
        assault = AttackStage(stage, spec, self.threat, within, len(jobs), stage < self.scouts,
                          self.keep)  # fmt: skip
        part = PointsToAttack(standing, spent, proved)
        self.hands.attack(assault, part, report, entered=len(standing) + taken, last=last)
