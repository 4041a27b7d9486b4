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
from robustkit.evaluation.stages.attack import AttackStage, PointsToAttack
from robustkit.evaluation.stages.clean_and_certify import Report
from robustkit.evaluation.stages.judge import PointSource, VerdictWriter
from robustkit.record.ledger_schema import Cost
from robustkit.registry import attacks
from robustkit.search.external import ExternalAttack


@dataclass
class DistributedExecutor:
    """Does the work of one run; see `robustkit.evaluation.stages.attack.Executor`.

    The seconds that are written are those of the driver's clock.
    """

    crew: Scheduler
    data: PointSource
    pen: VerdictWriter
    threat: Threat
    _clock: float = field(default_factory=time.monotonic)

    def classify(self, points: Sequence[int], ranked: int, told: Report) -> None:
        """Classify clean points."""
        open_points = set(points)

        def heard(_: Classify, note: Note) -> None:
            if isinstance(note, Classified):
                self.pen.write_clean(note.rows, note.forwards, self._lap(), note.errors)
                open_points.difference_update(row[0] for row in note.rows)
                told(len(note.rows), sum(y == guess for _, y, guess, _ in note.rows))

        def rest(work: Classify) -> Classify | None:
            left = [point for point in work.points if point in open_points]
            return work._replace(points=left) if left else None

        parts = (Classify(piece, ranked) for piece in self._pieces(points))
        self.crew.run(parts, self._load, heard, rest)

    def prove(
        self, certifier: Certifier, todo: Sequence[int], fallen: set[int], told: Report
    ) -> None:
        """Try a certificate."""
        open_points = set(todo)

        def heard(_: Prove, note: Note) -> None:
            if isinstance(note, Proved):
                self.pen.write_certified(note.rows, self._lap())
                open_points.difference_update(point for point, _ in note.rows)
                told(len(note.rows), sum(holds for _, holds in note.rows))

        def rest(work: Prove) -> Prove | None:
            left = [point for point in work.points if point in open_points]
            return work._replace(points=left) if left else None

        parts = (
            Prove(piece, fallen & set(piece), certifier.method, self.threat)
            for piece in self._pieces(todo, certifier.batch)
        )
        self.crew.run(parts, self._load, heard, rest)

    def attack(
        self,
        assault: AttackStage,
        part: PointsToAttack,
        report: Report,
        *,
        entered: int,
        last: bool,
    ) -> None:
        """Run an attack: the tasks that are open, whoever works on them."""
        search = attacks.build(assault.spec)
        spent, fallen, done = set(part.spent), set[int](), 0

        def rest(work: Attack) -> Attack | None:
            left = [
                point
                for point in work.points
                if (assault.nearest or point not in fallen)
                and any((point, job) not in spent for job in range(assault.jobs))
            ]
            return Attack(assault, _some(part, left, spent)) if left else None

        def heard(_: Attack, note: Note) -> None:
            nonlocal done
            if isinstance(note, AttackResults):
                cost = note.cost._replace(seconds=self._lap())
                self.pen.write(
                    assault.stage, note.spent, note.falls, cost, note.closest, note.refused
                )
                spent.update(note.spent)
                fallen.update(fall.point for fall in note.falls)
            elif isinstance(note, Ended):
                done += note.tasks
                report(done, len(part.ranked) - len(fallen))

        whole = rest(Attack(assault, part))
        unit = search.batch_size if isinstance(search, ExternalAttack) else 1
        parts = (
            Attack(assault, _some(part, piece, spent))
            for piece in self._pieces(whole.points if whole else [], unit)
        )
        self.crew.run(parts, self._load, heard, rest)
        books = Cost(entered=entered, seconds=self._lap(), finished=last)
        self.pen.write(assault.stage, [], [], books)

    def _pieces(self, points: Sequence[int], unit: int = 1) -> Iterator[list[int]]:
        """Cut points into pieces of whole multiples of `unit`, in order."""
        if points:
            size = self.crew.part(len(points), unit)
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


def _some(
    part: PointsToAttack, points: Sequence[int], spent: set[tuple[int, int]]
) -> PointsToAttack:
    """Return what of a part concerns some points."""
    chosen = set(points)
    return PointsToAttack(
        {point: part.ranked[point] for point in points},
        {item for item in spent if item[0] in chosen},
        part.proved & chosen,
    )
