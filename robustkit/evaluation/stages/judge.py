"""Between engine and ledger: feeds tasks, judges candidates, writes verdicts as they fall."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels, Model
from robustkit.data.dataset import Indices
from robustkit.errors import RobustkitError, some
from robustkit.record.ledger_schema import BrokenPoint, Cost, RefusedCandidate
from robustkit.search.protocol import Job, Tasks
from robustkit.search.tasks import Outcome, Work, fresh_tasks
from robustkit.verify.candidates import FRESH, CandidateVerdicts, measure, verify


class PointSource(Protocol):
    """Where the points come from: a data set, or those that were sent to a worker."""

    def fetch(self, indices: Indices) -> tuple[Images, Labels]:
        """Read the points `indices` [b]: float32 images in [0, 1] and int64 labels."""
        ...


class VerdictWriter(Protocol):
    """What writes verdicts down: the ledger, or what sends them to where the ledger is."""

    def write_clean(
        self,
        rows: Iterable[tuple[int, int, int, list[int]]],
        forwards: int,
        seconds: float,
        errors: Mapping[int, float] | None = None,
    ) -> None:
        """Store (point, label, predicted, classes by falling logit) of a clean batch."""
        ...

    def write_certified(self, rows: Iterable[tuple[int, bool]], seconds: float) -> None:
        """Store for some points whether the certificate holds."""
        ...

    def write(
        self,
        stage: int,
        spent: Iterable[tuple[int, int]],
        falls: Iterable[BrokenPoint],
        cost: Cost,
        closest: Mapping[int, float] | None = None,
        refused: Mapping[int, RefusedCandidate] | None = None,
    ) -> None:
        """Store what a harvest of an attack brought."""
        ...


@dataclass
class StageJudge:
    """The referee of one attack over the points that still stand.

    Attributes:
        name: canonical spec of the attack; names its random streams and its errors.
        reference: the original model in float32.
        ranked: per standing point, the classes by falling clean logit.
        entered: points that stood when the stage first began.
        spent: (point, job) pairs that an earlier run of the same command has finished.
        certificate: where the certificates hold; `threat` is where the search looks.
        proved: points with a certificate; one that falls all the same stops the run.
        keep: whether to store adversarial inputs.
        report: called after every harvest with (tasks finished, points still standing).
        claims: whether the attack claims that its candidates fool the model.
    """

    stage: int
    name: str
    jobs: Sequence[Job]
    data: PointSource
    reference: Model
    threat: Threat
    certificate: Threat
    ledger: VerdictWriter
    ranked: dict[int, list[int]]
    entered: int
    spent: set[tuple[int, int]]
    proved: set[int]
    seed: int
    randomized: bool
    device: torch.device
    keep: bool
    report: Callable[[int, int], None]
    claims: bool = True
    falls: dict[int, BrokenPoint] = field(default_factory=dict)
    _new: dict[int, BrokenPoint] = field(default_factory=dict)
    _refused: dict[int, RefusedCandidate] = field(default_factory=dict)
    _checks: int = 0
    _flips: int = 0
    _done: int = 0
    _clock: float = field(default_factory=time.monotonic)

    def queue(self) -> Iterator[Work]:
        """Every open task, job by job: with few slots, later targets see only what is left."""
        for job in range(len(self.jobs)):
            for point in self.ranked:
                if (point, job) not in self.spent:
                    yield Work(point, job)

    def tasks(self, work: Sequence[Work]) -> Tasks:
        """Read the points and name their targets."""
        points = np.array([item.point for item in work])
        x, y = self.data.fetch(points)
        ranked = torch.tensor([self.ranked[item.point] for item in work])
        jobs = [self.jobs[item.job] for item in work]
        tasks = fresh_tasks(x, y, ranked, torch.from_numpy(points), jobs, self.name, self.seed)
        return Tasks(*(tensor.to(self.device) for tensor in tasks))

    def confirm(self, work: Sequence[Work], z: Images, x: Images, y: Labels) -> list[bool]:
        """Verify candidates; the closest that stands waits for the next `settle`."""
        points = [item.point for item in work]
        verdict = verify(
            self.reference, z, x, y, self.threat, attack=self.name, points=points,
            randomized=self.randomized,
        )  # fmt: skip
        self._checks += verdict.passes
        stands: list[bool] = verdict.broken.tolist()
        self._flips += stands.count(False) * self.claims
        inside = self.certificate.contains(z, x).tolist()
        columns = zip(points, stands, inside, strict=True)
        refuted = [p for p, ok, near in columns if ok and near and p in self.proved]
        refuse_refuted_certificates(self.name, refuted, self.certificate)
        for fall in broken_points(verdict, self.stage, points, z if self.keep else None):
            known = self.falls.get(fall.point)
            if known is None or fall.distance < known.distance:
                self.falls[fall.point] = self._new[fall.point] = fall
        self._note_refused(verdict, points, z, y)
        return stands

    def _note_refused(
        self, verdict: CandidateVerdicts, points: Sequence[int], z: Images, y: Labels
    ) -> None:
        """Measure what fooled a randomized model more often than anything else that was refused."""
        if verdict.seen is None:
            return
        told = zip(points, verdict.broken.tolist(), verdict.seen.tolist(), strict=True)
        better = {
            row: share
            for row, (point, broken, share) in enumerate(told)
            if not broken
            and share > max(0.0, self._refused.get(point, RefusedCandidate(0, 0)).seen)
        }
        if not better:
            return
        rows = torch.tensor(list(better), device=z.device)
        self._checks += FRESH * len(rows)
        for row, errors in zip(
            better, measure(self.reference, z[rows], y[rows]).tolist(), strict=True
        ):
            self._refused[points[row]] = RefusedCandidate(better[row], errors)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write the ended tasks and the falls in one transaction."""
        spent = [item for item in outcomes if item.spent]
        closest: dict[int, float] = {}
        for work, near in ((item.work, item.closest) for item in spent):
            if near is not None:
                closest[work.point] = max(near, closest.get(work.point, -math.inf))
        self._write([item.work for item in spent], _passes(outcomes), closest)
        self._done += len(outcomes)
        self.report(self._done, len(self.ranked) - len(self.falls))

    def close(self, *, finished: bool = True) -> None:
        """Write what is left, and mark the stage as finished unless more points are to come."""
        self._write([], Cost(entered=self.entered, finished=finished))

    def _write(
        self, spent: Sequence[Work], cost: Cost, closest: dict[int, float] | None = None
    ) -> None:
        now = time.monotonic()
        cost = cost._replace(
            forwards=cost.forwards + self._checks, seconds=now - self._clock, flips=self._flips
        )
        self.ledger.write(self.stage, spent, self._new.values(), cost, closest, self._refused)
        self._new, self._checks, self._flips, self._clock = {}, 0, 0, now


def broken_points(
    verdict: CandidateVerdicts, stage: int, points: Sequence[int], z: Images | None
) -> list[BrokenPoint]:
    """List the candidates that stand, with their inputs `z` [b, *f] where those are kept."""
    stored = None if z is None else z.cpu().numpy()
    errors = None if verdict.errors is None else verdict.errors.tolist()
    told = zip(verdict.predicted.tolist(), verdict.distance.tolist(), strict=True)
    stands = verdict.broken.tolist()
    return [
        BrokenPoint(point, stage, label, distance, None if stored is None else stored[row],
             None if errors is None else errors[row])
        for row, (point, (label, distance)) in enumerate(zip(points, told, strict=True))
        if stands[row]
    ]  # fmt: skip


def refuse_refuted_certificates(name: str, refuted: Sequence[int], threat: Threat) -> None:
    """Stop the run when points with a certificate fell (a RobustkitError)."""
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
