"""One device with the model on it: what a run asks of it, on one machine and on a worker alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from robustkit.certify.certifier import Certifier
from robustkit.core.spec import Spec
from robustkit.core.threat import Threat
from robustkit.core.types import Model
from robustkit.evaluation.stages.clean_and_certify import Report, classify, prove
from robustkit.evaluation.stages.judge import PointSource, StageJudge, VerdictWriter
from robustkit.registry import attacks
from robustkit.search.engine import Engine, out_of_memory
from robustkit.search.external import ExternalAttack
from robustkit.search.external_runner import run_external
from robustkit.search.minimum_norm import MinimumNormEngine
from robustkit.verify.candidates import DRAWS


class AttackStage(NamedTuple):
    """One attack of a line-up, as far as it is the same for all points.

    Attributes:
        stage: its place in the line-up.
        threat: where verdicts are read, and where certificates hold.
        within: where to look; the same, or all of the box.
        jobs: how many runs of it every point gets.
        nearest: it uses up its budget and keeps the closest success.
        keep: whether to hand on adversarial inputs.
    """

    stage: int
    spec: Spec
    threat: Threat
    within: Threat
    jobs: int
    nearest: bool
    keep: bool


class PointsToAttack(NamedTuple):
    """Points that an attack is to run on.

    Attributes:
        ranked: of each point, the classes by falling clean logit.
        spent: (point, job) pairs that are done already.
        proved: points with a certificate.
    """

    ranked: dict[int, list[int]]
    spent: set[tuple[int, int]]
    proved: set[int]


@dataclass
class DeviceWorker:
    """A model on a device.

    Attributes:
        model: the private copy that verdicts come from; `engine` has the one for searches.
        classes: number of logits.
        randomized: whether its answers are random.
    """

    name: str
    model: Model
    engine: Engine
    device: torch.device
    classes: int
    randomized: bool
    seed: int

    def classify(
        self,
        points: Sequence[int],
        data: PointSource,
        pen: VerdictWriter,
        ranked: int,
        told: Report,
    ) -> None:
        """Classify the clean points, batch by batch; halve the batch when memory runs out.

        Args:
            ranked: how many classes of largest logit to write down.
            told: called after every batch with (points, those of them classified correctly).
        """
        todo, draws = list(points), DRAWS if self.randomized else 1
        while todo:
            batch, clock = todo[: self.engine.slots], time.monotonic()
            try:
                x, y = data.fetch(batch)
                rows, errors = classify(self.model, batch, x.to(self.device), y, draws=draws,
                                        ranked=ranked, name=self.name)  # fmt: skip
            except RuntimeError as error:
                if not out_of_memory(error) or len(batch) == 1:
                    raise
                self.engine.slots = len(batch) // 2
                continue
            pen.write_clean(rows, len(batch) * draws, time.monotonic() - clock, errors)
            todo = todo[len(batch) :]
            told(len(batch), sum(label == predicted for _, label, predicted, _ in rows))

    def attack(
        self,
        assault: AttackStage,
        part: PointsToAttack,
        data: PointSource,
        pen: VerdictWriter,
        report: Report,
        *,
        entered: int = 0,
        last: bool = False,
    ) -> None:
        """Run an attack on the open tasks of some points; `pen` gets every verdict as it falls.

        Args:
            report: called after every harvest with (tasks finished, points of the part standing).
            entered: points that stood when the stage first began, for the books.
            last: no other points are to come.
        """
        search = attacks.build(assault.spec)
        jobs, engine = search.jobs(assault.threat, self.classes), self.engine
        engine.threat = assault.threat
        if assault.nearest:
            engine = MinimumNormEngine.like(engine, assault.within)
        referee = StageJudge(
            stage=assault.stage,
            name=str(assault.spec),
            jobs=jobs,
            data=data,
            reference=self.model,
            threat=engine.threat,
            certificate=assault.threat,
            ledger=pen,
            ranked=part.ranked,
            entered=entered,
            spent=part.spent,
            proved=part.proved,
            seed=self.seed,
            randomized=self.randomized,
            device=self.device,
            keep=assault.keep,
            report=report,
            claims=not isinstance(search, ExternalAttack),
        )
        if isinstance(search, ExternalAttack):
            run_external(search, self.model, assault.threat, self.classes, referee)
        else:
            pending = len(part.ranked) * len(jobs) - len(part.spent)
            engine.run(search, referee.queue(), pending, referee)
        referee.close(finished=last)


class Executor(Protocol):
    """Who does the work of a run and writes it into its ledger: one device, or many."""

    def classify(self, points: Sequence[int], ranked: int, told: Report) -> None:
        """Classify clean points; see `DeviceWorker.classify`."""
        ...

    def prove(
        self, certifier: Certifier, todo: Sequence[int], fallen: set[int], told: Report
    ) -> None:
        """Try a certificate; see `robustkit.evaluation.stages.clean_and_certify.prove`."""
        ...

    def attack(
        self,
        assault: AttackStage,
        part: PointsToAttack,
        report: Report,
        *,
        entered: int,
        last: bool,
    ) -> None:
        """Run an attack; see `DeviceWorker.attack`."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """One device, in this process."""

    bench: DeviceWorker
    data: PointSource
    pen: VerdictWriter
    threat: Threat

    def classify(self, points: Sequence[int], ranked: int, told: Report) -> None:
        """Classify clean points; see `DeviceWorker.classify`."""
        self.bench.classify(points, self.data, self.pen, ranked, told)

    def prove(
        self, certifier: Certifier, todo: Sequence[int], fallen: set[int], told: Report
    ) -> None:
        """Try a certificate; see `robustkit.evaluation.stages.clean_and_certify.prove`."""
        device, threat = self.bench.device, self.threat
        prove(certifier, todo, fallen, self.data, self.pen, device, threat, told)

    def attack(
        self,
        assault: AttackStage,
        part: PointsToAttack,
        report: Report,
        *,
        entered: int,
        last: bool,
    ) -> None:
        """Run an attack; see `DeviceWorker.attack`."""
        self.bench.attack(assault, part, self.data, self.pen, report, entered=entered, last=last)
