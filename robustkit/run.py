"""One evaluation in progress: the clean pass, then one attack after the other."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from robustkit.audit import Audit, Sample, alarming, draw
from robustkit.batches import run_batches
from robustkit.bounds.certify import Certifier
from robustkit.data import Dataset
from robustkit.diagnose import Health
from robustkit.engine import Engine, out_of_memory
from robustkit.errors import RobustkitError, some
from robustkit.foreign import Foreign
from robustkit.ledger import CLEAN, Cost, Ledger
from robustkit.referee import StageReferee
from robustkit.registry import attacks
from robustkit.search import aims
from robustkit.spec import Spec
from robustkit.suites import LineUp
from robustkit.threat import Threat
from robustkit.types import Model
from robustkit.verify import DRAWS, predict


class Watcher:
    """Hears what a run does; does nothing itself. Subclass it to show progress."""

    def model(self, name: str, points: int) -> None:
        """An evaluation begins."""

    def stage(self, name: str, tasks: int) -> None:
        """A stage begins: the clean pass or an attack, with an upper bound of its tasks."""

    def advance(self, done: int, robust: int, points: int) -> None:
        """`done` tasks of the stage are finished, `robust` of `points` still stand."""

    def note(self, message: str) -> None:
        """Something the person should know."""


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

    def all(self) -> None:
        """Do what an earlier run of the same command has not done yet."""
        if CLEAN not in self.ledger.costs():
            cost = Cost(forwards=self.health.forwards, backwards=self.health.backwards)
            self.ledger.write(CLEAN, [], [], cost)
        self.clean()
        self.certify()
        for stage in range(self.line.audited):
            self.attack(stage)
        if self.line.audit is not None:
            self._audit(self.line.audit)

    def clean(self) -> None:
        """Classify every point that the ledger does not know yet."""
        known = self.ledger.clean()
        todo = [point for point in self.points.tolist() if point not in known]
        correct = sum(label == predicted for label, predicted, _ in known.values())
        self.watcher.stage("clean", len(self.points))
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
            self.watcher.advance(len(self.points) - len(todo), correct, len(self.points))

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

    def certify(self) -> None:
        """Try the certificate on every point that is classified correctly."""
        if self.certifier is None:
            return
        tried = self.ledger.certified()
        clean = self.ledger.clean()
        right = [p for p, (label, predicted, _) in clean.items() if label == predicted]
        todo, proved = [p for p in right if p not in tried], sum(tried.values())
        self.watcher.stage(f"certify {self.certifier.name}", len(right))
        size = self.certifier.batch
        for start in range(0, len(todo), size):
            batch, clock = todo[start : start + size], time.monotonic()
            x, y = (part.to(self.device) for part in self.data.fetch(batch))
            holds = self.certifier.prove(x, y).tolist()
            self.ledger.write_certified(zip(batch, holds, strict=True), time.monotonic() - clock)
            proved += sum(holds)
            self.watcher.advance(len(right) - len(todo) + start + len(batch), proved, len(right))

    def _audit(self, audit: Audit) -> None:
        """Attack a sample of the survivors, and all of them if too much of it falls."""
        stages = range(self.line.audited, len(self.specs))
        sample = self.sample()
        if sample is None:
            sample = draw(audit, self.ledger.closest(), list(self._standing()), self.seed)
            self.ledger.remember("audit", asdict(sample))
        for stage in stages:
            self.attack(stage, sample.points, finished=False)
        everything = alarming(audit, sample, self.audit_broken(sample), len(self.points))
        for stage in stages:
            self.attack(stage, None if everything else sample.points)
        self.ledger.remember("escalated", everything)

    def sample(self) -> Sample | None:
        """Return the audit's sample, once it is drawn."""
        kept = self.ledger.remembered("audit")
        return kept and Sample(tuple(kept["near"]), tuple(kept["random"]), kept["rest"])

    def audit_broken(self, sample: Sample) -> set[int]:
        """Return which points of the sample fell to the audit."""
        falls = self.ledger.falls()
        return {p for p in sample.points if p in falls and falls[p].stage >= self.line.audited}

    def _robust(self) -> int:
        """Count the points that are classified correctly and have not fallen."""
        clean = self.ledger.clean().values()
        return sum(label == predicted for label, predicted, _ in clean) - len(self.ledger.falls())

    def _standing(self) -> dict[int, list[int]]:
        """Return the points that attacks are to try, with their classes by falling logit."""
        falls, certified = self.ledger.falls(), self.ledger.certified()
        return {
            point: order
            for point, (label, predicted, order) in self.ledger.clean().items()
            if label == predicted
            and point not in falls
            and (self.attack_certified or not certified.get(point))
        }

    def attack(
        self, stage: int, only: Collection[int] | None = None, *, finished: bool = True
    ) -> None:
        """Run one attack of the line-up on the points that still stand.

        Args:
            only: leave the others alone.
            finished: this is all that the stage will be given.
        """
        if self.ledger.costs().get(stage, Cost()).finished:
            return
        spec = self.specs[stage]
        search = attacks.build(spec)
        falls, standing = self.ledger.falls(), self._standing()
        if only is not None:
            standing = {point: order for point, order in standing.items() if point in only}
        jobs = search.jobs(self.threat, self.health.classes)
        others = self._robust() - len(standing)
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
            entered=len(standing) + sum(fall.stage == stage for fall in falls.values()),
            spent=spent,
            proved={point for point, holds in self.ledger.certified().items() if holds},
            seed=self.seed,
            draws=self.draws,
            device=self.device,
            keep=self.keep,
            report=lambda done, left: self.watcher.advance(done, others + left, len(self.points)),
            claims=not isinstance(search, Foreign),
        )
        if isinstance(search, Foreign):
            run_batches(search, self.model, self.threat, self.health.classes, referee)
        else:
            self.engine.run(search, referee.queue(), pending, referee)
        referee.close(finished=finished)
