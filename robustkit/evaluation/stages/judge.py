"""Between engine and ledger: feeds tasks, judges candidates, writes verdicts as they come."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels
from robustkit.errors import RobustkitError, some
from robustkit.evaluation.stages.stage import (
    AttackStage,
    DeviceWorker,
    PointSource,
    PointsToAttack,
    Report,
    VerdictWriter,
)
from robustkit.record.ledger_schema import BrokenPoint, Cost, RefusedCandidate
from robustkit.search.external import ExternalAttack
from robustkit.search.protocol import Tasks
from robustkit.search.tasks import Outcome, Work, fresh_tasks
from robustkit.verify.candidates import FRESH, CandidateVerdicts, holds, measure, verify

_FINDS = 8  # kept of a point until it is known which of them hold


class _Find(NamedTuple):
    """A confirmed candidate of a search for the nearest, its input and its label."""

    broken: BrokenPoint
    z: Tensor
    y: Tensor


class _Refused(NamedTuple):
    """The share of passes that erred on a refused candidate; its input, until it is measured."""

    seen: float
    z: Tensor | None = None
    y: Tensor | None = None


_NONE = _Refused(0.0)


@dataclass
class StageJudge:
    """Judges the candidates of one attack, over the points that are robust so far.

    Attributes:
        report: called after every harvest with (tasks finished, points still robust).
    """

    stage: AttackStage
    points: PointsToAttack
    worker: DeviceWorker
    data: PointSource
    writer: VerdictWriter
    report: Report
    broken: dict[int, BrokenPoint] = field(default_factory=dict)
    _new: dict[int, BrokenPoint] = field(default_factory=dict)
    _finds: dict[int, list[_Find]] = field(default_factory=dict)
    _refused: dict[int, RefusedCandidate] = field(default_factory=dict)
    _best_refused: dict[int, _Refused] = field(default_factory=dict)
    _checks: int = 0
    _flips: int = 0
    _moved: int = 0
    _outside: int = 0
    _done: int = 0
    _clock: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        # The canonical spec names the random streams, and the errors.
        self.name, self.seed = str(self.stage.spec), self.worker.seed
        self.jobs = self.stage.jobs(self.worker.diagnosis.classes)
        self._claims = not isinstance(self.stage.attack, ExternalAttack)
        self._criterion = self.stage.threat.criterion

    def queue(self) -> Iterator[Work]:
        """Every open task, job by job: with few slots, later targets see only what is left."""
        for job in range(len(self.jobs)):
            for point in self.points.ranked:
                if (point, job) not in self.points.spent:
                    yield Work(point, job)

    def tasks(self, work: Sequence[Work]) -> Tasks:
        """Read the points and name their targets."""
        points = np.array([item.point for item in work])
        x, y = self.data.fetch(points)
        ranked = torch.tensor([self.points.ranked[item.point] for item in work])
        jobs = [self.jobs[item.job] for item in work]
        tasks = fresh_tasks(x, y, ranked, torch.from_numpy(points), jobs, self.name, self.seed)
        return Tasks(*(tensor.to(self.worker.device) for tensor in tasks))

    def confirm(self, work: Sequence[Work], z: Images, x: Images, y: Labels) -> list[bool]:
        """Verify candidates; the closest that is confirmed waits for the next `settle`."""
        points = [item.point for item in work]
        verdict = verify(
            self.worker.model, z, x, y, self.stage.within, attack=self.name, points=points,
            randomized=self.worker.diagnosis.randomized,
        )  # fmt: skip
        self._checks += verdict.passes
        confirmed: list[bool] = verdict.broken.tolist()
        self._flips += confirmed.count(False) * self._claims
        inside = self.stage.threat.contains(z, x).tolist()
        columns = zip(points, confirmed, inside, strict=True)
        refuted = [p for p, ok, near in columns if ok and near and p in self.points.proved]
        refuse_refuted_certificates(self.name, refuted, self.stage.threat)
        rows = [row for row, ok in enumerate(confirmed) if ok]
        stored = z if self.stage.keep else None
        finds = broken_points(verdict, self.stage.number, points, stored)
        for row, found in zip(rows, finds, strict=True):
            if self.stage.nearest and verdict.errors is None:
                self._remember(_Find(found, z[row].clone(), y[row]))
            else:
                self._keep(found)
        self._remember_refused(verdict, points, z, y)
        return confirmed

    def _keep(self, found: BrokenPoint) -> None:
        known = self.broken.get(found.point)
        if known is None or found.distance < known.distance:
            self.broken[found.point] = self._new[found.point] = found

    def _remember(self, find: _Find) -> None:
        """Keep the closest finds of a point, and the farthest: it is the surest to hold."""
        finds = self._finds.setdefault(find.broken.point, [])
        finds.append(find)
        finds.sort(key=lambda known: known.broken.distance)
        if len(finds) > _FINDS:
            del finds[-2]

    def _keep_what_holds(self, points: Iterable[int]) -> None:
        """Of the finds of some points, keep the closest that fools the model in any batch.

        One that touches the decision boundary may owe its verdict to how the batch was rounded.
        """
        left = {point: self._finds.pop(point) for point in points if point in self._finds}
        full = min(self.worker.slots, len(self.points.ranked))
        while left:
            finds = [each.pop(0) for each in left.values()]
            z, y = (torch.stack(part) for part in list(zip(*finds, strict=True))[1:])
            held, passes = holds(self.worker.model, z, y, full, self._criterion)
            self._checks += passes
            for find, ok in zip(finds, held, strict=True):
                self._flips += not ok
                if ok:
                    self._keep(find.broken)
            left = {point: each for (point, each), ok in zip(left.items(), held, strict=True)
                    if each and not ok}  # fmt: skip

    def stray(self, moved: int, outside: int) -> None:
        """Note how many candidates another library made, and how many of them do not count."""
        self._moved, self._outside = self._moved + moved, self._outside + outside

    def _remember_refused(
        self, verdict: CandidateVerdicts, points: Sequence[int], z: Images, y: Labels
    ) -> None:
        """Keep what fooled a randomized model more often than anything else that was refused."""
        if verdict.seen is None:
            return
        shares = zip(points, verdict.broken.tolist(), verdict.seen.tolist(), strict=True)
        for row, (point, broken, share) in enumerate(shares):
            if not broken and share > max(0.0, self._best_refused.get(point, _NONE).seen):
                self._best_refused[point] = _Refused(share, z[row].clone(), y[row])

    def _measure_refused(self, points: Iterable[int]) -> None:
        """Measure the best of what was refused, once the search at these points is over."""
        left = {
            point: found
            for point in sorted(points)
            if (found := self._best_refused.get(point, _NONE)).z is not None
            and point not in self.broken
        }
        if not left:
            return
        z = torch.stack([found.z for found in left.values() if found.z is not None])
        y = torch.stack([found.y for found in left.values() if found.y is not None])
        self._checks += FRESH * len(left)
        shares = measure(self.worker.model, z, y, self._criterion).tolist()
        for (point, found), errors in zip(left.items(), shares, strict=True):
            self._refused[point] = RefusedCandidate(found.seen, errors)
            self._best_refused[point] = found._replace(z=None, y=None)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write the ended tasks and the broken points in one transaction."""
        over = {item.work.point for item in outcomes}
        self._keep_what_holds(over)
        self._measure_refused(over)
        spent = [item for item in outcomes if item.spent]
        closest: dict[int, float] = {}
        for work, near in ((item.work, item.closest) for item in spent):
            if near is not None:
                closest[work.point] = max(near, closest.get(work.point, -math.inf))
        self._write([item.work for item in spent], _passes(outcomes), closest)
        self._done += len(outcomes)
        self.report(self._done, len(self.points.ranked) - len(self.broken))

    def close(self, entered: int, *, finished: bool) -> None:
        """Write what is left, and mark the stage as finished unless more points are to come."""
        self._write([], Cost(entered=entered, finished=finished))

    def _write(
        self, spent: Sequence[Work], cost: Cost, closest: dict[int, float] | None = None
    ) -> None:
        now = time.monotonic()
        cost = cost._replace(
            forwards=cost.forwards + self._checks, seconds=now - self._clock, flips=self._flips,
            moved=self._moved, outside=self._outside,
        )  # fmt: skip
        self.writer.write(
            self.stage.number, spent, self._new.values(), cost, closest, self._refused
        )
        self._new, self._checks, self._flips, self._clock = {}, 0, 0, now
        self._moved = self._outside = 0


def broken_points(
    verdict: CandidateVerdicts, stage: int, points: Sequence[int], z: Images | None
) -> list[BrokenPoint]:
    """List the confirmed candidates, with their inputs `z` [b, *f] where those are kept."""
    stored = None if z is None else z.cpu().numpy()
    errors = None if verdict.errors is None else verdict.errors.tolist()
    classes = zip(verdict.predicted.tolist(), verdict.distance.tolist(), strict=True)
    confirmed = verdict.broken.tolist()
    return [
        BrokenPoint(point, stage, label, distance, None if stored is None else stored[row],
             None if errors is None else errors[row])
        for row, (point, (label, distance)) in enumerate(zip(points, classes, strict=True))
        if confirmed[row]
    ]  # fmt: skip


def refuse_refuted_certificates(name: str, refuted: Sequence[int], threat: Threat) -> None:
    """Stop the run when points with a certificate were broken (a RobustkitError)."""
    if refuted:
        raise RobustkitError(
            f"certificate refuted: {name} broke points {some(refuted)}, which were proved "
            f"robust at {threat}. The bounds or the model's certificate are unsound; none "
            "of its certificates may be used. Please report this with the run's folder."
        )


def _passes(outcomes: Sequence[Outcome]) -> Cost:
    return Cost(
        forwards=sum(item.forwards for item in outcomes),
        backwards=sum(item.backwards for item in outcomes),
    )
