"""One evaluation in progress: the clean pass, then one attack after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np
import torch

from robustkit.bounds.certify import Certifier
from robustkit.data import Dataset
from robustkit.diagnose import Health
from robustkit.engine import Engine, out_of_memory
from robustkit.errors import RobustkitError, some
from robustkit.ledger import CARRIED, CLEAN, Cost, Fall, Ledger
from robustkit.nearest import NearestEngine
from robustkit.referee import StageReferee, refuse_refuted
from robustkit.registry import attacks
from robustkit.spec import Spec
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
    """One evaluation in progress. `model` is the private copy that every pass goes through.

    The first `scouts` attacks use up their budget and keep the closest success. `minimum_norm`:
    all of them do, on every point, out to the edge of the box; `threat` is where verdicts are read.
    """

    name: str
    model: Model
    data: Dataset
    threat: Threat
    specs: Sequence[Spec]
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
    minimum_norm: bool = False
    scouts: int = 0

    @property
    def carried(self) -> dict[str, dict[int, Any]]:
        """What a run at a larger eps had found, each by point; empty where there was none.

        `survived` and `proved` say at which eps, `attacks` by which attack a point was broken.
        """
        note = self.ledger.remembered("carried") or {}
        return {key: {int(p): what for p, what in by.items()} for key, by in note.items()}

    @property
    def _survived(self) -> set[int]:
        return set(self.carried.get("survived", {}))

    @property
    def draws(self) -> int:
        return DRAWS if self.health.randomized else 1

    @property
    def ranked(self) -> int:
        """How many classes per point to remember: the predicted one, and those aimed at."""
        searches = [attacks.build(spec) for spec in self.specs]
        jobs = [job for s in searches for job in s.jobs(self.threat, self.health.classes)]
        return 1 + max((job.rank for job in jobs), default=0)

    def all(self) -> None:
        """Do what an earlier run of the same command has not done yet."""
        if CLEAN not in self.ledger.costs():
            cost = Cost(forwards=self.health.forwards, backwards=self.health.backwards)
            self.ledger.write(CLEAN, [], [], cost)
        self.clean()
        self.certify()
        for stage in range(len(self.specs)):
            self.attack(stage)

    def clean(self) -> None:
        """Classify every point that the ledger does not know yet."""
        if self.carried:
            return
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
        tried, clean = self.ledger.certified(), self.ledger.clean()
        fallen = {p for p, fall in self.ledger.falls().items() if fall.stage == CARRIED}
        spared = set() if self.attack_certified else fallen
        right = [p for p, (label, guess, _) in clean.items() if label == guess and p not in spared]
        todo, proved = [p for p in right if p not in tried], sum(tried.values())
        self.watcher.stage(f"certify {self.certifier.name}", len(right))
        size = self.certifier.batch
        for start in range(0, len(todo), size):
            batch, clock = todo[start : start + size], time.monotonic()
            x, y = (part.to(self.device) for part in self.data.fetch(batch))
            holds = self.certifier.prove(x, y).tolist()
            refuted = [p for p, ok in zip(batch, holds, strict=True) if ok and p in fallen]
            refuse_refuted(refuted, "the attack at a larger eps", self.threat)
            self.ledger.write_certified(zip(batch, holds, strict=True), time.monotonic() - clock)
            proved += sum(holds)
            self.watcher.advance(len(right) - len(todo) + start + len(batch), proved, len(right))

    def attack(self, stage: int) -> None:
        """Run one attack of the line-up on the points that still stand."""
        if self.ledger.costs().get(stage, Cost()).finished:
            return
        spec = self.specs[stage]
        search = attacks.build(spec)
        falls, scouting = self.ledger.falls(), stage < self.scouts
        proved = {point for point, holds in self.ledger.certified().items() if holds}
        standing = self._standing(stage, falls, proved)
        jobs = search.jobs(self.threat, self.health.classes)
        spent = {item for item in self.ledger.spent(stage) if item[0] in standing}
        pending = len(standing) * len(jobs) - len(spent)
        self.watcher.stage(str(spec), pending)
        engine = self._seeker() if scouting else self.engine
        taken = sum(f.stage == stage and p not in standing for p, f in falls.items())
        base = len(self._survived)
        referee = StageReferee(
            stage=stage,
            name=str(spec),
            jobs=jobs,
            data=self.data,
            reference=self.model,
            threat=engine.threat,
            claim=self.threat,
            ledger=self.ledger,
            ranked=standing,
            entered=len(standing) + taken,
            spent=spent,
            proved=proved,
            seed=self.seed,
            draws=self.draws,
            device=self.device,
            keep=self.keep,
            report=lambda done, left: self.watcher.advance(done, left + base, len(self.points)),
        )
        engine.run(search, referee.queue(), pending, referee)
        referee.close()

    def _standing(
        self, stage: int, falls: Mapping[int, Fall], proved: set[int]
    ) -> dict[int, list[int]]:
        """Return the points that a stage is given, with their classes by falling clean logit."""
        # A scout that was interrupted goes on with what it has taken: closer ones may follow.
        fallen = {p for p, fall in falls.items() if stage >= self.scouts or fall.stage != stage}
        known = set() if self.minimum_norm else fallen
        spared = set() if self.attack_certified or self.minimum_norm else proved
        left_out = known | spared | self._survived
        return {
            point: order
            for point, (label, predicted, order) in self.ledger.clean().items()
            if label == predicted and point not in left_out
        }

    def _seeker(self) -> Engine:
        """Return the engine that seeks the closest success."""
        threat, (low, high) = self.threat, (self.threat.lower, self.threat.upper)
        if self.minimum_norm:
            threat = Threat.whole(threat.norm, prod(self.data.shape), low, high)
        settings = {field.name: getattr(self.engine, field.name) for field in fields(self.engine)}
        return NearestEngine(**{**settings, "threat": threat})
