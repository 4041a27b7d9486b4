"""One evaluation in progress: the clean pass, then one attack after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from robustkit.audit import Sample, alarming, draw
from robustkit.batches import run_batches
from robustkit.bounds.certify import Certifier
from robustkit.data import Dataset
from robustkit.diagnose import Health
from robustkit.engine import Engine, out_of_memory
from robustkit.errors import RobustkitError, some
from robustkit.foreign import Foreign
from robustkit.ledger import CLEAN, REPLAYED, Cost, Ledger
from robustkit.pace import OverTime, Pace, Progress, nothing_done, parts
from robustkit.points import shuffled
from robustkit.record import REPLAY
from robustkit.referee import StageReferee
from robustkit.registry import attacks
from robustkit.replay import Examples, Replay
from robustkit.search import aims
from robustkit.spec import Spec
from robustkit.statuses import statuses
from robustkit.suites import LineUp
from robustkit.threat import Threat
from robustkit.types import Model
from robustkit.verify import DRAWS, predict
from robustkit.watcher import Watcher

__all__ = ["Run", "Watcher"]


@dataclass(frozen=True)
class Run:
    """One evaluation in progress. `model` is the private copy that every pass goes through."""

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
    health: Health
    keep: bool
    watcher: Watcher
    certifier: Certifier | None = None
    attack_certified: bool = False
    examples: Examples | None = None

    @property
    def specs(self) -> Sequence[Spec]:
        """Every attack, those of the audit last; a stage is a place in this list."""
        return self.line.specs

    @property
    def draws(self) -> int:
        return DRAWS if self.health.randomized else 1

    @property
    def ranked(self) -> int:
        """How many classes per point to remember: the predicted one, and those aimed at."""
        classes, searches = self.health.classes, [attacks.build(spec) for spec in self.specs]
        wanted = [aims(search, search.jobs(self.threat, classes)) for search in searches]
        return min(classes, 1 + max(wanted, default=0))

    def all(self, pace: Pace | None = None) -> list[int]:
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

    def _paced(self, pace: Pace) -> list[int]:
        """Go part by part through a random order; return the points of the finished parts."""
        order = shuffled(self.points, self.seed)
        done = int(self.ledger.remembered("done") or 0)
        try:
            while done < len(order):
                if done:
                    pace.reason = pace.enough(self.progress(order[:done]))
                    pace.reason = pace.reason or pace.spent(self._forwards())
                    if pace.reason:
                        break
                part = parts(order, done)[0]
                self._do(part, last=done + len(part) == len(order), pace=pace)
                done += len(part)
                self.ledger.remember("done", done)
                self.watcher.part(done, len(order))
        except OverTime:
            pace.reason = "the time is up"
        if not done:
            raise nothing_done(pace.budget)
        if done == len(order):
            self._audit()
        return sorted(order[:done])

    def _do(self, points: Sequence[int], *, last: bool, pace: Pace | None = None) -> None:
        """Finish some points; `last` says that no others are to come."""
        self.clean(points)
        self.certify(points)
        self.replay(points)
        for stage in range(self.line.audited):
            self.attack(stage, points, last=last, pace=pace)

    def _audit(self) -> None:
        """Attack a sample of the survivors, and all of them if too much of it falls."""
        audit, stages = self.line.audit, range(self.line.audited, len(self.specs))
        if audit is None:
            return
        sample, everything = self.sample(), self.points.tolist()
        if sample is None:
            standing, proved = self._standing(everything)
            left = [p for p in standing if self.attack_certified or p not in proved]
            sample = draw(audit, self.ledger.closest(), left, self.seed)
            self.ledger.remember("audit", asdict(sample))
        for stage in stages:
            self.attack(stage, sorted(sample.points), last=False)
        escalate = alarming(audit, sample, self.audit_broken(sample), len(everything))
        for stage in stages:
            self.attack(stage, everything if escalate else sorted(sample.points), last=True)
        self.ledger.remember("escalated", escalate)

    def sample(self) -> Sample | None:
        """Return the audit's sample, once it is drawn."""
        kept = self.ledger.remembered("audit")
        return kept and Sample(tuple(kept["near"]), tuple(kept["random"]), kept["rest"])

    def audit_broken(self, sample: Sample) -> set[int]:
        """Return which points of the sample fell to the audit."""
        falls = self.ledger.falls()
        return {p for p in sample.points if p in falls and falls[p].stage >= self.line.audited}

    def _forwards(self) -> int:
        return sum(cost.forwards for cost in self.ledger.costs().values())

    def progress(self, done: Sequence[int]) -> Progress:
        """Gather what is known of the finished points `done`."""
        return Progress(done, statuses(self.ledger, done), tuple(f.name for f in self.health.flags))

    def attack_name(self, stage: int) -> str:
        """Return what the record calls a stage that takes points."""
        return REPLAY if stage == REPLAYED else str(self.specs[stage])

    def clean(self, points: Sequence[int]) -> None:
        """Classify those of `points` that the ledger does not know yet."""
        known = self.ledger.clean()
        todo = [point for point in points if point not in known]
        seen = [known[point] for point in points if point in known]
        correct = sum(label == predicted for label, predicted, _ in seen)
        self.watcher.stage("clean", len(points))
        while todo:
            batch, clock = todo[: self.engine.slots], time.monotonic()
            try:
                rows = self._classify(batch)
            except RuntimeError as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
                self.engine.slots = len(batch) // 2
                continue
            self.ledger.write_clean(rows, len(batch) * self.draws, time.monotonic() - clock)
            todo = todo[len(batch) :]
            correct += sum(label == predicted for _, label, predicted, _ in rows)
            self.watcher.advance(len(points) - len(todo), correct, len(points))

    def _classify(self, batch: list[int]) -> list[tuple[int, int, int, list[int]]]:
        x, y = self.data.fetch(batch)
        predicted, logits = predict(self.model, x.to(self.device), self.draws)
        bad = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise RobustkitError(
                f"{self.name} returns NaN or infinite logits on the clean points "
                f"{some([batch[row] for row in bad])}. Mend the model, or leave them out."
            )
        # Ties and votes can put another class first: the predicted one must not become a target.
        first = logits.scatter(1, predicted[:, None], torch.inf)
        ranked = first.topk(self.ranked, dim=1).indices.tolist()
        return list(zip(batch, y.tolist(), predicted.tolist(), ranked, strict=True))

    def certify(self, points: Sequence[int]) -> None:
        """Try the certificate on every one of `points` that is classified correctly."""
        if self.certifier is None:
            return
        tried, clean = self.ledger.certified(), self.ledger.clean()
        right = [p for p in points if clean[p][0] == clean[p][1]]
        todo, proved = [p for p in right if p not in tried], sum(tried.get(p, False) for p in right)
        self.watcher.stage(f"certify {self.certifier.name}", len(right))
        size = self.certifier.batch
        for start in range(0, len(todo), size):
            batch, clock = todo[start : start + size], time.monotonic()
            x, y = (part.to(self.device) for part in self.data.fetch(batch))
            holds = self.certifier.prove(x, y).tolist()
            self.ledger.write_certified(zip(batch, holds, strict=True), time.monotonic() - clock)
            proved += sum(holds)
            self.watcher.advance(len(right) - len(todo) + start + len(batch), proved, len(right))

    def _standing(self, points: Sequence[int]) -> tuple[dict[int, list[int]], set[int]]:
        """Return the classes by falling logit of those that stand, and the points with a proof."""
        falls, clean = self.ledger.falls(), self.ledger.clean()
        proved = {point for point, holds in self.ledger.certified().items() if holds}
        return {
            p: clean[p][2] for p in points if clean[p][0] == clean[p][1] and p not in falls
        }, proved

    def replay(self, points: Sequence[int]) -> None:
        """Try what earlier runs have stored, on certified points too: it costs one pass each."""
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
            draws=self.draws,
            device=self.device,
            batch=min(self.engine.slots, 500),  # SQLite takes at least 999 numbers in a query
            keep=self.keep,
            report=lambda done, left: self.watcher.advance(done, left, len(points)),
        ).run(list(standing), proved)

    def attack(
        self, stage: int, points: Sequence[int], *, last: bool, pace: Pace | None = None
    ) -> None:
        """Run one attack of the line-up on those of `points` that still stand."""
        if self.ledger.costs().get(stage, Cost()).finished:
            return
        spec = self.specs[stage]
        search = attacks.build(spec)
        standing, proved = self._standing(points)
        others = len(standing)
        if not self.attack_certified:
            standing = {p: order for p, order in standing.items() if p not in proved}
        others -= len(standing)
        taken = sum(fall.stage == stage for fall in self.ledger.falls().values())

        def report(done: int, left: int) -> None:
            self.watcher.advance(done, others + left, len(points))
            if pace is not None:
                pace.check_time()

        jobs = search.jobs(self.threat, self.health.classes)
        spent = {item for item in self.ledger.spent(stage) if item[0] in standing}
        pending = len(standing) * len(jobs) - len(spent)
        self.watcher.stage(str(spec), pending)
        referee = StageReferee(
            stage=stage,
            name=str(spec),
            jobs=jobs,
            data=self.data,
            reference=self.model,
            threat=self.threat,
            ledger=self.ledger,
            ranked=standing,
            entered=len(standing) + taken,
            spent=spent,
            proved=proved,
            seed=self.seed,
            draws=self.draws,
            device=self.device,
            keep=self.keep,
            report=report,
            claims=not isinstance(search, Foreign),
        )
        if isinstance(search, Foreign):
            run_batches(search, self.model, self.threat, self.health.classes, referee)
        else:
            self.engine.run(search, referee.queue(), pending, referee)
        referee.close(finished=last)
