"""Who does the work of a run: this process on one device, or workers (see distributed/)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from robustkit.certify.certifier import Certifier
from robustkit.core.threat import Threat
from robustkit.evaluation.stages.attack import run_attack
from robustkit.evaluation.stages.clean_and_certify import classify, prove
from robustkit.evaluation.stages.stage import (
    AttackStage,
    DeviceWorker,
    PointSource,
    PointsToAttack,
    Report,
    VerdictWriter,
)


class Executor(Protocol):
    """Does the work of a run and writes it into its ledger: on one device, or on many workers."""

    def classify(self, points: Sequence[int], ranked: int, report: Report) -> None:
        """Classify clean points; see `robustkit.evaluation.stages.clean_and_certify.classify`."""
        ...

    def prove(
        self, certifier: Certifier, points: Sequence[int], broken: set[int], report: Report
    ) -> None:
        """Try a certificate; see `robustkit.evaluation.stages.clean_and_certify.prove`."""
        ...

    def attack(
        self,
        stage: AttackStage,
        points: PointsToAttack,
        report: Report,
        *,
        entered: int,
        last: bool,
    ) -> None:
        """Run an attack; see `robustkit.evaluation.stages.attack.run_attack`."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """One device, in this process."""

    worker: DeviceWorker
    data: PointSource
    writer: VerdictWriter
    threat: Threat

    def classify(self, points: Sequence[int], ranked: int, report: Report) -> None:
        """Classify clean points."""
        classify(self.worker, points, self.data, self.writer, ranked, report,
                 self.threat.criterion)  # fmt: skip

    def prove(
        self, certifier: Certifier, points: Sequence[int], broken: set[int], report: Report
    ) -> None:
        """Try a certificate."""
        device, threat = self.worker.device, self.threat
        prove(certifier, points, broken, self.data, self.writer, device, threat, report)

    def attack(
        self,
        stage: AttackStage,
        points: PointsToAttack,
        report: Report,
        *,
        entered: int,
        last: bool,
    ) -> None:
        """Run an attack."""
        run_attack(
            self.worker, stage, points, self.data, self.writer, report, entered=entered, last=last
        )
