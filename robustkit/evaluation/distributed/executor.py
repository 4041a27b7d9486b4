"""A stage of a run over many workers: cut into parts, and written into the one ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from robustkit.certify.certifier import Certifier
from robustkit.core.threat import Threat
from robustkit.evaluation.distributed.messages import (
    Attack,
    AttackResults,
    Classified,
    Classify,
    Ended,
    Note,
    Order,
    PointData,
    Prove,
    Proved,
    Work,
)
from robustkit.evaluation.distributed.scheduler import Scheduler
from robustkit.evaluation.stages.stage import (
    AttackStage,
    PointSource,
    PointsToAttack,
    Report,
    VerdictWriter,
)
from robustkit.record.ledger_schema import Cost
from robustkit.search.external import ExternalAttack


@dataclass
class DistributedExecutor:
    """Does the work of one run; see `robustkit.evaluation.executor`.

    The seconds that are written are those of the driver's clock.
    """

    scheduler: Scheduler
    data: PointSource
    writer: VerdictWriter
    threat: Threat
    classes: int
    _clock: float = field(default_factory=time.monotonic)

    def classify(self, points: Sequence[int], ranked: int, report: Report) -> None:
        """Classify clean points."""
        open_points = set(points)

        def on_note(_: Classify, note: Note) -> None:
            if isinstance(note, Classified):
                self.writer.write_clean(note.rows, note.forwards, self._lap(), note.errors)
                open_points.difference_update(row[0] for row in note.rows)
                report(len(note.rows), sum(y == guess for _, y, guess, _ in note.rows))

        def remaining(work: Classify) -> Classify | None:
            left = [point for point in work.points if point in open_points]
            return work._replace(points=left) if left else None

        criterion = self.threat.criterion
        parts = (Classify(piece, ranked, criterion) for piece in self._pieces(points))
        self.scheduler.run(parts, self._load, on_note, remaining)

    def prove(
        self, certifier: Certifier, points: Sequence[int], broken: set[int], report: Report
    ) -> None:
        """Try a certificate."""
        open_points = set(points)

        def on_note(_: Prove, note: Note) -> None:
            if isinstance(note, Proved):
                self.writer.write_certified(note.rows, self._lap())
                open_points.difference_update(point for point, _ in note.rows)
                report(len(note.rows), sum(holds for _, holds in note.rows))

        def remaining(work: Prove) -> Prove | None:
            left = [point for point in work.points if point in open_points]
            return work._replace(points=left) if left else None

        parts = (
            Prove(piece, broken & set(piece), certifier.method, self.threat)
            for piece in self._pieces(points, certifier.batch)
        )
        self.scheduler.run(parts, self._load, on_note, remaining)

    def attack(
        self,
        stage: AttackStage,
        points: PointsToAttack,
        report: Report,
        *,
        entered: int,
        last: bool,
    ) -> None:
        """Run an attack: the tasks that are open, whoever works on them."""
        jobs = range(len(stage.jobs(self.classes)))
        spent, broken, done = set(points.spent), set[int](), 0

        def remaining(work: Attack) -> Attack | None:
            left = [
                point
                for point in work.points
                if (stage.nearest or point not in broken)
                and any((point, job) not in spent for job in jobs)
            ]
            return Attack(stage, points.some(left, spent)) if left else None

        def on_note(_: Attack, note: Note) -> None:
            nonlocal done
            if isinstance(note, AttackResults):
                cost = note.cost._replace(seconds=self._lap())
                self.writer.write(
                    stage.number, note.spent, note.broken, cost, note.closest, note.refused
                )
                spent.update(note.spent)
                broken.update(found.point for found in note.broken)
            elif isinstance(note, Ended):
                done += note.tasks
                report(done, len(points.ranked) - len(broken))

        whole = remaining(Attack(stage, points))
        unit = stage.attack.batch_size if isinstance(stage.attack, ExternalAttack) else 1
        parts = (
            Attack(stage, points.some(piece, spent))
            for piece in self._pieces(whole.points if whole else [], unit)
        )
        self.scheduler.run(parts, self._load, on_note, remaining)
        end = Cost(entered=entered, seconds=self._lap(), finished=last)
        self.writer.write(stage.number, [], [], end)

    def _pieces(self, points: Sequence[int], unit: int = 1) -> Iterator[list[int]]:
        """Cut points into pieces of whole multiples of `unit`, in order."""
        if points:
            size = self.scheduler.part(len(points), unit)
            self._lap()  # the time until the workers were there is not the stage's
            for start in range(0, len(points), size):
                yield list(points[start : start + size])

    def _load(self, work: Work) -> Order:
        x, y = self.data.fetch(work.points)
        return Order(work, PointData(work.points, x.numpy(), y.numpy()))

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        now = time.monotonic()
        lap, self._clock = now - self._clock, now
        return lap
