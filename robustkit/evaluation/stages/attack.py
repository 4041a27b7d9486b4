"""The attack stage on one device: the engine of slots, or another library batch by batch."""

from __future__ import annotations

from robustkit.core.device import stride
from robustkit.core.finite import FiniteThreat
from robustkit.evaluation.stages.exhaustive import run_exhaustive
from robustkit.evaluation.stages.judge import StageJudge
from robustkit.evaluation.stages.stage import (
    AttackStage,
    DeviceWorker,
    PointSource,
    PointsToAttack,
    Report,
    VerdictWriter,
)
from robustkit.search.engine import Engine
from robustkit.search.external import ExternalAttack
from robustkit.search.external_runner import run_external
from robustkit.search.minimum_norm import MinimumNormEngine


def run_attack(
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
    """Run an attack on the open tasks of some points; `writer` gets every verdict as it comes.

    Args:
        report: called after every harvest with (tasks finished, points still robust).
        entered: points that were robust when the stage first began, for the ledger.
        last: no other points are to come.

    Raises:
        RobustkitError: when the model answers with logits that are not finite, or an attack breaks
            a point with a certificate.
    """
    if isinstance(stage.threat, FiniteThreat):
        run_exhaustive(worker, stage, points, data, writer, report, entered=entered, last=last)
        return
    judge = StageJudge(stage, points, worker, data, writer, report)
    if isinstance(stage.attack, ExternalAttack):
        classes = worker.diagnosis.classes
        run_external(stage.attack, worker.model, stage.threat, classes, judge)
    else:
        # An engine of its own for every stage: the threat model of one is never that of another.
        kind, tuned = MinimumNormEngine if stage.nearest else Engine, worker.tuned
        engine = kind(tuned.model, stage.within, worker.slots, stride(worker.device), tuned.half,
                      pulse=worker.pulse)  # fmt: skip
        pending = len(points.ranked) * len(judge.jobs) - len(points.spent)
        engine.run(stage.attack, judge.queue(), pending, judge)
        worker.slots = engine.slots  # what memory did not suffice for stays out of the next stages
    judge.close(entered, finished=last)
