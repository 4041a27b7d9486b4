"""The stage of a finite threat model: every variant of every point, misclassified ones too.

The run makes the variants itself, from the point's position and the variant alone, so that there is
no claim of a search to verify. In the ledger a variant that was classified rightly is a spent job;
one job past the last says that the point is through, written together with the others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from robustkit.core.device import out_of_memory
from robustkit.core.finite import FiniteThreat
from robustkit.core.types import Images, Labels
from robustkit.evaluation.stages.judge import broken_points
from robustkit.evaluation.stages.stage import (
    AttackStage,
    DeviceWorker,
    PointSource,
    PointsToAttack,
    Report,
    VerdictWriter,
)
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import BrokenPoint, Cost, RefusedCandidate
from robustkit.verify.candidates import FRESH, judge, measure

_MOST = 64  # points in a batch: what a run that is killed has to do again


def untried(
    ledger: Ledger, stage: int, threat: FiniteThreat, points: Sequence[int]
) -> tuple[dict[int, list[int]], int]:
    """Return the points that are not through, with their predicted class, and the robust others."""
    last = len(threat.variants)
    through = {point for point, job in ledger.spent(stage, points) if job == last}
    clean, broken = ledger.clean(points), ledger.broken(points)
    robust = sum(clean[p][0] == clean[p][1] and p not in broken for p in through)
    return {p: clean[p][2] for p in points if p not in through}, robust


def right_variants(ledger: Ledger, stage: int, count: int, points: Sequence[int]) -> list[str]:
    """Return per point a text of one sign for each of `count` variants: 1 right, 0 wrong."""
    spent = ledger.spent(stage, points)
    return ["".join("01"[(point, job) in spent] for job in range(count)) for point in points]


def run_exhaustive(
    worker: DeviceWorker,
    stage: AttackStage,
    points: PointsToAttack,
    data: PointSource,
    writer: VerdictWriter,
    report: Report,
    *,
    entered: int = 0,
    last: bool = False,
) -> None:
    """Try all variants of some points; each batch is written in one transaction.

    Args:
        report: called after every batch with (tasks finished, points still robust).
        entered, last: as for `robustkit.evaluation.stages.attack.run_attack`.

    Raises:
        RobustkitError: when the model answers with logits that are not finite.
    """
    threat, todo = stage.threat, list(points.ranked)
    assert isinstance(threat, FiniteThreat)  # nothing else is tried exhaustively
    variants, done, robust = threat.variants, 0, len(todo)
    while todo:
        batch, clock = todo[: min(worker.slots, _MOST)], time.monotonic()
        x, y = data.fetch(batch)
        ranked = torch.tensor([points.ranked[point][0] for point in batch])
        tried = _Batch(worker, stage, threat, batch, x, y, ranked == y.cpu())
        try:
            for number in range(len(variants)):
                tried.look(number)
                worker.pulse(done + (number + 1) * len(batch))
            refused = tried.refused()
        except RuntimeError as error:
            if not out_of_memory(error) or len(batch) == 1:
                raise
            worker.slots = len(batch) // 2
            continue
        cost = Cost(forwards=tried.passes, seconds=time.monotonic() - clock)
        through = [(point, len(variants)) for point in batch]
        writer.write(
            stage.number, [*tried.right, *through], tried.broken.values(), cost, None, refused
        )
        todo = todo[len(batch) :]
        done += len(batch) * len(variants)
        robust -= len(tried.broken) + int((ranked != y.cpu()).sum())
        report(done, robust)
    writer.write(stage.number, [], [], Cost(entered=entered, finished=last))


@dataclass
class _Batch:
    """Some points, and what their variants have come to.

    Attributes:
        x, y: on the CPU, as the data holds them.
        correct: whether each is classified rightly as it is: only such a point can be broken.
        right: (point, variant) pairs that are classified rightly.
        broken: by point its least severe variant that is not; of equal ones the first.
    """

    worker: DeviceWorker
    stage: AttackStage
    threat: FiniteThreat
    points: Sequence[int]
    x: Images
    y: Labels
    correct: torch.Tensor
    right: list[tuple[int, int]] = field(default_factory=list)
    broken: dict[int, BrokenPoint] = field(default_factory=dict)
    passes: int = 0
    _nearest: dict[int, tuple[float, torch.Tensor]] = field(default_factory=dict)

    def look(self, number: int) -> None:
        """Ask the model about one variant of every point."""
        variant, device = self.threat.variants[number], self.worker.device
        z = self.threat.images(self.x, self.points, variant).to(device)
        severity = torch.full((len(z),), float(variant.severity), dtype=torch.float64)
        verdict = judge(
            self.worker.model, z, self.y.to(device), severity, self.threat.criterion,
            attack=str(self.stage.spec), points=self.points,
            randomized=self.worker.diagnosis.randomized,
        )  # fmt: skip
        self.passes += verdict.passes
        wrong = verdict.broken.tolist()
        self.right += [(p, number) for p, bad in zip(self.points, wrong, strict=True) if not bad]
        correct = dict(zip(self.points, self.correct.tolist(), strict=True))
        kept = z if self.stage.keep else None
        for found in broken_points(verdict, self.stage.number, self.points, kept):
            known = self.broken.get(found.point)
            if correct[found.point] and (known is None or found.distance < known.distance):
                self.broken[found.point] = found
        for row, share in enumerate([] if verdict.seen is None else verdict.seen.tolist()):
            if not wrong[row] and share > self._nearest.get(row, (0.0, z))[0]:
                self._nearest[row] = share, z[row].clone()

    def refused(self) -> dict[int, RefusedCandidate]:
        """Measure, of a randomized model, what fooled it most often without breaking its point."""
        rows = [row for row in self._nearest
                if self.correct[row] and self.points[row] not in self.broken]  # fmt: skip
        if not rows:
            return {}
        z = torch.stack([self._nearest[row][1] for row in rows])
        self.passes += FRESH * len(rows)
        y = self.y[rows].to(z.device)
        shares = measure(self.worker.model, z, y, self.threat.criterion).tolist()
        return {
            self.points[row]: RefusedCandidate(self._nearest[row][0], errors)
            for row, errors in zip(rows, shares, strict=True)
        }
