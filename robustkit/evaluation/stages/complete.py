"""Complete verification of what bounds and attacks have left: the last stage, point by point."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from robustkit.certify.complete.points import PointVerifier, Verified
from robustkit.certify.complete.search import Budget
from robustkit.certify.complete.verifier import Effort
from robustkit.core.threat import Threat
from robustkit.core.types import Images, Labels
from robustkit.evaluation.stages.first_look import FirstLook
from robustkit.evaluation.stages.judge import broken_points, refuse_refuted_certificates
from robustkit.evaluation.stages.proofs import ProofStage
from robustkit.evaluation.stages.stage import DeviceWorker, PointSource
from robustkit.evaluation.watcher import Watcher
from robustkit.record.ledger import Ledger
from robustkit.record.ledger_schema import (
    BY_BRANCHING,
    UNDECIDED,
    VERIFIED,
    BrokenPoint,
    Cost,
)
from robustkit.record.points import Status
from robustkit.record.record import COMPLETE
from robustkit.verify.candidates import verify


@dataclass(frozen=True)
class CompleteStage:
    """Branch and bound in this process, on the CPU; every point is written down when it is done.

    What it believes to break a point is judged like any other candidate.

    Attributes:
        first: what a first look allows for all points together; None: each has `effort`.
    """

    verifier: PointVerifier
    effort: Effort
    worker: DeviceWorker
    data: PointSource
    threat: Threat
    ledger: Ledger
    keep: bool
    first: FirstLook | None = None
    proofs: ProofStage | None = None

    def run(
        self,
        status: Mapping[int, Status],
        watcher: Watcher,
        told: Callable[[], None],
        *,
        everything: bool,
    ) -> None:
        """Verify the points that are robust so far and not verified yet.

        Args:
            status: by point.
            told: called after every point.
            everything: also those that attacks have broken, to check the proof.

        Raises:
            RobustkitError: when one that is broken is proved robust.
        """
        wanted = ("robust", "broken") if everything else ("robust",)
        tried, proved = self.ledger.verified(status), 0
        todo = [p for p, verdict in status.items() if verdict in wanted and p not in tried]
        watcher.stage(COMPLETE, len(todo))
        count, first = len(todo), self.first
        if first is not None:
            broken = {point for point in todo if status[point] == "broken"}
            todo = first.order(todo, broken, self.data, self.worker.device, self.threat)
            proved = count - len(todo)
        for left, point in zip(range(len(todo), 0, -1), todo, strict=True):
            budget = self.effort.budget() if first is None else first.budget(left)
            proved += self._verify(point, budget, broken=status[point] == "broken")
            watcher.advance(count - left + 1, proved, count)
            told()

    def _verify(self, point: int, budget: Budget | None, *, broken: bool) -> bool:
        clock = time.monotonic()
        x, y = self.data.fetch([point])
        record = None if self.proofs is None else self.proofs.recorder()
        found = (
            Verified("undecided", 0)
            if budget is None
            else self.verifier.verify(x.cpu(), int(y), budget, record)
        )
        proved = found.outcome == "proved"
        refuse_refuted_certificates("an attack", [point] * (proved and broken), self.threat)
        finds, passes = ([], 0) if broken else self._judge(point, found, x, y)
        cost = Cost(forwards=passes, seconds=time.monotonic() - clock)
        self.ledger.write(VERIFIED, [], finds, cost)
        self.ledger.write_certified([(point, BY_BRANCHING if proved else UNDECIDED)], 0.0)
        if self.proofs is not None and record is not None and proved:
            self.proofs.keep(point, x, int(y), record)
        return proved

    def _judge(
        self, point: int, found: Verified, x: Images, y: Labels
    ) -> tuple[list[BrokenPoint], int]:
        """Judge the counterexample of a point, if there is one; return also what that took."""
        if found.example is None:
            return [], 0
        z = found.example.to(self.worker.device)
        x, y = x.to(self.worker.device), torch.as_tensor(y).to(self.worker.device)
        verdict = verify(self.worker.model, z, x, y, self.threat, attack=COMPLETE, points=[point],
                         randomized=self.worker.diagnosis.randomized)  # fmt: skip
        return broken_points(verdict, VERIFIED, [point], z if self.keep else None), verdict.passes
